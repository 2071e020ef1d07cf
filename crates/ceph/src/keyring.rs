//! Keyrings, read before the process gives up the files of the host.

use std::fs;
use std::io;

use zeroize::Zeroizing;

use crate::CephError;

/// The key of a user, from the first of some files that is there; `None` when none is.
///
/// # Errors
/// [`CephError::Keyring`]: one is there and cannot be read, or has no key of that user.
pub(crate) fn key_of(name: &str, files: &str) -> Result<Option<Zeroizing<String>>, CephError> {
    // Separated as Ceph separates them.
    let paths = files.split([',', ';', ' ', '\t']);
    for path in paths.filter(|path| !path.is_empty()) {
        let refuse = |why: String| CephError::Keyring {
            path: path.into(),
            why,
        };
        match fs::read_to_string(path).map(Zeroizing::new) {
            Ok(text) => {
                let key = key_in(&text, name);
                return key
                    .map(Some)
                    .ok_or_else(|| refuse(format!("it has no key of {name}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refuse(error.to_string())),
        }
    }
    Ok(None)
}

/// The key of a user in the text of a keyring: sections by names, with `key = VALUE` among others.
fn key_in(text: &str, name: &str) -> Option<Zeroizing<String>> {
    let lines = text.lines().map(str::trim);
    let mut section = lines.skip_while(|line| section_of(line) != Some(name));
    section.next()?;
    let own = section.take_while(|line| section_of(line).is_none());
    own.filter_map(|line| line.split_once('='))
        .find(|(option, _)| option.trim() == "key")
        .map(|(_, key)| Zeroizing::new(key.trim().to_owned()))
}

fn section_of(line: &str) -> Option<&str> {
    Some(line.strip_prefix('[')?.strip_suffix(']')?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# two\n[client.admin]\n\tkey = AQAdmin==\n\tcaps mon = \"allow *\"\n\n\
        [ client.disks ]\n  caps osd = \"profile rbd\"\n  key=AQDisks==\n";

    #[test]
    fn a_key_is_that_of_its_section() {
        let key = |name| key_in(TEXT, name).map(|key| key.to_string());
        assert_eq!(key("client.admin").as_deref(), Some("AQAdmin=="));
        assert_eq!(key("client.disks").as_deref(), Some("AQDisks=="));
        assert_eq!(key("client.other"), None);
        assert_eq!(
            key_in("[client.admin]\n[client.disks]\nkey = x", "client.admin"),
            None
        );
    }

    #[test]
    fn the_first_file_that_is_there_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let list = format!("{},{}, {}", path("none"), path("first"), path("second"));
        assert!(key_of("client.admin", &list).unwrap().is_none());
        fs::write(path("second"), TEXT).unwrap();
        let key = key_of("client.admin", &list).unwrap().unwrap();
        assert_eq!(key.as_str(), "AQAdmin==");
        fs::write(path("first"), "[client.x]\nkey = y\n").unwrap();
        let refused = key_of("client.admin", &list).unwrap_err().to_string();
        let first = path("first");
        assert_eq!(
            refused,
            format!("the keyring {first} cannot be used: it has no key of client.admin")
        );
    }
}
