//! Copies up into the top layer among others who use the same blocks, on real files.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keys::units::BLOCK_SIZE;
use keys::{Dek, DekStack};
use uuid::Uuid;
use volume::pipeline::{DiskIo, PipelineError, RequestError};
use volume::store::{LayerFile, StackFiles};
use volume::{
    BlockMark, BlockMarks, Geometry, LayerMap, LayerPaths, LowerLayer, Volume, create_layer,
};
use xts::DataUnit;

const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * BLOCK_SIZE;
const TOP: u128 = 2;
const LOWER: u128 = 3;

fn geometry(layer: u128) -> Geometry {
    Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(layer),
        size: SIZE,
        data_unit: DataUnit::B4096,
    }
}

fn paths(directory: &Path, layer: u128) -> LayerPaths {
    LayerPaths {
        data: directory.join(format!("{layer}.data")),
        map: directory.join(format!("{layer}.map")),
    }
}

fn layer_map(directory: &Path, layer: u128) -> LayerMap {
    let file = File::open(paths(directory, layer).map).unwrap();
    LayerMap::new(geometry(layer), file)
}

fn dek(layer: u128) -> Dek {
    let mut bytes = keys::LockedBytes::zeroed(64).unwrap();
    for (byte, i) in bytes.as_mut_slice().iter_mut().zip(layer as u8..) {
        *byte = i;
    }
    Dek::from_locked(bytes).unwrap()
}

/// A disk with this layer at its top, and what is beneath.
fn open(directory: &Path, layer: u128, beneath: Option<u128>) -> DiskIo {
    let LayerPaths { data, map } = paths(directory, layer);
    let map = File::options().read(true).write(true).open(map).unwrap();
    let lower = beneath.map(|layer| LayerFile::open_to_read(&paths(directory, layer).data));
    let files = StackFiles::new(
        LayerFile::open(&data).unwrap(),
        LayerFile::from_file(map).unwrap(),
        lower.into_iter().map(Result::unwrap).collect(),
    );
    let lower = beneath.map(|layer| LowerLayer::open(layer_map(directory, layer)).unwrap());
    let lower = lower.into_iter().collect();
    let volume = Volume::open_private(layer_map(directory, layer), lower).unwrap();
    let deks = DekStack::new(dek(layer), beneath.into_iter().map(dek).collect());
    DiskIo::open(Arc::new(volume), files, &deks).unwrap()
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A disk whose lower layer has all of the content.
fn stack(directory: &Path) -> DiskIo {
    create_layer(&paths(directory, LOWER), &geometry(LOWER)).unwrap();
    create_layer(&paths(directory, TOP), &geometry(TOP)).unwrap();
    let mut lower = open(directory, LOWER, None);
    lower.write_at(0, &content()).unwrap();
    lower.flush().unwrap();
    drop(lower);
    open(directory, TOP, Some(LOWER))
}

/// Shares a block as reads do of which the next begins before the last one ends.
fn read_without_end(marks: &BlockMarks, first: BlockMark, ends: &AtomicBool) {
    let blocks = first.blocks();
    let mut last = Some(first);
    while !ends.load(Ordering::Relaxed) {
        let next = marks.try_shared(blocks.clone());
        let ended = std::mem::replace(&mut last, next);
        ended.into_iter().for_each(|mark| marks.release(mark));
    }
    last.into_iter().for_each(|mark| marks.release(mark));
}

#[test]
fn a_copy_among_reads_without_end_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let mut disk = stack(directory.path());
    let volume = disk.volume().clone();
    let first = volume.marks().try_shared(20..21).unwrap();
    let (ends, deadline) = (
        AtomicBool::new(false),
        Instant::now() + Duration::from_secs(30),
    );
    let copied = std::thread::scope(|scope| {
        scope.spawn(|| read_without_end(volume.marks(), first, &ends));
        let copied = disk.copy_up(0, SIZE, 1, &|| Instant::now() < deadline);
        ends.store(true, Ordering::Relaxed);
        copied
    });
    assert_eq!(copied.unwrap(), SIZE);
    assert_eq!(disk.copy_up(0, SIZE, 1, &|| true).unwrap(), 0);
    let mut read = vec![0; SIZE as usize];
    disk.read_at(0, &mut read).unwrap();
    assert!(read == content());
    // Nobody waits for a block any more.
    let marks = volume.marks();
    marks.release(marks.try_shared(0..BLOCKS).unwrap());
}

#[test]
fn a_copy_that_is_told_to_stop_waits_for_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mut disk = stack(directory.path());
    let volume = disk.volume().clone();
    let marks = volume.marks();
    let busy = marks.try_shared(0..1).unwrap();
    // So often that it is waiting for the block by then.
    let left = Cell::new(20);
    let goes_on = || {
        left.set(left.get() - 1);
        left.get() > 0
    };
    let copied = disk.copy_up(0, SIZE, 1, &goes_on);
    assert!(
        matches!(copied, Err(PipelineError::Request(RequestError::Volume(_)))),
        "{copied:?}"
    );
    // Nor does anybody wait for it.
    marks.release(marks.try_shared(0..BLOCKS).unwrap());
    marks.release(busy);
    assert_eq!(disk.copy_up(0, SIZE, 1, &|| true).unwrap(), SIZE);
}
