//! Files of layers, which several directories may have.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, StatxFlags, fallocate, statx};
use uuid::Uuid;

use crate::resource::directory::layer_paths;
use crate::resource::error::DiskError;
use installation::envelope::{HeaderPayload, LayerRecord, MAX_GONE};
use installation::files::has_no_links;

/// Gives `into` the files of `layers`, which `from` has. Those that it has already stay.
///
/// # Errors
/// [`DiskError::OtherFileSystem`], [`DiskError::File`].
pub(crate) fn share(layers: &[LayerRecord], from: &Path, into: &Path) -> Result<(), DiskError> {
    for layer in layers {
        let (theirs, ours) = (layer_paths(from, layer), layer_paths(into, layer));
        for (theirs, ours) in [(theirs.data, ours.data), (theirs.map, ours.map)] {
            match fs::hard_link(&theirs, &ours) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && same(&theirs, &ours) => {}
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                    return Err(DiskError::OtherFileSystem {
                        from: from.into(),
                        into: into.parent().unwrap_or(into).into(),
                    });
                }
                Err(e) if has_no_links(&e) => {
                    return Err(DiskError::NoLinks {
                        path: into.parent().unwrap_or(into).into(),
                        source: e,
                    });
                }
                Err(e) => return Err(DiskError::file("share", &theirs)(e)),
            }
        }
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether that path leads to this very file.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(one), Ok(other)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Removes the files of a layer from a directory. Where nobody else has them the ciphertext is
/// punched out first: its space is free at once, and nothing of it is left for whoever still has the
/// file open.
///
/// # Errors
/// [`DiskError::File`]. Files that are gone already are none.
pub(crate) fn remove(directory: &Path, layer: Uuid) -> Result<(), DiskError> {
    let data = directory.join(format!("{layer}.data"));
    punch_out(&data);
    for path in [data, directory.join(format!("{layer}.map"))] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(DiskError::file("remove", &path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Has the new header of a directory name the layers whose files are to go, or were to and are still
/// there. So files that neither header names are never taken for such: they may be those of a header
/// that is newer than the one that was found.
pub(crate) fn note_gone(directory: &Path, old: &HeaderPayload, new: &mut HeaderPayload) {
    let is_there = |layer: &Uuid| {
        let file = |extension: &str| directory.join(format!("{layer}.{extension}"));
        [file("data"), file("map")]
            .iter()
            .any(|file| file.symlink_metadata().is_ok())
    };
    let dropped = old.layers.iter().map(|layer| layer.id);
    let noted = old.gone.iter().copied().filter(is_there);
    let mut gone: Vec<_> = noted
        .chain(dropped)
        .filter(|id| new.layer(*id).is_none())
        .collect();
    // The oldest ones are only told, and not removed, by a check.
    gone.drain(..gone.len().saturating_sub(MAX_GONE));
    new.gone = gone;
}

/// How many names the file of a layer has, as its server says. A client of NFS, or of a file system in user space,
/// believes for a while what it was told, and another host may have made a disk of the layer meanwhile.
///
/// # Errors
/// What the system said.
pub(crate) fn names_of(path: &Path) -> io::Result<u32> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    Ok(statx(CWD, path, flags, StatxFlags::NLINK)?.stx_nlink)
}

/// Without its wrapped DEK the ciphertext is worthless already, so a failure is no error.
fn punch_out(data: &Path) {
    let punched = OpenOptions::new().write(true).open(data).and_then(|file| {
        let metadata = file.metadata()?;
        if names_of(data)? > 1 || metadata.len() == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&file, mode, 0, metadata.len())?)
    });
    match punched {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::info!("the ciphertext in {} is only unlinked: {e}", data.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphertext_goes_with_its_last_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let layer = Uuid::from_u128(7);
        let name = |extension: &str| format!("{layer}.{extension}");
        for directory in [&a, &b] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(a.join(name("data")), [1; 8192]).unwrap();
        fs::write(a.join(name("map")), [2; 4096]).unwrap();
        for extension in ["data", "map"] {
            fs::hard_link(a.join(name(extension)), b.join(name(extension))).unwrap();
        }
        let open = File::open(b.join(name("data"))).unwrap();
        assert_eq!(names_of(&a.join(name("data"))).unwrap(), 2);
        remove(&a, layer).unwrap();
        assert_eq!(names_of(&b.join(name("data"))).unwrap(), 1);
        assert_eq!(fs::read(b.join(name("data"))).unwrap(), [1; 8192]);
        assert!(!a.join(name("map")).exists());
        remove(&b, layer).unwrap();
        remove(&b, layer).unwrap();
        let mut left = [9; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&open, &mut left, 0).unwrap();
        assert_eq!(left, [0; 8192]);
    }
}
