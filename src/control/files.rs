//! Directories that only their owner may look into.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use super::ControlError;

/// Makes `path` and what is missing above it with mode 0700, whatever the umask, and makes the new
/// directory entries durable. One that is there already must be a directory of this user, or of
/// root, in which nobody else can write.
///
/// # Errors
/// [`ControlError::Directory`], [`ControlError::Exposed`].
pub fn private_dir(path: &Path) -> Result<(), ControlError> {
    let fail = |source| ControlError::Directory {
        path: path.into(),
        source,
    };
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
        .collect();
    if !missing.is_empty() {
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(path)
            .map_err(fail)?;
        for made in missing {
            match made.parent().filter(|p| !p.as_os_str().is_empty()) {
                Some(parent) => sync_dir(parent).map_err(fail)?,
                None => sync_dir(Path::new(".")).map_err(fail)?,
            }
        }
    }
    let metadata = fs::metadata(path).map_err(fail)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || (metadata.uid() != own && metadata.uid() != 0) {
        return Err(ControlError::Exposed { path: path.into() });
    }
    Ok(())
}

/// Makes the names in a directory durable.
///
/// # Errors
/// What the system said.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn new_directories_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path).unwrap();
        private_dir(&path).unwrap();
        for made in ["a", "a/b"] {
            let mode = fs::metadata(dir.path().join(made)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
    }

    #[test]
    fn a_directory_in_which_others_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = private_dir(&path).unwrap_err();
        assert!(matches!(error, ControlError::Exposed { .. }), "{error}");
    }
}
