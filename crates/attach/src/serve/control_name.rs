//! Where an attach's control socket is: under the disk's own name while it has the disk, else under one of its own.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::error::AttachError;
use installation::files::bind_private;

/// What all names of control sockets end with.
const ENDING: &str = ".control";

/// Where the attach that has the disk is reached.
pub(crate) fn path_of(runtime_dir: &Path, disk: Uuid) -> PathBuf {
    runtime_dir.join(format!("{disk}{ENDING}"))
}

/// The disk whose own name a control socket has.
pub(crate) fn disk_of(path: &Path) -> Option<Uuid> {
    let name = path.file_name()?.to_str()?;
    Uuid::parse_str(name.strip_suffix(ENDING)?).ok()
}

/// The disk that the attach at a control socket does not have.
pub(crate) fn waited_for_at(path: &Path) -> Option<Uuid> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?;
    let (disk, _attach) = name.split_once('.')?;
    Uuid::parse_str(disk).ok()
}

/// Where an attach of the disk is reached that does not have it.
fn path_of_attach(runtime_dir: &Path, disk: Uuid, attach: Uuid) -> PathBuf {
    // Paths of sockets are short.
    let (attach, ..) = attach.as_fields();
    runtime_dir.join(format!("{disk}.{attach:08x}{ENDING}"))
}

/// All of these.
pub(crate) fn paths_without_disk(runtime_dir: &Path, disk: Uuid) -> Vec<PathBuf> {
    let prefix = format!("{disk}.");
    let entries = std::fs::read_dir(runtime_dir)
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let between = name
                .strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix(ENDING));
            between.is_some_and(|attach| !attach.is_empty())
        })
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The names of a socket in the file system, which it loses in the end.
pub(crate) struct Names {
    with_disk: PathBuf,
    without: PathBuf,
    made: Metadata,
}

impl Names {
    /// Binds a socket under the name that it has without the disk.
    ///
    /// # Errors
    /// [`AttachError::Socket`].
    pub(crate) fn bind(
        runtime_dir: &Path,
        disk: Uuid,
        attach: Uuid,
    ) -> Result<(UnixListener, Self), AttachError> {
        let path = path_of_attach(runtime_dir, disk, attach);
        let bound = || {
            let listener = bind_private(&path)?;
            Ok((listener, path.symlink_metadata()?))
        };
        let (listener, made) = bound().map_err(|source| AttachError::Socket {
            path: path.clone(),
            source,
        })?;
        let names = Self {
            with_disk: path_of(runtime_dir, disk),
            without: path,
            made,
        };
        Ok((listener, names))
    }

    /// Those of a socket that the program before this one has bound, and that is here while the attach has the disk.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn adopt(with_disk: &Path, attach: Uuid) -> io::Result<Self> {
        let stem = with_disk.file_stem().unwrap_or_default().to_string_lossy();
        let runtime_dir = with_disk.parent().unwrap_or(Path::new("."));
        let disk = Uuid::parse_str(&stem).map_err(io::Error::other)?;
        Ok(Self {
            with_disk: with_disk.into(),
            without: path_of_attach(runtime_dir, disk, attach),
            made: with_disk.symlink_metadata()?,
        })
    }

    /// The one with the disk.
    pub(crate) fn with_disk(&self) -> &Path {
        &self.with_disk
    }

    /// The disk is this attach's from now on: what has its name is of one that had it before.
    pub(crate) fn has_disk(&self) {
        self.rename(&self.without, &self.with_disk);
    }

    /// Another attach may have the disk from now on.
    pub(crate) fn has_no_disk(&self) {
        self.rename(&self.with_disk, &self.without);
    }

    fn rename(&self, from: &Path, to: &Path) {
        if self.is_at(from)
            && let Err(error) = std::fs::rename(from, to)
        {
            log::warn!(
                "commands do not find this attach at {}: {error}",
                to.display()
            );
        }
    }

    fn is_at(&self, path: &Path) -> bool {
        path.symlink_metadata()
            .is_ok_and(|now| (now.dev(), now.ino()) == (self.made.dev(), self.made.ino()))
    }

    /// Removes them.
    pub(crate) fn remove(&self) {
        for path in [&self.with_disk, &self.without] {
            if self.is_at(path)
                && let Err(error) = std::fs::remove_file(path)
            {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disks_own_name_is_of_whoever_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let [disk, one, two] = [1, 2, 3].map(Uuid::from_u128);
        let one = Uuid::from_u128(one.as_u128() << 96);
        let two = Uuid::from_u128(two.as_u128() << 96);
        let at = path_of(dir.path(), disk);
        let (_listener, source) = Names::bind(dir.path(), disk, one).unwrap();
        source.has_disk();
        assert!(source.is_at(&at) && paths_without_disk(dir.path(), disk).is_empty());
        let (_other, destination) = Names::bind(dir.path(), disk, two).unwrap();
        assert_eq!(
            paths_without_disk(dir.path(), disk),
            std::slice::from_ref(&destination.without)
        );
        source.has_no_disk();
        destination.has_disk();
        assert!(destination.is_at(&at) && source.is_at(&source.without));
        drop(source);
        assert!(at.exists() && paths_without_disk(dir.path(), disk).is_empty());
        // It has lost its name to the next.
        let (_third, next) = Names::bind(dir.path(), disk, one).unwrap();
        next.has_disk();
        destination.has_no_disk();
        drop(destination);
        assert!(next.is_at(&at));
        let adopted = Names::adopt(&at, one).unwrap();
        assert!(adopted.is_at(&at) && adopted.without == next.without);
        drop(adopted);
        drop(next);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
