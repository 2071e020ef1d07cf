//! Reads ahead and writes behind of a disk without a guest, on real files.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use keys::{Dek, DekStack};
use uuid::Uuid;
use volume::pipeline::{DiskIo, PipelineError, Plaintext, RequestError};
use volume::store::{LayerFile, StackFiles};
use volume::{Geometry, LayerMap, LayerPaths, Volume, create_layer};
use xts::DataUnit;
use zeroize::Zeroizing;

const SIZE: usize = 24 << 20;
/// No multiple of what is encrypted in one go, or of a buffer for ciphertext.
const PART: usize = 1_224_704;

fn geometry() -> Geometry {
    Geometry {
        disk: Uuid::from_u128(1),
        layer: Uuid::from_u128(2),
        size: SIZE as u64,
        data_unit: DataUnit::B4096,
    }
}

fn paths(directory: &Path) -> LayerPaths {
    LayerPaths {
        data: directory.join("data"),
        map: directory.join("map"),
    }
}

/// Opens a disk that is there; its data file for reading only, if `read_only` says so.
fn open(directory: &Path, dek: Dek, read_only: bool) -> DiskIo {
    let paths = paths(directory);
    let data = match read_only {
        true => LayerFile::open_to_read(&paths.data),
        false => LayerFile::open(&paths.data),
    };
    let map = File::options().read(true).write(true).open(&paths.map);
    let map = LayerFile::from_file(map.unwrap()).unwrap();
    let top = LayerMap::new(geometry(), File::open(&paths.map).unwrap());
    let volume = Volume::open_private(top, vec![]).unwrap();
    let files = StackFiles::new(data.unwrap(), map, vec![]);
    DiskIo::open(Arc::new(volume), files, &DekStack::from(dek)).unwrap()
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn buffer(len: usize) -> Plaintext {
    Zeroizing::new(vec![0xee; len])
}

#[test]
fn what_was_written_behind_is_read_ahead_in_order() {
    let directory = tempfile::tempdir().unwrap();
    create_layer(&paths(directory.path()), &geometry()).unwrap();
    let content = content();
    let mut disk = open(directory.path(), dek(), false);
    for (part, at) in content.chunks(PART).zip((0..).step_by(PART)) {
        disk.write_behind(at, part).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    let mut disk = open(directory.path(), dek(), false);
    let starts: Vec<_> = (0..SIZE).step_by(PART).collect();
    for start in &starts {
        let len = PART.min(SIZE - start);
        disk.read_ahead(*start as u64, buffer(len)).unwrap();
    }
    // One that is waited for passes those.
    let mut first = [0; 4096];
    disk.read_at(0, &mut first).unwrap();
    assert_eq!(first, content[..4096]);
    for start in starts {
        let (offset, part) = disk.next_read().unwrap().unwrap();
        assert_eq!(offset, start as u64);
        assert!(*part == content[start..start + part.len()], "at {start}");
    }
    assert!(disk.next_read().unwrap().is_none());
}

#[test]
fn less_than_blocks_is_written_too_and_a_hole_is_zeros() {
    let directory = tempfile::tempdir().unwrap();
    create_layer(&paths(directory.path()), &geometry()).unwrap();
    let mut disk = open(directory.path(), dek(), false);
    disk.write_behind(8192, &[7; 4096]).unwrap();
    disk.write_behind(8192 + 512, &[9; 1024]).unwrap();
    disk.end_writes().unwrap();
    disk.read_ahead(4096, buffer(8192)).unwrap();
    let (_, read) = disk.next_read().unwrap().unwrap();
    let expected = [&[0; 4096][..], &[7; 512], &[9; 1024], &[7; 2560]].concat();
    assert!(*read == expected);
}

/// A write that fails after the call that began it does not pass for one that is durable.
#[test]
fn a_write_that_failed_is_told_by_the_flush_at_last() {
    let directory = tempfile::tempdir().unwrap();
    create_layer(&paths(directory.path()), &geometry()).unwrap();
    let mut disk = open(directory.path(), dek(), true);
    let content = content();
    let begun = disk.write_behind(0, &content[..4096]);
    let told = begun.and_then(|()| disk.flush());
    assert!(
        matches!(told, Err(PipelineError::Request(RequestError::Store(_)))),
        "{told:?}"
    );
    // Many of them, more than there are buffers: none is lost, and nothing waits for ever.
    let all = content.chunks(PART).zip((0..).step_by(PART));
    let failed = all
        .map(|(part, at)| disk.write_behind(at, part))
        .any(|r| r.is_err());
    assert!(failed);
    let rest = disk.end_writes();
    drop(rest);
    disk.end_writes().unwrap();
    let map = fs::read(paths(directory.path()).map).unwrap();
    drop(disk);
    assert!(map == fs::read(paths(directory.path()).map).unwrap());
}

#[test]
fn what_is_under_way_is_given_up_with_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    create_layer(&paths(directory.path()), &geometry()).unwrap();
    let content = content();
    let mut disk = open(directory.path(), dek(), false);
    disk.write_behind(0, &content[..PART]).unwrap();
    disk.read_ahead(0, buffer(PART)).unwrap();
    disk.read_ahead(0, buffer(SIZE + 4096)).unwrap();
    assert!(disk.next_read().is_ok());
    let behind_the_end = disk.next_read();
    assert!(
        matches!(
            behind_the_end,
            Err(PipelineError::Request(RequestError::Range { .. }))
        ),
        "{behind_the_end:?}"
    );
    disk.read_ahead(0, buffer(PART)).unwrap();
    drop(disk);
}

fn dek() -> Dek {
    let mut bytes = keys::LockedBytes::zeroed(64).unwrap();
    for (byte, i) in bytes.as_mut_slice().iter_mut().zip(0..) {
        *byte = i;
    }
    Dek::from_locked(bytes).unwrap()
}
