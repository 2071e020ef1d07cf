//! What becomes of discarded blocks, as `attach --discard` says.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use test_support::clean::assert_clean_disk;
use test_support::frontend::client::{Status, UNMAP};
use test_support::frontend::device::feature;
use test_support::rng::Rng;
use test_support::{AttachOptions, Backend, Disk, expect_success};

use super::MIB;

fn data_file(disk: &Disk) -> PathBuf {
    let directory = disk.state().join("disks/disk");
    let mut files = std::fs::read_dir(directory).unwrap().flatten();
    let data = files.find(|file| file.path().extension().is_some_and(|e| e == "data"));
    data.unwrap().path()
}

fn allocated(disk: &Disk) -> u64 {
    std::fs::metadata(data_file(disk)).unwrap().blocks() * 512
}

#[test]
fn without_discards_zeros_keep_their_space() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(8 * MIB);
    let daemon = disk.attach(&AttachOptions {
        arguments: &["--discard", "off"],
        ..Default::default()
    });
    let mut frontend = daemon.connect();
    assert_eq!(frontend.offered & feature::DISCARD, 0);
    assert_eq!(
        frontend.offered & feature::WRITE_ZEROES,
        feature::WRITE_ZEROES
    );
    assert_eq!(frontend.config().write_zeroes_may_unmap(), 0);
    let data = Rng::new(1).bytes(4 * MIB as usize);
    let queue = &mut frontend.queues[0];
    for (i, chunk) in data.chunks(MIB as usize).enumerate() {
        queue.write(i as u64 * 2048, chunk).unwrap();
    }
    queue.flush().unwrap();
    let before = allocated(&disk);
    assert_eq!(queue.discard(&[(0, 2048, 0)]), Err(Status::Unsupp));
    queue.write_zeroes(&[(0, 2048, UNMAP)]).unwrap();
    queue.flush().unwrap();
    assert!(queue.read(0, MIB as usize).unwrap().iter().all(|b| *b == 0));
    assert!(queue.read(2048, MIB as usize).unwrap() == data[MIB as usize..2 * MIB as usize]);
    drop((frontend, daemon));
    assert_eq!(allocated(&disk), before);
}

/// What a clone discards, it does not read from its source any more; its neighbour is still inherited.
#[test]
fn a_discarded_block_of_a_clone_reads_as_zeros() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(8 * MIB);
    let mut daemon = disk.attach(&AttachOptions::default());
    daemon.connect().queues[0].write(0, &[7; 8192]).unwrap();
    assert!(daemon.terminate().success());
    expect_success(&mut disk.command(&["snapshot", "create", "s", "--source", "disk"]));
    expect_success(&mut disk.command(&["disk", "create", "clone", "--source", "s"]));

    let daemon = disk.attach(&AttachOptions {
        disk: Some("clone"),
        ..Default::default()
    });
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    assert_eq!(queue.read(0, 8192).unwrap(), [7; 8192]);
    queue.discard(&[(0, 8, 0)]).unwrap();
    assert_eq!(queue.read(0, 4096).unwrap(), [0; 4096]);
    assert_eq!(queue.read(8, 4096).unwrap(), [7; 4096]);
}

#[test]
fn overwritten_blocks_read_as_zeros_and_give_their_space_back() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(32 * MIB);
    let daemon = disk.attach(&AttachOptions {
        arguments: &["--discard", "overwrite"],
        ..Default::default()
    });
    let mut frontend = daemon.connect();
    let data = Rng::new(2).bytes(MIB as usize);
    let queue = &mut frontend.queues[0];
    (0..16).for_each(|i| queue.write(i * 2048, &data).unwrap());
    queue.flush().unwrap();
    let before = allocated(&disk);
    queue.discard(&[(0, 8 * 2048, 0)]).unwrap();
    queue.flush().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while allocated(&disk) > before - 7 * MIB {
        assert!(Instant::now() < end, "{} of {before}", allocated(&disk));
        // What is found in use is given back by a later flush.
        queue.flush().unwrap();
    }
    for i in 0..16 {
        let read = queue.read(i * 2048, MIB as usize).unwrap();
        assert!(if i < 8 {
            read.iter().all(|b| *b == 0)
        } else {
            read == data
        });
    }
    queue.write(0, &data).unwrap();
    assert!(queue.read(0, MIB as usize).unwrap() == data);
}

#[test]
fn a_clean_end_gives_back_what_was_discarded() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    for discard in ["punch", "overwrite"] {
        let disk = Disk::new(32 * MIB);
        let arguments: &'static [&'static str] = match discard {
            "punch" => &["--discard", "punch"],
            _ => &["--discard", "overwrite"],
        };
        let mut daemon = disk.attach(&AttachOptions {
            arguments,
            ..Default::default()
        });
        let mut frontend = daemon.connect();
        let data = Rng::new(3).bytes(MIB as usize);
        let queue = &mut frontend.queues[0];
        (0..16).for_each(|i| queue.write(i * 2048, &data).unwrap());
        queue.flush().unwrap();
        let before = allocated(&disk);
        // No flush comes after it but the last.
        queue.discard(&[(0, 8 * 2048, 0)]).unwrap();
        drop(frontend);
        assert!(daemon.terminate().success());
        let after = allocated(&disk);
        assert!(after <= before - 8 * MIB, "{discard}: {after} of {before}");
        assert_clean_disk(|arguments| disk.command(arguments), "disk");
    }
}

/// What is discarded right before a snapshot, a rotation or the end leaves no space in use that nobody needs.
#[test]
fn discards_right_before_a_detach_leave_nothing_to_be_found() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(8 * MIB);
    let data = Rng::new(1).bytes(MIB as usize);
    for snapshot in [false, true] {
        let mut daemon = disk.attach(&AttachOptions::default());
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        queue.write(0, &data).unwrap();
        queue.write(4096, &data).unwrap();
        queue.flush().unwrap();
        queue.discard(&[(0, 2048, 0)]).unwrap();
        if snapshot {
            let create = ["snapshot", "create", "s", "--source", "disk"];
            expect_success(&mut disk.command(&create));
        }
        drop(frontend);
        assert!(daemon.terminate().success());
        assert_clean_disk(|arguments| disk.command(arguments), "disk");
    }
}
