//! The map of a frozen layer is read where its file lies in memory, and says what a copy would say.
//!
//! How much may be locked is known for the whole process, so there is one test here.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use keys::units::BLOCK_SIZE;
use uuid::Uuid;
use volume::format::{self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, SECTORS_PER_CHUNK, STATES_LEN};
use volume::{
    BlockState, Content, Geometry, LayerMap, LayerPaths, LowerLayer, Run, VolumeError,
    create_layer, share_maps_up_to,
};
use xts::DataUnit;

const CHUNKS: u64 = 3;
const BLOCKS: u64 = CHUNKS * BLOCKS_PER_CHUNK - 20 * BLOCKS_PER_SECTOR - 5;
/// Bytes of the map of a chunk.
const CHUNK: u64 = SECTORS_PER_CHUNK * 512;
/// Four blocks of data.
const DATA: u8 = 0b0101_0101;

fn geometry() -> Geometry {
    Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(2),
        size: BLOCKS * BLOCK_SIZE,
        data_unit: DataUnit::B4096,
    }
}

/// The map file of a layer.
struct MapFile {
    file: File,
}

impl MapFile {
    fn new(dir: &Path) -> Self {
        let paths = LayerPaths {
            data: dir.join("data"),
            map: dir.join("map"),
        };
        create_layer(&paths, &geometry()).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&paths.map);
        Self {
            file: file.unwrap(),
        }
    }

    fn write(&self, sector: u64, states: &[u8; STATES_LEN]) {
        let raw = format::encode_sector(sector, states);
        let at = format::sector_offset(sector);
        self.file.write_all_at(&raw, at).unwrap();
    }

    fn open(&self) -> Arc<LowerLayer> {
        let file = self.file.try_clone().unwrap();
        LowerLayer::open(LayerMap::new(geometry(), file)).unwrap()
    }
}

/// Bytes that this process has locked.
fn locked() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

#[test]
fn a_frozen_map_is_shared_as_far_as_it_may_be_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let map = MapFile::new(dir.path());
    // The second chunk says nothing, the first and the last have data but for some blocks.
    let last = (CHUNKS - 1) * SECTORS_PER_CHUNK;
    let mut mixed = [DATA; STATES_LEN];
    mixed[3] = BlockState::Zero as u8;
    map.write(1, &mixed);
    map.write(last, &[DATA; STATES_LEN]);

    let says = |layer: &LowerLayer| {
        layer.map().load(0..layer.map().blocks()).unwrap();
        let states = (0..BLOCKS).map(|block| layer.map().get(block));
        let sectors = (0..format::sectors(BLOCKS)).map(|sector| layer.map().sector_states(sector));
        let data = layer.map().data_blocks();
        (
            states.collect::<Vec<_>>(),
            sectors.collect::<Vec<_>>(),
            data,
        )
    };
    let before = locked();
    let copied = says(&map.open());
    assert_eq!(locked(), before, "nobody has said that it may be shared");
    assert_eq!(copied.2, 2 * BLOCKS_PER_SECTOR - 4);

    share_maps_up_to(2 * CHUNK);
    let shared = map.open();
    assert!(says(&shared) == copied);
    // The last chunk has the sectors that the disk has.
    let of_last = (format::sectors(BLOCKS) - last) * 512;
    assert_eq!(locked() - before, CHUNK + of_last.next_multiple_of(4096));
    // There is no room for it once more.
    let other = map.open();
    assert!(says(&other) == copied);
    assert_eq!(locked() - before, CHUNK + of_last.next_multiple_of(4096));

    // A merge adds blocks to it: who shares it sees them, who does not has what was there.
    map.write(0, &[DATA; STATES_LEN]);
    let run = |layer: &LowerLayer| layer.map().run(0, BLOCKS_PER_SECTOR);
    let all = |what| Run {
        what,
        blocks: BLOCKS_PER_SECTOR,
    };
    assert_eq!(run(&shared), all(Content::Data));
    assert_eq!(run(&other), all(Content::Inherited));

    drop((shared, other));
    assert_eq!(locked(), before);
    // What is damaged is refused, and nothing of it is kept.
    let at = format::sector_offset(1) + 7;
    map.file.write_all_at(&[0xff], at).unwrap();
    let damaged = map.open();
    let error = damaged.map().ensure(0..1).unwrap_err();
    assert!(
        matches!(error, VolumeError::MapDamaged { sector: 1 }),
        "{error}"
    );
    assert_eq!(locked(), before);
    let other_chunk = BLOCKS - 1..BLOCKS;
    assert!(damaged.map().ensure(other_chunk).unwrap());
}
