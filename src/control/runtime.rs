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

/// The runtime map of a disk.
pub fn runtime_map(runtime_dir: &Path, disk: Uuid) -> PathBuf {
    runtime_dir.join(format!("{disk}.map"))
}

fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_and_the_default_is_a_tmpfs() {
        assert_eq!(runtime_dir(Some(Path::new("/x"))), Path::new("/x"));
        let default = runtime_dir(None);
        assert!(is_tmpfs(default.parent().unwrap()), "{default:?}");
    }
}
