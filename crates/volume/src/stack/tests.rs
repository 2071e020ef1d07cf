//! What a stack of layers says of blocks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use super::super::format::{BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR};
use super::super::{BlockState, Found, LayerPaths, create_layer, format};
use super::*;

fn layer(dir: &Path, number: u128, size: u64) -> LayerMap {
    let paths = LayerPaths {
        data: dir.join(format!("{number}.data")),
        map: dir.join(format!("{number}.map")),
    };
    let geometry = Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(number),
        size,
        data_unit: DataUnit::B512,
    };
    create_layer(&paths, &geometry).unwrap();
    LayerMap::new(geometry, File::open(&paths.map).unwrap())
}

fn lower(dir: &Path, number: u128, blocks: u64) -> Arc<LowerLayer> {
    let layer = LowerLayer::open(layer(dir, number, blocks * 4096)).unwrap();
    layer.map.load(0..layer.map.blocks()).unwrap();
    layer
}

#[test]
fn the_topmost_layer_that_has_something_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, bottom) = (lower(dir.path(), 2, 60), lower(dir.path(), 3, 50));
    bottom.map.set_data(0..50);
    upper.map.hide(10..20);
    upper.map.set_data(30..40);
    upper.map.set_data(55..56);
    let top = layer(dir.path(), 1, 70 * 4096);
    let volume = Volume::open_private(top, vec![upper, bottom]).unwrap();
    volume.map().load(0..volume.map().blocks()).unwrap();
    volume.map().set_data(5..6);
    volume.map().hide(35..37);
    let (layer, zeros) = (|i| Source::Layer(LayerIndex(i)), Source::Zeros);
    let expected = [
        (0, layer(2), 5),
        (5, layer(0), 1),
        (6, layer(2), 4),
        (10, zeros, 10),
        (20, layer(2), 10),
        (30, layer(1), 5),
        (35, zeros, 2),
        (37, layer(1), 3),
        (40, layer(2), 10),
        (50, zeros, 5),
        (55, layer(1), 1),
        (56, zeros, 4),
        (60, zeros, 10),
    ];
    for (first, what, blocks) in expected {
        let run = volume.lookup(first, 1000).unwrap();
        assert_eq!(run, Some(Run { what, blocks }), "from block {first}");
    }
    let missing = |drop| volume.count_missing(0..70, drop, &|| true).unwrap();
    assert_eq!(missing(2), 5 + 4 + 10 + 5 + 3 + 10 + 1);
    assert_eq!(missing(1), 5 + 3 + 1);
    assert!(!volume.has_all_of(1).unwrap() && !volume.has_all_of(2).unwrap());
    // Block 5 and two that are hidden were written since.
    assert_eq!(volume.copy_up_progress(2, &|| true).unwrap(), (3, 41));
    let missing_of = |first, drop| volume.missing(first, 1000, drop).unwrap().unwrap().what;
    assert_eq!(
        missing_of(12, 1),
        Missing::Zeros,
        "the bottom has data there"
    );
    assert_eq!(
        missing_of(12, 2),
        Missing::Nothing,
        "nothing is left beneath"
    );
    assert_eq!(missing_of(20, 1), Missing::Nothing);
    assert_eq!(missing_of(35, 2), Missing::Nothing);
    assert_eq!(missing_of(20, 2), Missing::Content(LayerIndex(2)));
}

#[test]
fn stacks_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bottom = lower(dir.path(), 2, 9);
    let opened = Volume::open_private(layer(dir.path(), 1, 8 * 4096), vec![bottom.clone()]);
    assert!(matches!(opened, Err(VolumeError::LowerIsLarger { .. })));
    let tall = vec![bottom; MAX_LAYERS];
    let opened = Volume::open_private(layer(dir.path(), 3, 9 * 4096), tall);
    assert!(matches!(opened, Err(VolumeError::TooManyLayers { .. })));
}

#[test]
fn a_volume_that_grows_keeps_what_it_had_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let top = layer(dir.path(), 2, 5 * 4096 + 512);
    let geometry = top.geometry.clone();
    let runtime_path = PathBuf::from(format!("/dev/shm/sealdisk-grown-{}", Uuid::new_v4()));
    let (before, now) = (Uuid::new_v4(), Uuid::new_v4());
    let (runtime, _) = RuntimeMap::open(&runtime_path, &geometry, before, now).unwrap();
    let volume = Volume::open_runtime(top, vec![], &runtime).unwrap();
    assert!(volume.map().ensure(0..6).unwrap());
    volume.map().set_data(2..4);
    let _turn = volume.flushes().try_begin().unwrap();
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
    assert!(volume.flushes().try_begin().is_none(), "one is under way");
    assert_eq!((volume.map().blocks(), volume.flushes().begun()), (9000, 1));
    assert_eq!(volume.map().get(3), BlockState::Data);
    assert_eq!(volume.map().run(4, 9000).blocks, 8996);
    volume.map().set_data(8999..9000);
    let mut dirty = Vec::new();
    volume.map().take_dirty(&mut dirty, 0);
    assert_eq!(dirty, [0, 4]);
    runtime.grow(&grown).unwrap();
    assert!(
        RuntimeMap::find(&runtime_path, &grown, now)
            .unwrap()
            .is_some()
    );
    std::fs::remove_file(&runtime_path).unwrap();
}

/// A map file that counts how often it is read.
struct Counted {
    file: File,
    reads: Arc<AtomicU64>,
}

impl ReadAt for Counted {
    fn size(&self) -> std::io::Result<u64> {
        self.file.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        ReadAt::read_exact_at(&self.file, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<u64>> {
        self.file.next_data(offset)
    }
}

/// A runtime map that is removed in the end.
struct Runtime {
    path: PathBuf,
    map: RuntimeMap,
}

impl Runtime {
    fn new(geometry: &Geometry) -> Self {
        let path = PathBuf::from(format!("/dev/shm/sealdisk-stack-{}", Uuid::new_v4()));
        let ids = (Uuid::new_v4(), Uuid::new_v4());
        let (map, _) = RuntimeMap::open(&path, geometry, ids.0, ids.1).unwrap();
        Self { path, map }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

#[test]
fn opening_reads_headers_only_and_going_through_a_map_passes_over_holes() {
    const SIZE: u64 = 15 << 40;
    let dir = tempfile::tempdir().unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    let counted = |number| {
        let LayerMap { geometry, .. } = layer(dir.path(), number, SIZE);
        let file = File::open(dir.path().join(format!("{number}.map"))).unwrap();
        let reads = reads.clone();
        LayerMap::new(geometry, Counted { file, reads })
    };
    let lower = (2..17).map(|number| LowerLayer::open(counted(number)).unwrap());
    let lower: Vec<_> = lower.collect();
    let top = counted(1);
    let runtime = Runtime::new(&top.geometry);
    let volume = Volume::open_runtime(top, lower, &runtime.map).unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 16, "a header for each layer");

    assert_eq!(volume.copy_up_progress(15, &|| true).unwrap(), (0, 0));
    assert!(volume.has_all_of(15).unwrap());
    assert_eq!(volume.map().next_chunk(0).unwrap(), None);
    let run = volume.map().run_anywhere(5, 1 << 40).unwrap();
    let rest = volume.map().blocks() - 5;
    assert_eq!((run.what, run.blocks), (Content::Inherited, rest));
    assert_eq!(volume.map().next_loaded(0), None);
    volume.write_map_anew().unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 16, "all of it is holes");
    let top = counted(17);
    let examined = examine_map(&*top.file, &top.geometry, |sector, _| panic!("{sector}"));
    examined.unwrap();
    assert_eq!(reads.load(Ordering::Relaxed), 17, "the header");
    volume.lower()[14].map().ensure(7..8).unwrap();
    volume.lower()[14].map().set_data(7..9);
    assert_eq!(volume.copy_up_progress(15, &|| true).unwrap(), (0, 2));
    assert!(!volume.has_all_of(15).unwrap());
    let stopped = volume.copy_up_progress(15, &|| false);
    assert!(matches!(stopped, Err(VolumeError::Stopped)));
}

#[test]
fn what_was_to_be_flushed_is_known_after_a_kill_at_any_step() {
    let dir = tempfile::tempdir().unwrap();
    let top = layer(dir.path(), 1, 3 << 30);
    let runtime = Runtime::new(&top.geometry);
    let open = || Volume::open_runtime(top.clone(), vec![], &runtime.map).unwrap();
    let dirty = |volume: &Volume| {
        let mut sectors = Vec::new();
        volume.map().take_dirty(&mut sectors, 0);
        sectors
    };
    let volume = open();
    let last = volume.map().blocks() - 1;
    let (first, end) = (0, last / BLOCKS_PER_SECTOR);
    volume.map().ensure(0..1).unwrap();
    volume.map().ensure(last..last + 1).unwrap();
    volume.map().set_data(0..3);
    volume.map().set_data(last..last + 1);
    // Killed before a flush, and then while one writes.
    assert_eq!(dirty(&open()), [first, end]);
    let volume = open();
    assert_eq!(dirty(&volume), [first, end]);
    volume.map().set_data(5..6);
    assert_eq!(dirty(&volume), [first], "changed since");
    // One flush ends: nothing is left of it but what changed after it had begun.
    volume.map().end_flush(&[first, end]);
    volume.map().set_data(8..9);
    assert_eq!(dirty(&open()), [first]);
    open().map().end_flush(&[first]);
    let volume = open();
    assert_eq!(dirty(&volume), [first], "nobody said that it was written");
    volume.map().end_flush(&[first]);
    assert_eq!(dirty(&open()), [0u64; 0]);
}

#[test]
fn space_that_a_former_process_held_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let top = layer(dir.path(), 1, 5 << 30);
    let (held, blocks) = (2 * BLOCKS_PER_CHUNK, top.geometry.blocks());
    let sector = held / BLOCKS_PER_SECTOR;
    let mut states = [0; format::STATES_LEN];
    states[0] = BlockState::ZeroHeld as u8;
    let raw = format::encode_sector(sector, &states);
    let mut writable = std::fs::OpenOptions::new();
    let map = writable.write(true).open(dir.path().join("1.map"));
    let map = map.unwrap();
    let at = format::sector_offset(sector);
    std::os::unix::fs::FileExt::write_all_at(&map, &raw, at).unwrap();
    let runtime = Runtime::new(&top.geometry);
    for _ in 0..2 {
        // The second one finds the chunk loaded by the first.
        let volume = Volume::open_runtime(top.clone(), vec![], &runtime.map).unwrap();
        let map = volume.map();
        let turn = volume.flushes().try_begin().unwrap();
        turn.succeed();
        assert_eq!(map.next_held(0, blocks), None);
        let mut chunk = 0;
        while let Some(next) = map.next_chunk(chunk).unwrap() {
            map.find_held(next).unwrap();
            chunk = next + 1;
        }
        assert_eq!(map.next_held(0, blocks), Some(held..held + 1));
    }
}

#[test]
fn a_runtime_map_of_which_it_is_not_known_what_counts_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let top = layer(dir.path(), 1, 3 << 30);
    let path = PathBuf::from(format!("/dev/shm/sealdisk-odd-{}", Uuid::new_v4()));
    let (before, now) = (Uuid::new_v4(), Uuid::new_v4());
    let (runtime, _) = RuntimeMap::open(&path, &top.geometry, before, now).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    let file = file.unwrap();
    // How far the second of three chunks is loaded: not, by a process that died, and what nothing writes.
    for (word, counts) in [
        (0u64, true),
        (1, true),
        (2, true),
        (3, false),
        (1 << 40, false),
    ] {
        std::os::unix::fs::FileExt::write_all_at(&file, &word.to_le_bytes(), 4096 + 8).unwrap();
        let found = RuntimeMap::look(&path, &top.geometry, now).unwrap();
        assert_eq!(matches!(found, Found::Counts(_)), counts, "{word}");
        assert_eq!(matches!(found, Found::Foreign("is damaged")), !counts);
        // Whoever has it open already does not wait for somebody to load that chunk.
        let opened = Volume::open_runtime(top.clone(), vec![], &runtime);
        assert_eq!(opened.is_ok(), counts, "{word}");
        if word < 2 {
            opened
                .unwrap()
                .map()
                .ensure(BLOCKS_PER_CHUNK..BLOCKS_PER_CHUNK + 1)
                .unwrap();
        }
    }
    std::fs::remove_file(&path).unwrap();
}
