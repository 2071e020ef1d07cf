//! What stands in the place of a disk while another attach has it.
//!
//! Queues are made on an extent, and keep one. This one has a block of a disk that is nobody's, in memory: no ring runs
//! on it, so nothing is read from it or written to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use uuid::Uuid;

use keys::units::BLOCK_SIZE;
use protocol::sealed_memory;
use volume::store::{LayerFile, StackFiles};
use volume::{Geometry, LayerMap, RuntimeMap, Volume, format};
use xts::DataUnit;

use crate::DataplaneError;
use crate::request::Disk;

use super::shared::Extent;

/// Bytes of a runtime map that has no more than a cache mode.
const STAMP_PAGE: u64 = 4096;

/// Its files. They are made before the process is confined, which can make none later.
pub(crate) struct VacantFiles {
    data: File,
    map: File,
    runtime: File,
}

impl VacantFiles {
    /// # Errors
    /// [`DataplaneError::Io`] when the kernel has no memory for them.
    pub(crate) fn make() -> Result<Self, DataplaneError> {
        let made = || -> io::Result<Self> {
            Ok(Self {
                data: sealed_memory("sealdisk-no-data", BLOCK_SIZE)?,
                map: map_of(&geometry())?,
                runtime: sealed_memory("sealdisk-no-map", STAMP_PAGE)?,
            })
        };
        made().map_err(|source| DataplaneError::Io {
            what: "make memory in the place of a disk",
            source,
        })
    }
}

impl Extent {
    /// An extent without a disk, for a device that is that of `disk`. What the driver chooses meanwhile is kept in its
    /// runtime map.
    ///
    /// # Errors
    /// [`DataplaneError::Volume`], [`DataplaneError::Store`].
    pub(crate) fn vacant(files: VacantFiles, disk: Disk) -> Result<Arc<Self>, DataplaneError> {
        let VacantFiles { data, map, runtime } = files;
        let map_again = map.try_clone().map_err(|source| DataplaneError::Io {
            what: "duplicate a file descriptor",
            source,
        })?;
        let top = LayerMap::new(geometry(), map_again);
        let (data, map) = (LayerFile::from_file(data)?, LayerFile::from_file(map)?);
        Ok(Arc::new(Self {
            volume: Arc::new(Volume::open_private(top, Vec::new())?),
            files: Arc::new(StackFiles::new(data, map, Vec::new())),
            runtime: RuntimeMap::from_file(runtime),
            disk,
        }))
    }
}

fn geometry() -> Geometry {
    Geometry {
        disk: Uuid::nil(),
        layer: Uuid::nil(),
        size: BLOCK_SIZE,
        data_unit: DataUnit::B4096,
    }
}

/// An empty map.
fn map_of(geometry: &Geometry) -> io::Result<File> {
    let map = sealed_memory("sealdisk-no-map", format::file_len(geometry.blocks()))?;
    map.write_all_at(&format::encode_header(geometry), 0)?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::units::Sector;
    use volume::CacheMode;

    #[test]
    fn there_is_nothing_but_what_a_driver_chooses() {
        let disk = Disk {
            capacity: Sector(9),
            block_sectors: 1,
            read_only: false,
            discard: true,
            serial: [0; 20],
            most_zero_sectors: 1,
        };
        let vacant = Extent::vacant(VacantFiles::make().unwrap(), disk).unwrap();
        assert_eq!(vacant.runtime.cache().unwrap(), None);
        vacant.runtime.set_cache(CacheMode::WriteThrough).unwrap();
        let chosen = vacant.runtime.cache().unwrap();
        assert_eq!(chosen, Some(CacheMode::WriteThrough));
        assert!(vacant.layers().eq([Uuid::nil()]));
        assert_eq!(vacant.volume.map().next_chunk(1).unwrap(), None);
    }
}
