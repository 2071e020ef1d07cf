//! Files with a secret that belongs to somebody else: the PIN of a token, the header of an identity.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
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
        return read(&path, From::Credential);
    }
    let path = path.ok_or_else(|| {
        format!("no file with the secret is given, and there is no systemd credential {credential}")
    })?;
    read(path, From::File)
}

/// The secret in a file that only this user can read, or in a pipe: a named one, or one that was
/// inherited, as a shell's `<(…)` is. It waits for what comes out of a pipe.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, String> {
    read(path, From::FileOrPipe)
}

/// What is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// A private file.
    File,
    /// A private file or a pipe.
    FileOrPipe,
    /// A file that systemd keeps private.
    Credential,
}

/// The secret in the file of a systemd credential.
///
/// # Errors
/// One line that says what is wrong with the file.
pub fn read_credential(path: &Path) -> Result<Zeroizing<String>, String> {
    read(path, From::Credential)
}

fn credential_path(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = PathBuf::from(directory).join(name);
    path.exists().then_some(path)
}

fn read(path: &Path, from: From) -> Result<Zeroizing<String>, String> {
    let fail = |e: io::Error| format!("cannot read {}: {e}", path.display());
    let inherited = from == From::FileOrPipe && is_inherited(path);
    let found = match inherited {
        true => path.metadata(),
        false => path.symlink_metadata(),
    };
    let is_pipe = from == From::FileOrPipe && found.is_ok_and(|f| f.file_type().is_fifo());
    let mut flags = 0;
    if !inherited {
        flags |= libc::O_NOFOLLOW;
    }
    // Something else than a file must not keep it waiting; a pipe is waited for.
    if !is_pipe {
        flags |= libc::O_NONBLOCK;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(fail)?;
    let kind = file.metadata().map_err(fail)?.file_type();
    let is_asked_for = kind.is_file() || (is_pipe && kind.is_fifo());
    if !is_asked_for {
        return Err(format!("{} is not a regular file", path.display()));
    }
    // Who has given us the descriptor of a pipe has chosen who else has it, and its mode is no file's.
    let given = inherited && kind.is_fifo();
    if from != From::Credential && !given {
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

/// Whether it is the name of one of this process's own descriptors, which is a link.
fn is_inherited(path: &Path) -> bool {
    path.starts_with("/dev/fd")
        || path.starts_with("/proc/self/fd")
        || path == Path::new("/dev/stdin")
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
    fn a_secret_comes_out_of_a_pipe_where_somebody_waits_for_it() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let writing = std::thread::spawn(move || writer.write_all(b"word one\n").unwrap());
        assert_eq!(*read_secret_file(&path).unwrap(), "word one");
        writing.join().unwrap();

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let to = path.clone();
        let writing = std::thread::spawn(move || fs::write(to, "word two").unwrap());
        assert_eq!(*read_secret_file(&path).unwrap(), "word two");
        writing.join().unwrap();
        // Nobody waits for a PIN: a daemon would hang.
        let refused = read_secret(Some(&path), "sealdisk-test-none").unwrap_err();
        assert!(refused.contains("regular"), "{refused}");
        // A link is followed for descriptors only.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_secret_file(&link).is_err());
        // A file that others can read is no pipe, however it is named.
        let open = dir.path().join("open");
        fs::write(&open, "word").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        let file = File::open(&open).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert!(read_secret_file(&path).unwrap_err().contains("chmod 600"));
    }

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
