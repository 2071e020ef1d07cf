//! The runtime directory, for what must outlive a process and not a power loss.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use uuid::Uuid;

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Where runtime files are: `given` (`--runtime-dir`), else `/run/sealdisk` for root when `/run` is
/// a tmpfs, else `$XDG_RUNTIME_DIR/sealdisk`, else `/dev/shm/sealdisk-UID`. It need not exist yet,
/// and whoever makes a file in it checks that it is on tmpfs.
pub fn runtime_dir(given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return given.into();
    }
    let user = rustix::process::geteuid();
    if user.is_root() && is_tmpfs(Path::new("/run")) {
        return "/run/sealdisk".into();
    }
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match session.filter(|dir| dir.is_absolute() && is_tmpfs(dir)) {
        Some(dir) => dir.join("sealdisk"),
        None => format!("/dev/shm/sealdisk-{}", user.as_raw()).into(),
    }
}

/// Whether a runtime directory goes when its user logs out: it is the session's, and the user does not
/// linger (pam_systemd(8), loginctl(1)). `/dev/shm` is no better for such users: logind removes their
/// files there too (`RemoveIPC=` of logind.conf(5)).
pub fn goes_at_logout(runtime_dir: &Path) -> bool {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let user = std::env::var_os("USER").unwrap_or_default();
    let lingers = Path::new("/var/lib/systemd/linger").join(user);
    is_of_session(runtime_dir, session.as_deref()) && !lingers.is_file()
}

fn is_of_session(runtime_dir: &Path, session: Option<&Path>) -> bool {
    session.is_some_and(|session| session.is_absolute() && runtime_dir.starts_with(session))
}

/// The runtime map of a disk.
pub fn runtime_map(runtime_dir: &Path, disk: Uuid) -> PathBuf {
    runtime_dir.join(format!("{disk}.map"))
}

pub(crate) fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_session_is_told() {
        let session = Some(Path::new("/run/user/1000"));
        let is_of_session = |dir: &str| is_of_session(Path::new(dir), session);
        assert!(is_of_session("/run/user/1000/sealdisk"));
        assert!(!is_of_session("/run/sealdisk") && !is_of_session("/run/user/10001"));
        assert!(!super::is_of_session(Path::new("/run/sealdisk"), None));
    }

    #[test]
    fn what_is_given_is_taken_and_the_default_is_a_tmpfs() {
        assert_eq!(runtime_dir(Some(Path::new("/x"))), Path::new("/x"));
        let default = runtime_dir(None);
        assert!(is_tmpfs(default.parent().unwrap()), "{default:?}");
    }
}
