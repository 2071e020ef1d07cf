//! A layer on disk, and the volume that is made of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use crate::cipher::DataUnit;
use crate::store::ReadAt;
use crate::units::{BLOCK_SIZE, SECTOR_SIZE};

use super::VolumeError;
use super::format::{self, HEADER_LEN, SECTOR_LEN};
use super::locks::BlockLocks;
use super::map::{BlockMap, held_runs};
use super::mapped::MapWords;
use super::runtime::RuntimeMap;

/// The largest disk: 64 TiB, whose map takes 4 GiB of memory.
const MOST_BYTES: u64 = 1 << 46;

/// What a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The disk it belongs to.
    pub disk: Uuid,
    /// The layer.
    pub layer: Uuid,
    /// Bytes that the guest sees, a multiple of 512.
    pub size: u64,
    /// Bytes encrypted under one tweak.
    pub data_unit: DataUnit,
}

impl Geometry {
    /// Blocks of the disk, the last one perhaps only partly used.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE)
    }

    /// Bytes of the data file: the disk's, rounded up to whole blocks.
    pub fn data_len(&self) -> u64 {
        self.blocks() * BLOCK_SIZE
    }

    /// Checks the size.
    ///
    /// # Errors
    /// [`VolumeError::Size`].
    pub fn check(&self) -> Result<(), VolumeError> {
        let size = self.size;
        let refuse = |why| Err(VolumeError::Size { size, why });
        match size {
            0 => refuse("it must not be empty"),
            s if !s.is_multiple_of(SECTOR_SIZE) => refuse("it must be a multiple of 512"),
            s if s > MOST_BYTES => refuse("64 TiB is the most"),
            _ => Ok(()),
        }
    }
}

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
        file.set_len(len).map_err(fail("set the length of"))?;
        file.sync_all().map_err(fail("sync"))
    };
    make(&paths.data, geometry.data_len(), &[])?;
    make(
        &paths.map,
        format::file_len(geometry.blocks()),
        &format::encode_header(geometry),
    )
}

/// The disk as all its queue threads share it: which blocks have what, and which are being worked
/// on.
pub struct Volume {
    geometry: Geometry,
    map: BlockMap,
    locks: BlockLocks,
    flushing: AtomicBool,
    flushes: AtomicU64,
    lost: AtomicBool,
    map_synced: AtomicBool,
}

impl Volume {
    /// Opens a layer whose current map lives in this process alone: for work whose loss with the
    /// process does no harm, as an import, or that writes nothing.
    ///
    /// # Errors
    /// A [`VolumeError`] that says what is wrong with the map.
    pub fn open_private(map: &impl ReadAt, geometry: Geometry) -> Result<Self, VolumeError> {
        let words = MapWords::private(BlockMap::words_for(geometry.blocks()));
        let current = BlockMap::new(words, geometry.blocks());
        each_durable_sector(map, &geometry, |sector, states| {
            if let Some(states) = states {
                current.load_sector(sector, states);
            }
        })?;
        Ok(Self::new(geometry, current))
    }

    /// Opens a layer whose current map is `runtime`, as an attached disk has it. When the map was
    /// left behind by a process that died, it has what that process had not flushed.
    ///
    /// # Errors
    /// A [`VolumeError`] that says what is wrong with the map.
    pub fn open_runtime(
        map: &impl ReadAt,
        geometry: Geometry,
        runtime: &RuntimeMap,
    ) -> Result<Self, VolumeError> {
        let current = BlockMap::new(runtime.words(&geometry)?, geometry.blocks());
        let recover = runtime.is_loaded(&geometry)?;
        each_durable_sector(map, &geometry, |sector, states| match (recover, states) {
            (false, Some(states)) => current.load_sector(sector, states),
            (true, states) => {
                let durable = states.copied().unwrap_or([0; format::STATES_LEN]);
                if current.sector_states(sector) != durable {
                    current.mark_dirty(sector);
                }
            }
            (false, None) => {}
        })?;
        runtime.set_loaded(&geometry)?;
        Ok(Self::new(geometry, current))
    }

    fn new(geometry: Geometry, map: BlockMap) -> Self {
        // Space that a former process had not given back yet is given back by the first flush.
        for sector in 0..format::sectors(geometry.blocks()) {
            held_runs(sector, &map.sector_states(sector), |_| {
                map.mark_dirty(sector)
            });
        }
        Self {
            geometry,
            map,
            locks: BlockLocks::default(),
            flushing: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            map_synced: AtomicBool::new(false),
        }
    }

    /// What the disk is.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The current map.
    pub fn map(&self) -> &BlockMap {
        &self.map
    }

    /// The marks of blocks being worked on.
    pub fn locks(&self) -> &BlockLocks {
        &self.locks
    }

    /// Starts a flush, if none is under way in any queue.
    pub fn try_begin_flush(&self) -> bool {
        let begun = !self.flushing.swap(true, Ordering::Acquire);
        if begun {
            self.flushes.fetch_add(1, Ordering::AcqRel);
        }
        begun
    }

    /// Flushes begun since the disk was opened. While the number stays the same, the durable map
    /// says nothing else of a block than what the last flush wrote.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    /// Ends the flush that [`Volume::try_begin_flush`] started.
    pub fn end_flush(&self) {
        self.flushing.store(false, Ordering::Release);
    }

    /// Whether all of the map file is known to be durable. At first it is not: what was read from
    /// it may be a write of a process that died before its sync, which only the page cache has.
    pub fn is_map_synced(&self) -> bool {
        self.map_synced.load(Ordering::Acquire)
    }

    /// Notes that the map file was synced.
    pub fn set_map_synced(&self) {
        self.map_synced.store(true, Ordering::Release);
    }

    /// Notes that a sync failed. The kernel may have dropped the writes that it could not sync, and
    /// the next sync would succeed without them: no flush may succeed any more.
    pub fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether a sync has failed since the disk was opened.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// Checks header and length of the durable map and gives every sector of it to `each`.
fn each_durable_sector(
    map: &impl ReadAt,
    geometry: &Geometry,
    mut each: impl FnMut(u64, Option<&[u8; format::STATES_LEN]>),
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
    if actual != expected {
        return Err(VolumeError::MapLength { expected, actual });
    }
    let sectors = format::sectors(geometry.blocks());
    let mut chunk = vec![0; 2048 * SECTOR_LEN];
    let mut sector = 0;
    while sector < sectors {
        let count = (sectors - sector).min(2048);
        let bytes = &mut chunk[..count as usize * SECTOR_LEN];
        map.read_exact_at(bytes, format::sector_offset(sector))
            .map_err(fail)?;
        for raw in bytes.as_chunks::<SECTOR_LEN>().0 {
            each(sector, format::decode_sector(sector, raw)?);
            sector += 1;
        }
    }
    Ok(())
}

/// Checks that the data file has the disk's length.
///
/// # Errors
/// [`VolumeError::DataLength`].
pub fn check_data_file(data: &File, geometry: &Geometry) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::Io {
        what: "read the length of the data file",
        source,
    };
    let (expected, actual) = (geometry.data_len(), data.size().map_err(fail)?);
    if actual == expected {
        Ok(())
    } else {
        Err(VolumeError::DataLength { expected, actual })
    }
}
