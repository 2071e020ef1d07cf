//! A layer on disk, and the volume that is made of it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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

    /// The same layer with another size, which is not smaller.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::Shrink`].
    pub fn grown(&self, size: u64) -> Result<Self, VolumeError> {
        let grown = Self {
            size,
            ..self.clone()
        };
        grown.check()?;
        if size < self.size {
            return Err(VolumeError::Shrink {
                from: self.size,
                to: size,
            });
        }
        Ok(grown)
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

/// Makes the files of a layer long enough for `size` bytes and syncs them. What is new of them is a
/// hole, and inherited. Files that are longer already are left so: that is what a resize leaves that
/// was interrupted before the disk's header said the new size.
///
/// # Errors
/// [`VolumeError::Size`], [`VolumeError::Shrink`], or [`VolumeError::File`]; the files serve the old
/// size as before then.
pub fn grow_layer(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    grow_data(paths, geometry, size)?;
    grow_map(paths, geometry, size)
}

/// The first half of [`grow_layer`].
fn grow_data(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    let grown = geometry.grown(size)?;
    lengthen(&paths.data, grown.data_len())
}

/// The second half.
fn grow_map(paths: &LayerPaths, geometry: &Geometry, size: u64) -> Result<(), VolumeError> {
    let grown = geometry.grown(size)?;
    lengthen(&paths.map, format::file_len(grown.blocks()))
}

fn lengthen(path: &Path, len: u64) -> Result<(), VolumeError> {
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
    if file.metadata().map_err(fail("examine"))?.len() < len {
        file.set_len(len).map_err(fail("set the length of"))?;
    }
    file.sync_all().map_err(fail("sync"))
}

/// The disk as all its queue threads share it: which blocks have what, and which are being worked
/// on.
pub struct Volume {
    geometry: Geometry,
    map: BlockMap,
    state: Arc<State>,
}

/// What stays the same when the disk grows.
#[derive(Default)]
struct State {
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
            state: Arc::default(),
        }
    }

    /// The same disk with `size` bytes, whose runtime map and files are long enough already. To be
    /// made while no request is under way, and to take the place of this one everywhere at once.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::Shrink`], or [`VolumeError::Io`] when the runtime map
    /// cannot be mapped.
    pub fn grown(&self, size: u64, runtime: &RuntimeMap) -> Result<Self, VolumeError> {
        let geometry = self.geometry.grown(size)?;
        let map = BlockMap::new(runtime.words(&geometry)?, geometry.blocks());
        map.take_over_dirty(&self.map);
        Ok(Self {
            geometry,
            map,
            state: self.state.clone(),
        })
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
        &self.state.locks
    }

    /// Starts a flush, if none is under way in any queue.
    pub fn try_begin_flush(&self) -> bool {
        let begun = !self.state.flushing.swap(true, Ordering::Acquire);
        if begun {
            self.state.flushes.fetch_add(1, Ordering::AcqRel);
        }
        begun
    }

    /// Flushes begun since the disk was opened. While the number stays the same, the durable map
    /// says nothing else of a block than what the last flush wrote.
    pub fn flushes(&self) -> u64 {
        self.state.flushes.load(Ordering::Acquire)
    }

    /// Ends the flush that [`Volume::try_begin_flush`] started.
    pub fn end_flush(&self) {
        self.state.flushing.store(false, Ordering::Release);
    }

    /// Whether all of the map file is known to be durable. At first it is not: what was read from
    /// it may be a write of a process that died before its sync, which only the page cache has.
    pub fn is_map_synced(&self) -> bool {
        self.state.map_synced.load(Ordering::Acquire)
    }

    /// Notes that the map file was synced.
    pub fn set_map_synced(&self) {
        self.state.map_synced.store(true, Ordering::Release);
    }

    /// Notes that a sync failed. The kernel may have dropped the writes that it could not sync, and
    /// the next sync would succeed without them: no flush may succeed any more.
    pub fn set_lost(&self) {
        self.state.lost.store(true, Ordering::Release);
    }

    /// Whether a sync has failed since the disk was opened.
    pub fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Acquire)
    }
}

/// Checks header and length of the durable map and gives every sector of it to `each`.
fn each_durable_sector(
    map: &impl ReadAt,
    geometry: &Geometry,
    mut each: impl FnMut(u64, Option<&[u8; format::STATES_LEN]>),
) -> Result<(), VolumeError> {
    examine_map(map, geometry, |sector, states| {
        each(sector, states?);
        Ok(())
    })
}

/// As opening a volume does, gives every sector of the durable map to `each`: its states, `None` for
/// one that was never written, or what is wrong with it.
///
/// # Errors
/// What is wrong with the header or the length, and what `each` says.
pub fn examine_map(
    map: &impl ReadAt,
    geometry: &Geometry,
    mut each: impl FnMut(u64, SectorStates<'_>) -> Result<(), VolumeError>,
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
    let sectors = format::sectors(geometry.blocks());
    let mut chunk = vec![0; 2048 * SECTOR_LEN];
    let mut sector = 0;
    while sector < sectors {
        let count = (sectors - sector).min(2048);
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
    use super::*;

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
                .and_then(|()| Volume::open_private(&map, geometry.clone()));
            Ok::<_, std::io::Error>(opened.is_ok())
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

    #[test]
    fn a_volume_that_grows_keeps_what_it_had_not_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, geometry) = layer(dir.path());
        let runtime_path = PathBuf::from(format!("/dev/shm/sealdisk-grown-{}", Uuid::new_v4()));
        let (before, now) = (Uuid::new_v4(), Uuid::new_v4());
        let (runtime, _) = RuntimeMap::open(&runtime_path, &geometry, before, now).unwrap();
        let map = File::open(&paths.map).unwrap();
        let volume = Volume::open_runtime(&map, geometry.clone(), &runtime).unwrap();
        volume.map().set_data(2..4);
        assert!(volume.try_begin_flush());
        let size = 9000 * 4096;
        assert!(
            volume.grown(size, &runtime).is_err(),
            "the map is too short"
        );
        let grown = geometry.grown(size).unwrap();

        // A map of the old size counts after the header has the new one, and is made longer then.
        drop(
            RuntimeMap::find(&runtime_path, &grown, now)
                .unwrap()
                .unwrap(),
        );
        assert!(
            RuntimeMap::find(&runtime_path, &geometry, now)
                .unwrap()
                .is_none()
        );
        let volume = volume.grown(size, &runtime).unwrap();
        assert!(!volume.try_begin_flush(), "one is under way");
        assert_eq!((volume.map().blocks(), volume.flushes()), (9000, 1));
        assert_eq!(volume.map().get(3), super::super::BlockState::Data);
        assert_eq!(volume.map().run(4, 9000).blocks, 8996);
        volume.map().set_data(8999..9000);
        assert_eq!(volume.map().take_dirty(), [0, 4]);
        runtime.grow(&grown).unwrap();
        assert!(
            RuntimeMap::find(&runtime_path, &grown, now)
                .unwrap()
                .is_some()
        );
        std::fs::remove_file(&runtime_path).unwrap();
    }
}
