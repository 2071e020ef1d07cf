//! Files with a secret that belongs to somebody else: the PIN of a token, the header of an identity.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Longest secret that is read, in bytes.
const LIMIT: u64 = 4096;

/// A secret in a file that only this user can read: `path`, or a systemd credential called
/// `credential` when systemd provides one. The line break at its end does not belong to it.
///
/// # Errors
/// One line that says what is wrong with the file.
pub(super) fn read_secret(
    path: Option<&Path>,
    credential: &str,
) -> Result<Zeroizing<String>, String> {
    if let Some(path) = credential_path(credential) {
        return read(&path, false);
    }
    let path = path.ok_or_else(|| {
        format!("no file with the secret is given, and there is no systemd credential {credential}")
    })?;
    read(path, true)
}

/// The secret in a file that only this user can read.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, String> {
    read(path, true)
}

/// The secret in the file of a systemd credential.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn read_credential(path: &Path) -> Result<Zeroizing<String>, String> {
    read(path, false)
}

fn credential_path(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = PathBuf::from(directory).join(name);
    path.exists().then_some(path)
}

fn read(path: &Path, check_mode: bool) -> Result<Zeroizing<String>, String> {
    let fail = |e: io::Error| format!("cannot read {}: {e}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    if check_mode {
        check_private(&file, path)?;
    }
    let mut secret = Zeroizing::new(String::with_capacity(LIMIT as usize + 1));
    file.take(LIMIT + 1)
        .read_to_string(&mut secret)
        .map_err(fail)?;
    if secret.len() as u64 > LIMIT {
        return Err(format!("{} has more than {LIMIT} bytes", path.display()));
    }
    let length = secret.trim_end_matches(['\r', '\n']).len();
    secret.truncate(length);
    if secret.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(secret)
}

fn check_private(file: &File, path: &Path) -> Result<(), String> {
    let metadata = file
        .metadata()
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o077 == 0 && (metadata.uid() == own || metadata.uid() == 0) {
        return Ok(());
    }
    let path = path.display();
    Err(format!(
        "others can read the secret in {path}: `chown {own} {path}` and `chmod 600 {path}`, and \
         change it if they did"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_read_without_its_line_break_and_only_from_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        let set = |content: &str, mode| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let secret = || read_secret(Some(&path), "sealdisk-test-none").map(|s| (*s).clone());
        set("12 34\r\n", 0o600);
        assert_eq!(secret().unwrap(), "12 34");
        for (content, mode, why) in [
            ("1234", 0o640, "chmod 600"),
            ("\n", 0o600, "is empty"),
            (&"x".repeat(5000), 0o600, "more than 4096"),
        ] {
            set(content, mode);
            assert!(secret().unwrap_err().contains(why), "{why}");
        }
        assert!(
            read_secret(Some(dir.path()), "none")
                .unwrap_err()
                .contains("regular")
        );
        assert!(
            read_secret(None, "none")
                .unwrap_err()
                .contains("credential none")
        );
    }
}
