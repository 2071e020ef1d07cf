//! The files of a layer: creating, growing and checking them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::store::ReadAt;
use keys::units::BLOCK_SIZE;

use super::format::{self, HEADER_LEN, SECTOR_LEN};
use super::{FailedSync, Geometry, VolumeError};

/// What a sector of a map says.
pub type SectorStates<'a> = Result<Option<&'a [u8; format::STATES_LEN]>, VolumeError>;

/// Where a layer's files are.
#[derive(Debug, Clone)]
pub struct LayerPaths {
    /// The ciphertext.
    pub data: PathBuf,
    /// The block map.
    pub map: PathBuf,
}

/// Makes the files of an empty layer and syncs them. Existing files are refused, not overwritten.
///
/// # Errors
/// [`VolumeError::Size`] or [`VolumeError::File`]. What was made before the failure is left to the
/// caller, who made the directory for it.
pub fn create_layer(paths: &LayerPaths, geometry: &Geometry) -> Result<(), VolumeError> {
    geometry.check()?;
    let make = |path: &Path, len: u64, start: &[u8]| {
        let fail = |what| {
            move |source| VolumeError::File {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail("create"))?;
        file.write_all(start).map_err(fail("write"))?;
        set_length(&file, path, len)?;
        file.sync_all().map_err(fail("sync"))
    };
    make(&paths.data, geometry.data_len(), &[])?;
    make(
        &paths.map,
        format::file_len(geometry.blocks()),
        &format::encode_header(geometry),
    )
}

/// Makes the files of a layer long enough for `size` bytes and syncs them. What is new of them is a
/// hole, and inherited. Files that are longer already are left so: that is what a resize leaves that
/// was interrupted before the disk's header said the new size.
///
/// # Errors
/// [`VolumeError::Size`], [`VolumeError::Shrink`], [`VolumeError::File`], or [`VolumeError::Sync`]; the
/// files serve the old size as before then.
pub fn grow_layer(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    grow_data(paths, geometry, size)?;
    grow_map(paths, geometry, size)
}

/// The first half of [`grow_layer`].
fn grow_data(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    let grown = geometry.grown(size)?;
    lengthen(FailedSync::Data, &paths.data, grown.data_len())
}

/// The second half.
fn grow_map(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    let grown = geometry.grown(size)?;
    let len = format::file_len(grown.blocks());
    lengthen(FailedSync::Map, &paths.map, len)
}

fn lengthen(which: FailedSync, path: &Path, len: u64) -> Result<(), VolumeError> {
    let fail = |what| {
        move |source| VolumeError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(fail("open"))?;
    // Also when it is that long already: a former try may have set the length and failed to sync it, after
    // which only an inode that changes again is written again.
    if file.metadata().map_err(fail("examine"))?.len() <= len {
        set_length(&file, path, len)?;
    }
    file.sync_all().map_err(VolumeError::sync(which, path))
}

/// Makes a file `len` bytes long. What is new of it is a hole.
///
/// # Errors
/// [`VolumeError::TooLong`] when its file system has no such files, which says how long they can be;
/// else [`VolumeError::File`].
pub fn set_length(file: &File, path: &Path, len: u64) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::File {
        what: "set the length of",
        path: path.to_owned(),
        source,
    };
    match file.set_len(len) {
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            let before = file.metadata().map_err(fail)?.len();
            let most = longest(file, before, len);
            file.set_len(before).map_err(fail)?;
            Err(VolumeError::TooLong {
                path: path.to_owned(),
                len,
                most,
            })
        }
        result => result.map_err(fail),
    }
}

/// How long a file can be made that cannot have `too_long` bytes, in whole blocks. No file system tells,
/// so it is tried, by nothing but holes.
fn longest(file: &File, now: u64, too_long: u64) -> u64 {
    let (mut most, mut less_than) = (now / BLOCK_SIZE, too_long.div_ceil(BLOCK_SIZE));
    while most + 1 < less_than {
        let middle = most + (less_than - most) / 2;
        match file.set_len(middle * BLOCK_SIZE) {
            Ok(()) => most = middle,
            Err(_) => less_than = middle,
        }
    }
    most * BLOCK_SIZE
}

/// Gives every sector of the durable map to `each` that is not in a hole of its file: its states, `None` for
/// one that says nothing, or what is wrong with it.
///
/// # Errors
/// What is wrong with the header or the length, and what `each` says.
pub fn examine_map(
    map: &(impl ReadAt + ?Sized),
    geometry: &Geometry,
    mut each: impl FnMut(u64, SectorStates<'_>) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::Io {
        what: "read the map file",
        source,
    };
    check_map_file(map, geometry)?;
    let sectors = format::sectors(geometry.blocks());
    let mut chunk = vec![0; 2048 * SECTOR_LEN];
    let mut sector = 0;
    while sector < sectors {
        let from = format::sector_offset(sector);
        let Some(data) = map.next_data(from).map_err(fail)? else {
            break;
        };
        sector += (data.max(from) - from) / SECTOR_LEN as u64;
        let count = sectors.saturating_sub(sector).min(2048);
        let bytes = &mut chunk[..count as usize * SECTOR_LEN];
        map.read_exact_at(bytes, format::sector_offset(sector))
            .map_err(fail)?;
        for raw in bytes.as_chunks::<SECTOR_LEN>().0 {
            each(sector, format::decode_sector(sector, raw))?;
            sector += 1;
        }
    }
    Ok(())
}

/// Checks the header and the length of a map file.
///
/// # Errors
/// What is wrong with it.
pub fn check_map_file(
    map: &(impl ReadAt + ?Sized),
    geometry: &Geometry,
) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::Io {
        what: "read the map file",
        source,
    };
    let (expected, actual) = (
        format::file_len(geometry.blocks()),
        map.size().map_err(fail)?,
    );
    if actual < HEADER_LEN as u64 {
        return Err(VolumeError::MapLength { expected, actual });
    }
    let mut header = [0; HEADER_LEN];
    map.read_exact_at(&mut header, 0).map_err(fail)?;
    format::check_header(&header, geometry)?;
    if actual < expected {
        return Err(VolumeError::MapLength { expected, actual });
    }
    Ok(())
}

/// Checks that the data file is as long as the disk. It is longer after a resize that was interrupted.
///
/// # Errors
/// [`VolumeError::DataLength`].
pub fn check_data_file(data: &File, geometry: &Geometry) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::Io {
        what: "read the length of the data file",
        source,
    };
    let (expected, actual) = (geometry.data_len(), data.size().map_err(fail)?);
    if actual >= expected {
        Ok(())
    } else {
        Err(VolumeError::DataLength { expected, actual })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::{LayerMap, Volume};
    use super::*;
    use xts::DataUnit;

    const OLD: u64 = 5 * 4096 + 512;

    fn layer(dir: &Path) -> (LayerPaths, Geometry) {
        let paths = LayerPaths {
            data: dir.join("data"),
            map: dir.join("map"),
        };
        let geometry = Geometry {
            disk: Uuid::from_u128(1),
            layer: Uuid::from_u128(2),
            size: OLD,
            data_unit: DataUnit::B512,
        };
        create_layer(&paths, &geometry).unwrap();
        (paths, geometry)
    }

    #[test]
    fn files_that_were_made_longer_serve_the_old_size_and_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, geometry) = layer(dir.path());
        let grown = geometry.grown(1 << 30).unwrap();
        let opens = |geometry: &Geometry| {
            let (data, map) = (File::open(&paths.data)?, File::open(&paths.map)?);
            let opened = check_data_file(&data, geometry)
                .and_then(|()| Volume::open_private(LayerMap::new(geometry.clone(), map), vec![]));
            Ok::<_, io::Error>(opened.is_ok())
        };
        assert!(opens(&geometry).unwrap() && !opens(&grown).unwrap());
        grow_data(&paths, &geometry, grown.size).unwrap();
        assert!(opens(&geometry).unwrap() && !opens(&grown).unwrap());
        grow_map(&paths, &geometry, grown.size).unwrap();
        assert!(opens(&geometry).unwrap() && opens(&grown).unwrap());
        // Again, as after a crash.
        grow_layer(&paths, &geometry, grown.size).unwrap();
        assert!(opens(&grown).unwrap());
        let shrunk = grow_layer(&paths, &grown, OLD);
        assert!(matches!(shrunk, Err(VolumeError::Shrink { .. })));
        assert!(opens(&grown).unwrap());
    }
}
