//! A host whose storage is full, as `attach --on-full` says: tmpfs, where the data file is memory, and
//! ext4, where it is written directly.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use test_support::frontend::client::{NO_STATUS, Pending, Status, kind};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;
use test_support::small_fs::SmallFs;
use test_support::{AttachOptions, Daemon, Disk, PATIENCE, expect_success};

use super::MIB;

/// Longer than two tries of a request that waits.
const A_WHILE: Duration = Duration::from_millis(1200);

const ERROR: &[&str] = &["--on-full", "error"];

pub(super) fn both(test: fn(&SmallFs)) {
    ["tmpfs", "ext4"]
        .into_iter()
        .filter_map(SmallFs::mount)
        .for_each(|fs| test(&fs));
}

pub(super) fn attach(disk: &Disk, arguments: &'static [&'static str]) -> Daemon {
    disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    })
}

/// 256 KiB each, from 8 MiB on.
pub(super) fn begin_writes(queue: &mut Queue, data: &[Vec<u8>]) -> Vec<Pending> {
    let sectors = (16_384..).step_by(512);
    data.iter()
        .zip(sectors)
        .map(|(data, at)| queue.begin_write(at, data))
        .collect()
}

pub(super) fn eight(seed: u64) -> Vec<Vec<u8>> {
    (0..8)
        .map(|i| Rng::new(seed + i).bytes(256 << 10))
        .collect()
}

pub(super) fn assert_all_written(queue: &mut Queue, pending: Vec<Pending>, data: &[Vec<u8>]) {
    for pending in pending {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
    for (data, at) in data.iter().zip((16_384..).step_by(512)) {
        assert!(
            queue.read(at, data.len()).as_ref() == Ok(data),
            "sector {at}"
        );
    }
}

pub(super) fn assert_waits(queue: &mut Queue) {
    assert_eq!(queue.next_within(A_WHILE), None);
}

/// The names of the events so far.
fn events(disk: &Disk) -> Vec<String> {
    let output = expect_success(&mut disk.command(&["disk", "events", "disk"]));
    let lines = String::from_utf8(output.stdout).unwrap();
    let name = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["event"].as_str().unwrap().to_owned()
    };
    lines.lines().map(name).collect()
}

fn wait_for_event(disk: &Disk, event: &str) {
    let end = Instant::now() + PATIENCE;
    while !events(disk).iter().any(|e| e == event) {
        assert!(Instant::now() < end, "no {event}: {:?}", events(disk));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn writes_wait_for_space_and_all_else_goes_on() {
    both(|fs| {
        let disk = fs.disk(64 * MIB);
        let daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        let old = Rng::new(1).bytes(MIB as usize);
        let [first, second, ..] = &mut frontend.queues[..] else {
            panic!("two queues")
        };
        first.write(0, &old).unwrap();
        first.flush().unwrap();
        let ballast = fs.fill();

        let data = eight(10);
        first.arena.reset();
        let pending = begin_writes(first, &data);
        assert_waits(first);
        wait_for_event(&disk, "StorageFull");
        // Beside them in the same queue, and in another.
        let at = first.arena.alloc(MIB, 4096);
        let read = first.request(kind::IN, 0, &[Seg::into(at, MIB as u32)]);
        assert_eq!(first.complete(read).status, Status::Ok);
        assert!(first.mem.read(at, MIB as usize) == old);
        let new = Rng::new(2).bytes(MIB as usize);
        second.write(0, &new).unwrap();
        second.flush().unwrap();
        assert!(second.read(0, MIB as usize).as_ref() == Ok(&new));
        assert_waits(first);
        for pending in &pending {
            assert_eq!(first.mem.read(pending.status, 1), [NO_STATUS]);
        }

        drop(ballast);
        assert_all_written(first, pending, &data);
        first.flush().unwrap();
        wait_for_event(&disk, "StorageOk");
        assert_eq!(events(&disk), ["Attached", "StorageFull", "StorageOk"]);
        let log = daemon.log();
        assert!(log.contains("a request waits for space"), "{log}");
        second.assert_serves(0, 3);
    });
}

#[test]
fn with_on_full_error_writes_fail_until_there_is_space() {
    both(|fs| {
        let disk = fs.disk(64 * MIB);
        let daemon = attach(&disk, ERROR);
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        let data = Rng::new(1).bytes(MIB as usize);
        queue.write(0, &data).unwrap();
        let ballast = fs.fill();
        for _ in 0..3 {
            assert_eq!(queue.write(16_384, &data), Err(Status::IoErr));
            assert!(queue.read(0, MIB as usize).as_ref() == Ok(&data));
        }
        drop(ballast);
        queue.write(16_384, &data).unwrap();
        queue.flush().unwrap();
        assert!(queue.read(16_384, MIB as usize).as_ref() == Ok(&data));
        assert_eq!(events(&disk), ["Attached"]);
        assert!(daemon.log().contains("make space"), "{}", daemon.log());
    });
}

fn durable_bytes(disk: &Disk) -> serde_json::Value {
    let output = expect_success(&mut disk.command(&["disk", "show", "disk", "-o", "json"]));
    let show: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    show["dataBytes"].clone()
}

/// The map of a new disk is a hole, so that its first flush needs space.
#[test]
fn a_flush_waits_for_space_for_the_map() {
    both(|fs| {
        let disk = fs.disk(1024 * MIB);
        let daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        queue.write(1 << 20, &[7; 4096]).unwrap();
        let ballast = fs.fill();
        queue.arena.reset();
        let flush = queue.request(kind::FLUSH, 0, &[]);
        assert_waits(queue);
        assert_eq!(durable_bytes(&disk), 0);
        drop(ballast);
        assert_eq!(queue.complete(flush).status, Status::Ok);
        assert_eq!(durable_bytes(&disk), 4096);
    });
}

#[test]
fn a_ring_that_is_stopped_returns_what_waits_for_space() {
    both(|fs| {
        let disk = fs.disk(64 * MIB);
        let daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        let ballast = fs.fill();
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let pending = begin_writes(queue, &eight(10));
        assert_waits(queue);
        let base = frontend.stop_queue(0).unwrap();
        let queue = &mut frontend.queues[0];
        assert_eq!(base, queue.used_idx());
        for pending in pending {
            assert_eq!(queue.complete(pending).status, Status::IoErr);
        }
        drop(ballast);
        queue.reset(base);
        frontend.start_queue(0).unwrap();
        frontend.queues[0].assert_serves(0, 3);
        wait_for_event(&disk, "StorageOk");
    });
}

/// The queues are quiesced for a moment, and what waits goes on waiting.
#[test]
fn a_disk_grows_while_requests_wait_for_space() {
    both(|fs| {
        let disk = fs.disk(64 * MIB);
        let daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        let ballast = fs.fill();
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let data = eight(10);
        let pending = begin_writes(queue, &data);
        assert_waits(queue);
        let size = (128 * MIB).to_string();
        expect_success(&mut disk.command(&["disk", "resize", "disk", "--size", &size]));
        assert_waits(queue);
        drop(ballast);
        assert_all_written(queue, pending, &data);
        queue.assert_serves(100 * MIB / 512, 3);
    });
}

/// The runtime map takes its memory as it is needed; a page that is not there would kill the process.
#[test]
fn requests_wait_for_space_for_the_runtime_map() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let mut disk = Disk::new(64 * 1024 * MIB);
    disk.set_env("SEALDISK_RUNTIME_DIR", fs.path().to_str().unwrap());
    let daemon = attach(&disk, &[]);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.assert_serves(0, 1);
    let ballast = fs.fill();
    queue.assert_serves(0, 2);
    queue.arena.reset();
    let far = 50 * 1024 * MIB / 512;
    let pending = queue.begin_write(far, &[7; 4096]);
    assert_waits(queue);
    drop(ballast);
    assert_eq!(queue.complete(pending).status, Status::Ok);
    assert!(queue.read(far, 4096).as_deref() == Ok(&[7; 4096][..]));
}

/// Whether the runtime map of a disk is there.
fn has_runtime_map(runtime: &Path) -> bool {
    let files = fs::read_dir(runtime).unwrap().flatten();
    files
        .into_iter()
        .any(|file| file.path().extension().is_some_and(|e| e == "map"))
}

/// What was completed and not flushed outlives a last flush that found no space.
#[test]
fn a_last_flush_without_space_loses_nothing() {
    both(|fs| {
        let disk = fs.disk(1024 * MIB);
        let mut daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        frontend.queues[0].write(1 << 20, &[7; 4096]).unwrap();
        let ballast = fs.fill();
        drop(frontend);
        assert!(!daemon.terminate().success());
        let log = daemon.log();
        assert!(log.contains("the last flush of the disk failed"), "{log}");
        let map = disk.runtime().to_str().unwrap();
        for said in ["make room", "attach the disk again", map] {
            assert!(log.contains(said), "{log}");
        }
        assert!(has_runtime_map(disk.runtime()));
        drop(ballast);
        let mut daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        assert!(frontend.queues[0].read(1 << 20, 4096).as_deref() == Ok(&[7; 4096][..]));
        drop(frontend);
        assert!(daemon.terminate().success());
        assert!(!has_runtime_map(disk.runtime()));
        assert_eq!(durable_bytes(&disk), 4096);
    });
}

/// A write that finds no space may have taken some before it did.
#[test]
fn space_of_writes_that_failed_is_given_back() {
    for kind in ["tmpfs", "ext4"] {
        let Some(fs) = &SmallFs::mount(kind) else {
            continue;
        };
        // Over blocks that were discarded, and over those that were never written; the room is no multiple of
        // what is written at a time.
        for (arguments, first, room) in [
            (ERROR, 0, 220 << 10),
            (ERROR, 2048, 220 << 10),
            (&[][..], 2048, 60 << 10),
        ] {
            let disk = fs.disk(64 * MIB);
            fail_writes(fs, &disk, arguments, (first, room));
            let mut daemon = attach(&disk, &[]);
            daemon.connect().queues[0].flush().unwrap();
            assert!(daemon.terminate().success(), "{}", daemon.log());
            let json = |arguments: &[&str]| -> serde_json::Value {
                let command = &mut disk.command(&[arguments, &["-o", "json"]].concat());
                serde_json::from_slice(&expect_success(command).stdout).unwrap()
            };
            let report = json(&["disk", "check", "disk"]);
            assert_eq!(report["problems"], serde_json::json!([]), "{report}");
            let shown = json(&["disk", "show", "disk"]);
            let data = fs::metadata(shown["layers"][0]["data"].as_str().unwrap()).unwrap();
            // An ext4 has blocks of its own in a file.
            let (taken, needed) = (data.blocks() * 512, report["dataBytes"].as_u64().unwrap());
            assert!(taken == needed || kind == "ext4", "{taken} {needed}");
            expect_success(&mut disk.command(&["disk", "delete", "disk", "--yes"]));
        }
    }
}

/// Has writes from a sector on fail, or wait, for want of space, of which there are `room` bytes.
fn fail_writes(
    fs: &SmallFs,
    disk: &Disk,
    arguments: &'static [&'static str],
    (first, room): (u64, u64),
) {
    let mut daemon = attach(disk, arguments);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[1; 1 << 20]).unwrap();
    queue.discard(&[(0, 2048, 0)]).unwrap();
    queue.flush().unwrap();
    let ballast = fs.fill();
    ballast.shrink(room);
    // More than that and what the discard gives back meanwhile.
    let pending: Vec<_> = (0..16)
        .map(|i| queue.begin_write(first + i * 256, &[2; 128 << 10]))
        .collect();
    if arguments == ERROR {
        let ended = pending.into_iter().map(|p| queue.complete(p).status);
        assert!(ended.filter(|status| *status != Status::Ok).count() > 0);
    } else {
        wait_for_event(disk, "StorageFull");
    }
    drop(frontend);
    // Whether the map finds a place or not.
    let _ = daemon.terminate();
}

/// A ramfs makes no holes and tells none.
#[test]
fn a_discard_that_gives_nothing_back_is_no_leak() {
    let Some(fs) = SmallFs::mount("ramfs") else {
        return;
    };
    let disk = fs.disk(8 * MIB);
    for discards in [false, true] {
        let mut daemon = attach(&disk, &[]);
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        queue.write(0, &[1; 1 << 20]).unwrap();
        if discards {
            queue.discard(&[(0, 1024, 0)]).unwrap();
        }
        queue.flush().unwrap();
        drop(frontend);
        assert!(daemon.terminate().success(), "{}", daemon.log());
        for repair in [
            &["disk", "check", "disk", "-o", "json"][..],
            &["disk", "check", "disk", "-o", "json", "--repair"],
        ] {
            let report = expect_success(&mut disk.command(repair)).stdout;
            let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
            let problems = report["problems"].as_array().unwrap();
            assert_eq!(problems.len(), usize::from(discards), "{report}");
            for problem in problems {
                let message = problem["message"].as_str().unwrap();
                assert!(
                    problem["kind"] == "Note" && message.contains("cannot punch holes"),
                    "{report}"
                );
                assert!(message.starts_with("524288 bytes"), "{report}");
            }
        }
    }
}
