//! Limits of an attached disk, changed while it is attached.

use test_support::frontend::client::kind;
use test_support::frontend::queue::Seg;
use test_support::{AttachOptions, Disk, expect_success};

use super::MIB;

/// 512 KiB every eight seconds: what follows the first request waits.
#[test]
fn a_limit_holds_requests_back_until_it_is_taken_back() {
    let disk = Disk::new(16 * MIB);
    const LEN: u64 = 512 << 10;
    let arguments = &["--bandwidth", "64KiB", "--bandwidth-burst", "1"];
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(3 * LEN, 4096);
    let pending: Vec<_> = (0..3)
        .map(|i| {
            let to = Seg::into(at + LEN * i, LEN as u32);
            queue.request(kind::IN, LEN / 512 * i, &[to])
        })
        .collect();
    let first = queue.next_used();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(
        queue.poll().is_none(),
        "the second request was not held back"
    );

    expect_success(&mut disk.command(&["disk", "update", "disk", "--no-limits"]));
    let mut heads = vec![first.id, queue.next_used().id, queue.next_used().id];
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), pending.len());
    for pending in pending {
        assert_eq!(queue.mem.read(pending.status, 1), [0]);
    }
    queue.assert_serves(2048, 7);
}

/// A ring that is stopped is drained, whatever limits it.
#[test]
fn a_limit_does_not_hold_a_stop_back() {
    let disk = Disk::new(16 * MIB);
    let arguments = &["--iops", "1", "--iops-burst", "1"];
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(16 * 512, 4096);
    for i in 0..16 {
        queue.request(kind::IN, i, &[Seg::into(at + 512 * i, 512)]);
    }
    let base = frontend.stop_queue(0).unwrap();
    assert_eq!(base, frontend.queues[0].used_idx());
}

/// Of a gigabyte at 64 KiB a second what follows would wait for hours.
#[test]
fn what_moves_no_data_is_free_of_the_limit_of_bytes() {
    let disk = Disk::new(1 << 30);
    let arguments = &["--bandwidth", "64KiB", "--bandwidth-burst", "1"];
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let whole = [(0, 1 << 21, 0)];
    queue.discard(&whole).unwrap();
    queue.write_zeroes(&whole).unwrap();
    assert_eq!(queue.read(0, 4096), Ok(vec![0; 4096]));
}

/// At the rate of before the second request waits for two minutes, and longer than the test does.
#[test]
fn what_waits_follows_a_higher_limit() {
    let disk = Disk::new(16 * MIB);
    const LEN: u64 = 8 << 20;
    let arguments = &["--bandwidth", "64KiB", "--bandwidth-burst", "1"];
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(2 * LEN, 4096);
    for i in 0..2 {
        let to = Seg::into(at + LEN * i, LEN as u32);
        queue.request(kind::IN, LEN / 512 * i, &[to]);
    }
    queue.next_used();
    disk.ok("disk update disk --bandwidth 1GiB");
    queue.next_used();
}

/// Limits with which hardly a request gets through are refused where they are new. A unit of before may have less
/// bandwidth, and starts.
#[test]
fn a_limit_that_lets_nothing_through_is_refused() {
    let disk = Disk::new(16 * MIB);
    for limit in ["--bandwidth 0", "--bandwidth 1", "--iops 0"] {
        let said = disk.refused(&format!("disk update disk {limit}"));
        assert!(
            said.contains("leave the option out") || said.contains("64KiB"),
            "{said}"
        );
    }
    let socket = disk.path("never-bound");
    let attach = format!("attach disk --socket-path {} --iops 0", socket.display());
    disk.refused(&attach);
    for arguments in [&["--bandwidth", "0"], &["--bandwidth", "16KiB"]] {
        let daemon = disk.attach(&AttachOptions {
            arguments,
            ..AttachOptions::default()
        });
        daemon.connect().queues[0].assert_serves(0, 7);
    }
}
