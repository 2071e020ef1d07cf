//! Which host this is, for disks on storage that several hosts have.
//!
//! The header of an attached disk says where it is attached, and what a guest has written and not flushed is in memory
//! there. After the next boot of that host it is gone, and its guest with it. On another host it is out of reach while that
//! guest may go on; so the two are told apart, which the id of a boot alone does not do.
//!
//! A host is known by the id of its machine (machine-id(5)), which D-Bus keeps too, or by a name that its operator gives it: where hosts have the
//! same id, since they were made of one image; where one has another id after each boot; where several are played on one
//! machine. Not by what the firmware says (`product_uuid`): only root may read that, and all containers of a machine are
//! one by it. Only a hash of either is written, behind what people call it: `NAME/ID`.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::runtime::is_tmpfs;
use keys::{hex, sha256};

/// The variable of the environment by which a process is told the name of its host.
pub const HOST_VARIABLE: &str = "SEALDISK_HOST";

/// Where the id of a machine is.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// Characters of the name that are written, so that a header has room for both (`HOST_NAME_MAX`).
const MAX_SHOWN: usize = 47;
/// Characters of a name that is given, as of a name in DNS.
const MAX_NAME: usize = 253;
/// Bytes of the hash that are written.
const ID_LEN: usize = 8;

static GIVEN: OnceLock<String> = OnceLock::new();

/// Checks a name for this host: 1 to 253 letters, digits, `.`, `-` and `_`. An empty one is none that was given.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn check_host_name(name: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match name.len() <= MAX_NAME && name.bytes().all(allowed) {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "the name of a host has 1 to {MAX_NAME} letters, digits, '.', '-' and '_'"
        )),
    }
}

/// Gives this host a name that [`check_host_name`] has passed, for as long as this process lives. The first one counts,
/// and an empty one does not.
pub fn name_host(name: String) {
    if !name.is_empty() {
        let _ = GIVEN.set(name);
    }
}

/// The name that it was given.
pub fn given_host_name() -> Option<&'static str> {
    GIVEN.get().map(String::as_str)
}

/// This host, as the header of a disk that it has attached says it.
pub fn this_host() -> &'static str {
    static THIS: OnceLock<String> = OnceLock::new();
    THIS.get_or_init(|| match given_host_name() {
        Some(name) => described(name, "name", name),
        None => {
            let name = read("/proc/sys/kernel/hostname");
            match machine_id(&MACHINE_IDS.map(Path::new)) {
                Some((machine, _)) => described(&name, "machine", &machine),
                // It says less, and is not taken for another host's all the same.
                None => described(&name, "hostname", &name),
            }
        }
    })
}

/// Why this host may be known by another id later, as a sentence without its end. Nothing when it stays.
pub fn host_may_change() -> Option<&'static str> {
    if given_host_name().is_some() {
        return None;
    }
    match machine_id(&MACHINE_IDS.map(Path::new)) {
        None => Some("this host has no machine id, and is known by its hostname"),
        Some((_, path)) if is_tmpfs(path) => Some(
            "the machine id of this host is in memory, and may be another one at the next boot",
        ),
        Some(_) => None,
    }
}

/// The first of these that is one, and where it is.
fn machine_id<'a>(paths: &[&'a Path]) -> Option<(String, &'a Path)> {
    let ids = paths.iter().map(|path| (read(path), *path));
    // Empty, or this word, where no system has written one yet.
    let mut written = ids.filter(|(id, _)| !id.is_empty() && id != "uninitialized");
    written.next()
}

/// Whether what a header says of a host is said of this one. Nothing where it has a name alone, as of an earlier version of
/// this program.
pub fn is_this_host(said: &str) -> Option<bool> {
    let (_, id) = parts(said)?;
    let (_, own) = parts(this_host())?;
    Some(id == own)
}

/// As people call the host of which a header says this.
pub fn name_of_host(said: &str) -> &str {
    parts(said).map_or(said, |(name, _)| name)
}

/// The id of the host of which a header says this, if it does.
pub fn id_of_host(said: &str) -> Option<&str> {
    parts(said).map(|(_, id)| id)
}

fn read(path: impl AsRef<Path>) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn parts(said: &str) -> Option<(&str, &str)> {
    let (name, id) = said.rsplit_once('/')?;
    let is_id = id.len() == 2 * ID_LEN && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then_some((name, id))
}

fn described(name: &str, kind: &str, of: &str) -> String {
    let hash = sha256(format!("sealdisk host {kind} {of}").as_bytes());
    let shown = name.chars().filter(|c| c.is_ascii_graphic() && *c != '/');
    let shown: String = shown.take(MAX_SHOWN).collect();
    let shown = if shown.is_empty() { "unknown" } else { &shown };
    format!("{shown}/{}", hex(&hash[..ID_LEN]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_told_from_others_and_from_what_says_nothing() {
        let this = this_host();
        assert_eq!(is_this_host(this), Some(true));
        assert!(this.len() <= 64, "{this}");
        let other = described("other", "name", "other");
        assert_eq!(is_this_host(&other), Some(false));
        assert_eq!(name_of_host(&other), "other");
        for before in ["other", "", "a/b", "a/0123"] {
            assert_eq!(is_this_host(before), None, "{before}");
            assert_eq!(name_of_host(before), before);
        }
    }

    #[test]
    fn the_first_machine_id_that_was_written_counts() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["etc", "dbus"].map(|name| dir.path().join(name));
        let [etc, dbus] = &paths;
        let found =
            || machine_id(&[etc.as_path(), dbus.as_path()]).map(|(id, path)| (id, path.to_owned()));
        assert_eq!(found(), None);
        fs::write(etc, "uninitialized\n").unwrap();
        assert_eq!(found(), None);
        fs::write(dbus, "0123\n").unwrap();
        assert_eq!(found(), Some(("0123".into(), dbus.clone())));
        fs::write(etc, "4567\n").unwrap();
        assert_eq!(found(), Some(("4567".into(), etc.clone())));
    }

    #[test]
    fn a_name_is_one_and_what_it_is_of_counts() {
        assert_eq!(described("a", "name", "a"), described("a", "name", "a"));
        assert_ne!(described("a", "name", "a"), described("a", "machine", "a"));
        assert_ne!(
            described("a", "machine", "1"),
            described("a", "machine", "2")
        );
        let long = described(&"é/x".repeat(40), "name", "x");
        assert_eq!(long.len(), 40 + 1 + 2 * ID_LEN);
        assert!(described("", "machine", "1").starts_with("unknown/"));
        assert!(check_host_name("node-1.example").is_ok());
        for wrong in ["a b", "a/b", "é", &"x".repeat(254)] {
            assert!(check_host_name(wrong).is_err(), "{wrong}");
        }
        // A unit with an empty variable, and a host with a long name, are not kept from every command.
        assert!(check_host_name("").is_ok() && check_host_name(&"x".repeat(64)).is_ok());
        let [one, other] = ["a", "b"].map(|end| "x".repeat(63) + end);
        let [one, other] = [one, other].map(|name| described(&name, "name", &name));
        assert!(one.len() == 64 && one != other, "{one} {other}");
        assert_eq!(id_of_host(&one).map(str::len), Some(16));
    }
}
