//! A process that writes into a data file that is memory, killed at any instruction: no sector of it is torn.
//!
//! The process is this test again, which writes version after version over the whole disk, in order, one request at
//! a time. So after a kill the versions along the disk fall once, by one, if all that was completed is there.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keys::{Dek, LockedBytes};
use test_support::rng::Rng;
use uuid::Uuid;
use volume::pipeline::DiskIo;
use volume::store::{LayerFile, StackFiles};
use volume::{Geometry, LayerMap, LayerPaths, RuntimeMap, Volume, VolumeError, create_layer};
use xts::DataUnit;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const SIZE: usize = 1 << 20;
/// Bytes of a disk that is copied into past the caches of the processor, of which [`SIZE`] are used.
const LARGE: u64 = 256 << 20;
const KILLS: u32 = 30;
/// Versions that the writer writes in a row.
const PREPARED: u64 = 8;
/// Where the process that is killed finds the disk.
const DIRECTORY: &str = "SEALDISK_KILLED_DIRECTORY";
/// Bytes of its requests.
const REQUEST: &str = "SEALDISK_KILLED_REQUEST";
/// Bytes of the disk.
const DISK: &str = "SEALDISK_KILLED_DISK";
const WRITING: &str = "it writes";

/// What is written, and to what.
#[derive(Clone, Copy)]
struct Kind {
    /// Bytes of a request.
    request: usize,
    /// Bytes of the disk.
    disk: u64,
}

impl Kind {
    fn geometry(self) -> Geometry {
        Geometry {
            disk: Uuid::from_u128(1),
            layer: Uuid::from_u128(2),
            size: self.disk,
            data_unit: match self.request.is_multiple_of(BLOCK) {
                true => DataUnit::B4096,
                false => DataUnit::B512,
            },
        }
    }
}

fn dek() -> Dek {
    let mut bytes = LockedBytes::zeroed(64).unwrap();
    for (byte, i) in bytes.as_mut_slice().iter_mut().zip(0..) {
        *byte = i;
    }
    Dek::from_locked(bytes).unwrap()
}

/// Opens the disk in a directory as a data plane does, and what was to be finished before.
fn open(directory: &Path, kind: Kind) -> (DiskIo, usize) {
    let geometry = kind.geometry();
    let runtime = directory.join("runtime");
    let (runtime, _) = RuntimeMap::open(&runtime, &geometry, Uuid::nil(), Uuid::nil()).unwrap();
    let data = LayerFile::open(&directory.join("data")).unwrap();
    let map = || {
        File::options()
            .read(true)
            .write(true)
            .open(directory.join("map"))
    };
    let top = LayerMap::new(geometry.clone(), map().unwrap());
    let opened = Volume::open_runtime(top.clone(), vec![], &runtime);
    let is_refused = matches!(opened, Err(VolumeError::Unfinished));
    let finished = runtime.finish_writes(&geometry, data.file()).unwrap();
    assert_eq!(
        is_refused,
        finished > 0,
        "a disk is served before its writes are finished"
    );
    let map_file = LayerFile::from_file(map().unwrap()).unwrap();
    let mut files = StackFiles::new(data, map_file, vec![]);
    files.map_memory(geometry.data_len()).unwrap();
    let volume = Volume::open_runtime(top, vec![], &runtime).unwrap();
    let io = DiskIo::open(Arc::new(volume), files, &dek().into());
    (io.unwrap(), finished)
}

/// Fills memory that is for the disk from `at` on with what a version has there.
fn fill(at: usize, version: u64, bytes: &mut [u8]) {
    for (word, i) in bytes.chunks_exact_mut(8).zip(0u64..) {
        let value = ((at as u64 + i * 8) << 32) | version;
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The version that a sector has, of which it must have all.
fn version(at: usize, sector: &[u8]) -> u64 {
    let mut wanted = [0; SECTOR];
    let found = u64::from_le_bytes(sector[..8].try_into().unwrap()) & u64::from(u32::MAX);
    fill(at, found, &mut wanted);
    let same = wanted
        .iter()
        .zip(sector)
        .take_while(|(a, b)| a == b)
        .count();
    assert!(
        same == SECTOR,
        "the sector at {at} is torn after {same} bytes of version {found}"
    );
    found
}

/// Not a test by itself: what is killed.
#[test]
#[ignore = "the process that the others kill"]
fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (request, disk) = (number(REQUEST) as usize, number(DISK));
    let (mut io, _) = open(&directory, Kind { request, disk });
    let mut disk = vec![0; SIZE];
    io.read_at(0, &mut disk).unwrap();
    let first = version(SIZE - SECTOR, &disk[SIZE - SECTOR..]);
    let mut next = first + 1;
    loop {
        // Prepared before, so that it does next to nothing but to write.
        let versions: Vec<Vec<u8>> = (next..next + PREPARED)
            .map(|version| {
                fill(0, version, &mut disk);
                disk.clone()
            })
            .collect();
        if next == first + 1 {
            println!("{WRITING}");
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        for disk in &versions {
            for (part, at) in disk.chunks(request).zip((0..).step_by(request)) {
                io.write_at(at, part).unwrap();
            }
        }
        next += PREPARED;
    }
}

/// A disk in memory of which every block has data, of version 0.
fn disk(kind: Kind) -> tempfile::TempDir {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let paths = LayerPaths {
        data: directory.path().join("data"),
        map: directory.path().join("map"),
    };
    create_layer(&paths, &kind.geometry()).unwrap();
    let mut content = vec![0; SIZE];
    fill(0, 0, &mut content);
    let (mut io, _) = open(directory.path(), kind);
    io.write_at(0, &content).unwrap();
    directory
}

/// Starts a writer, which writes when this returns, and nothing before `prepare` has been called.
fn start(directory: &Path, kind: Kind, prepare: impl FnOnce()) -> Child {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(REQUEST, kind.request.to_string())
        .env(DISK, kind.disk.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains(WRITING)),
        "the writer ended"
    );
    prepare();
    let mut go = writer.stdin.take().unwrap();
    go.write_all(b"\n").unwrap();
    writer
}

/// Kills a writer again and again, and holds what it left against what it may have left.
fn kill_and_look(kind: Kind) {
    let Kind { request, .. } = kind;
    let directory = disk(kind);
    let mut content = vec![0; SIZE];
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut finished, mut last) = (0, 0);
    for round in 0..KILLS {
        let mut writer = start(directory.path(), kind, || ());
        let until = Instant::now() + Duration::from_micros(rng.within(0..2000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        let (mut io, unfinished) = open(directory.path(), kind);
        finished += unfinished;
        io.read_at(0, &mut content).unwrap();
        let sectors = content.chunks(SECTOR).zip((0..).step_by(SECTOR));
        let found: Vec<u64> = sectors.map(|(sector, at)| version(at, sector)).collect();
        let (newest, oldest) = (found[0], found[found.len() - 1]);
        assert!(
            found.is_sorted_by(|a, b| a >= b) && newest <= oldest + 1 && oldest >= last,
            "round {round}: versions {newest} to {oldest} after {last}: a write is lost"
        );
        let is_whole = |blocks: &[u64]| blocks.iter().all(|version| *version == blocks[0]);
        assert!(
            !request.is_multiple_of(BLOCK) || found.chunks(BLOCK / SECTOR).all(is_whole),
            "round {round}: a block is torn between sectors"
        );
        last = oldest;
    }
    eprintln!("{KILLS} kills, {finished} of them within a copy; version {last}");
}

#[test]
fn no_block_is_torn_by_a_kill() {
    let request = 64 << 10;
    let disk = SIZE as u64;
    kill_and_look(Kind { request, disk });
}

/// Requests that begin and end within blocks, and cross them.
#[test]
fn no_sector_is_torn_by_a_kill() {
    let request = 13 * SECTOR;
    let disk = SIZE as u64;
    kill_and_look(Kind { request, disk });
}

#[test]
fn nothing_is_torn_where_the_caches_are_passed() {
    let disk = LARGE;
    for request in [64 << 10, 13 * SECTOR] {
        kill_and_look(Kind { request, disk });
    }
}

#[test]
fn a_copy_that_a_process_died_of_is_done_by_the_next() {
    copy_dies(SIZE as u64);
}

#[test]
fn a_copy_past_the_caches_that_a_process_died_of_is_done_by_the_next() {
    copy_dies(LARGE);
}

/// The page that is copied to is taken away, so that the process dies at the first byte of a copy.
fn copy_dies(disk_size: u64) {
    let kind = Kind {
        request: BLOCK,
        disk: disk_size,
    };
    let directory = disk(kind);
    let data = File::options()
        .write(true)
        .open(directory.path().join("data"));
    let data = data.unwrap();
    let take_away = || data.set_len(SIZE as u64 / 2).unwrap();
    let mut writer = start(directory.path(), kind, take_away);
    let status = writer.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS));
    data.set_len(disk_size).unwrap();
    let (mut io, finished) = open(directory.path(), kind);
    assert_eq!(finished, 1);
    let mut content = vec![0; SIZE];
    io.read_at(0, &mut content).unwrap();
    let versions = |range: std::ops::Range<usize>| -> Vec<u64> {
        let sectors = content[range.clone()].chunks(SECTOR);
        let sectors = sectors.zip(range.step_by(SECTOR));
        sectors.map(|(sector, at)| version(at, sector)).collect()
    };
    let before = versions(0..SIZE / 2);
    let copied = versions(SIZE / 2..SIZE / 2 + BLOCK);
    assert!(
        before
            .iter()
            .chain(&copied)
            .all(|version| *version == before[0])
    );
    drop(io);
    assert_eq!(open(directory.path(), kind).1, 0, "it is finished once");
}
