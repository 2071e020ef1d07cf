//! How split rings are walked and notified.

use std::time::Duration;

use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::{Setup, feature};
use test_support::frontend::eventfd::EventFd;
use test_support::frontend::message::{request, vring_state, words};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE, kill};

use super::MIB;
use crate::supervise::is_qsd;
use std::os::fd::AsFd;

/// Long enough for a call that must not come to have come.
const A_WHILE: Duration = Duration::from_millis(200);

/// Every mode in which drivers run the rings, with depth, against a model.
#[test]
fn every_mode_of_the_ring_carries_data() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let event_idx = feature::EVENT_IDX;
    let modes = [
        ("plain", Setup::default()),
        ("event index", Setup::default().with(event_idx)),
        (
            "indirect",
            Setup {
                indirect: true,
                ..Default::default()
            },
        ),
        (
            "all",
            Setup {
                indirect: true,
                ..Default::default()
            }
            .with(event_idx),
        ),
        ("legacy", Setup::default().without(feature::VERSION_1)),
        (
            "legacy with all",
            Setup {
                indirect: true,
                ..Default::default()
            }
            .without(feature::VERSION_1)
            .with(event_idx),
        ),
        (
            "index wraps",
            Setup {
                start: 65_500,
                ..Default::default()
            }
            .with(event_idx),
        ),
        (
            "small queue",
            Setup {
                queue_size: 4,
                ..Default::default()
            }
            .with(event_idx),
        ),
        ("without protocol features", {
            Setup {
                queues: 1,
                ..Default::default()
            }
            .without(feature::PROTOCOL_FEATURES)
        }),
        (
            "write-through",
            Setup::default().without(feature::FLUSH | feature::CONFIG_WCE),
        ),
    ];
    for (seed, (name, setup)) in modes.into_iter().enumerate() {
        eprintln!("mode: {name}");
        let mut frontend = daemon.connect_with(&setup);
        for queue in &mut frontend.queues {
            carry(queue, seed as u64);
        }
    }
}

/// Two hundred writes and their read-back, at the depth that the queue allows.
fn carry(queue: &mut Queue, seed: u64) {
    let depth = if queue.indirect {
        32
    } else {
        usize::from(queue.size / 3).min(32)
    };
    for (kind, fill) in [(kind::OUT, true), (kind::IN, false)] {
        for batch in 0..200 / depth as u64 {
            queue.arena.reset();
            let requests: Vec<_> = (0..depth as u64)
                .map(|i| {
                    let sector = (batch * depth as u64 + i) * 8 + u64::from(queue.index) * 4;
                    let at = queue.arena.alloc(2048, 16);
                    queue.mem.write(
                        at,
                        &if fill {
                            stamp(sector, seed)
                        } else {
                            vec![0; 2048]
                        },
                    );
                    let data = Seg {
                        addr: at,
                        len: 2048,
                        writable: !fill,
                    };
                    (queue.request(kind, sector, &[data]), sector, at)
                })
                .collect();
            for (pending, sector, at) in requests {
                assert_eq!(queue.complete(pending).status, Status::Ok);
                let data = queue.mem.read(at, 2048);
                assert!(
                    data == stamp(sector, seed),
                    "sector {sector}, writing: {fill}"
                );
            }
        }
    }
}

fn stamp(sector: u64, seed: u64) -> Vec<u8> {
    Rng::new(sector * 1000 + seed).bytes(2048)
}

#[test]
fn one_kick_serves_all_that_is_available() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    let at = queue.arena.alloc(512, 512);
    let all: Vec<_> = (0..30)
        .map(|i| queue.prepare(kind::IN, i, &[Seg::into(at, 512)]))
        .collect();
    for pending in &all {
        queue.push(pending.head);
    }
    queue.kick.signal();
    for pending in all {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
}

#[test]
fn kicks_without_anything_new_do_no_harm() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    for setup in [Setup::default(), Setup::default().with(feature::EVENT_IDX)] {
        let queue = &mut daemon.connect_with(&setup).queues[0];
        for round in 0..10 {
            for _ in 0..50 {
                queue.kick.signal();
            }
            queue.assert_serves(0, round);
        }
        assert!(queue.poll().is_none());
    }
}

#[test]
fn a_driver_that_polls_is_not_called() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let queue = &mut daemon.connect().queues[0];
    queue.set_avail_flags(1);
    // What it was told when it was set.
    queue.call.take();
    let at = queue.arena.alloc(512, 512);
    queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
    let used = poll_until_used(queue);
    assert_eq!(used, 513);
    assert!(
        !queue.call.wait(A_WHILE),
        "a call although avail.flags asks for none"
    );
    queue.set_avail_flags(0);
    let again = queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
    assert_eq!(queue.complete(again).status, Status::Ok);
}

/// Busy-waits for an entry and returns its length.
fn poll_until_used(queue: &mut Queue) -> u32 {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(used) = queue.poll() {
            return used.len;
        }
        assert!(std::time::Instant::now() < end, "nothing used");
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn the_call_comes_when_the_used_index_passes_the_event() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    for start in [0u16, 65_533] {
        let setup = Setup {
            start,
            ..Default::default()
        }
        .with(feature::EVENT_IDX);
        let queue = &mut daemon.connect_with(&setup).queues[0];
        let at = queue.arena.alloc(512, 512);
        // The first call of a connection may come early.
        let first = queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
        queue.complete(first);
        while queue.call.wait(A_WHILE) {
            queue.call.take();
        }
        let start = start.wrapping_add(1);
        // Called when the fifth entry is used, and not before.
        queue.set_used_event(start.wrapping_add(4));
        for done in 1..=5u16 {
            let pending = queue.prepare(kind::IN, 0, &[Seg::into(at, 512)]);
            queue.push(pending.head);
            queue.kick_if_wanted(1);
            while queue.used_idx() != start.wrapping_add(done) {
                std::thread::sleep(Duration::from_micros(50));
            }
            let called = queue.call.wait(if done == 5 { PATIENCE } else { A_WHILE });
            assert_eq!(called, done == 5, "after {done} entries from index {start}");
        }
    }
}

#[test]
fn a_kick_before_the_queue_is_enabled_is_not_lost() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    for fds_first in [false, true] {
        frontend.stop_queue(0).unwrap();
        frontend.enable(0, false).unwrap();
        frontend.queues[0].reset(0);
        let queue = &mut frontend.queues[0];
        let at = queue.arena.alloc(512, 512);
        if !fds_first {
            // Available and kicked before the back-end has even seen the fds.
            let pending = queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
            frontend.describe_queue(0, 0).unwrap();
            frontend.set_queue_fds(0).unwrap();
            frontend.enable(0, true).unwrap();
            assert_eq!(frontend.queues[0].complete(pending).status, Status::Ok);
        } else {
            frontend.describe_queue(0, 0).unwrap();
            frontend.set_queue_fds(0).unwrap();
            let queue = &mut frontend.queues[0];
            let pending = queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
            assert!(
                queue.next_within(A_WHILE).is_none(),
                "a disabled queue served"
            );
            frontend.enable(0, true).unwrap();
            assert_eq!(frontend.queues[0].complete(pending).status, Status::Ok);
        }
    }
}

#[test]
fn a_disabled_queue_waits_and_its_neighbour_serves() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    frontend.queues[0].assert_serves(0, 1);
    frontend.enable(0, false).unwrap();
    frontend.queues[1].assert_serves(0, 2);
    frontend.enable(0, true).unwrap();
    frontend.queues[0].assert_serves(0, 3);
}

#[test]
fn a_new_call_fd_is_used_from_then_on() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    frontend.queues[0].assert_serves(0, 1);
    // QEMU does so when it masks and unmasks an MSI-X vector.
    let call = EventFd::new();
    frontend
        .set(request::SET_VRING_CALL, &words(&[0]), &[call.as_fd()])
        .unwrap();
    frontend.queues[0].call = call;
    frontend.queues[0].assert_serves(0, 2);
}

#[test]
fn a_queue_without_call_fd_is_served_to_one_that_polls() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    // Bit 8: no fd comes with it, the driver polls.
    frontend
        .set(request::SET_VRING_CALL, &words(&[1 << 8]), &[])
        .unwrap();
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(512, 512);
    queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
    assert_eq!(poll_until_used(queue), 513);
    frontend.queues[1].assert_serves(0, 2);
}

/// QEMU asks for a region for the device's `queue-size`, 128, also where the driver makes rings of 1024 entries, as over
/// MMIO: they are served, and each of their chains is kept for the next data plane.
#[test]
fn a_ring_may_have_more_entries_than_a_region_was_asked_for() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&Setup {
        queue_size: 1024,
        indirect: true,
        ..Setup::default().with_inflight()
    });
    (0..2).for_each(|index| frontend.stop_queue(index).map(drop).unwrap());
    let region = frontend.get_inflight(2, 128).unwrap();
    assert_eq!(region.entries, 128, "as QEMU passes it back");
    frontend.set_inflight(&region).unwrap();
    frontend.queues.iter_mut().for_each(|queue| queue.reset(0));
    (0..2).for_each(|index| frontend.start_queue(index).unwrap());
    for life in 0..2 {
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let at = queue.arena.alloc(1024 * 512, 4096);
        let all: Vec<_> = (0..1024)
            .map(|i| queue.prepare(kind::IN, i, &[Seg::into(at + 512 * i, 512)]))
            .collect();
        all.iter().for_each(|pending| queue.push(pending.head));
        queue.kick.signal();
        if life == 0 {
            kill(daemon.data_plane());
        }
        for pending in all {
            assert_eq!(queue.complete(pending).status, Status::Ok);
        }
        frontend.queues[1].assert_serves(0, life);
    }
}

/// Each virtio-mmio machine of QEMU has queues of 1024 entries, and nothing in vhost-user can tell it
/// to make them smaller.
#[test]
fn queues_of_1024_entries_are_taken_whatever_is_said() {
    let disk = Disk::new(16 * MIB);
    let arguments: [&[&str]; 3] = [&[], &["--queue-size", "4"], &["--queue-size", "1024"]];
    for (arguments, seg_max) in arguments.into_iter().zip([254, 2, 1022]) {
        let daemon = disk.attach(&AttachOptions {
            arguments,
            ..Default::default()
        });
        let mut frontend = daemon.connect_with(&Setup {
            queue_size: 1024,
            indirect: true,
            ..Default::default()
        });
        assert_eq!(frontend.config().seg_max(), seg_max);
        let queue = &mut frontend.queues[0];
        let at = queue.arena.alloc(1024 * 512, 4096);
        for _ in 0..2 {
            let all: Vec<_> = (0..1024)
                .map(|i| queue.prepare(kind::IN, i, &[Seg::into(at + 512 * i, 512)]))
                .collect();
            all.iter().for_each(|pending| queue.push(pending.head));
            queue.kick.signal();
            for pending in all {
                assert_eq!(queue.complete(pending).status, Status::Ok);
            }
        }
        frontend.queues[1].assert_serves(0, 1);
    }
}

/// As libvhost-user does: whoever waits for what an old descriptor was told looks again.
#[test]
fn a_call_descriptor_is_signalled_once_when_it_is_set() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    for running in [true, false] {
        if !running {
            frontend.stop_queue(0).unwrap();
        }
        let call = EventFd::new();
        frontend
            .set(request::SET_VRING_CALL, &words(&[0]), &[call.as_fd()])
            .unwrap();
        assert_eq!(call.take(), 1, "running: {running}");
        frontend.queues[0].call = call;
    }
}

/// The VMM has the same file descriptions: their flags are its own.
#[test]
fn descriptors_keep_their_flags() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    (queue.kick, queue.call, queue.err) = Default::default();
    for fd in [&queue.kick, &queue.call, &queue.err] {
        fd.set_blocking();
    }
    frontend.set_queue_fds(0).unwrap();
    frontend.queues[0].kick.signal();
    let queue = &frontend.queues[0];
    for (name, fd) in [
        ("kick", &queue.kick),
        ("call", &queue.call),
        ("err", &queue.err),
    ] {
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        assert!(
            !flags.contains(rustix::fs::OFlags::NONBLOCK),
            "O_NONBLOCK was set on the VMM's {name} descriptor"
        );
    }
}

/// A frontend that has left its call descriptor full, and blocking, keeps nothing from going on.
#[test]
fn a_full_call_descriptor_blocks_no_queue() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let full = EventFd::new();
    frontend
        .set(request::SET_VRING_CALL, &words(&[0]), &[full.as_fd()])
        .unwrap();
    // The description is the frontend's as much as the daemon's, so this may come at any time.
    full.set_blocking();
    full.fill();
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(512, 512);
    for _ in 0..3 {
        queue.request(kind::IN, 0, &[Seg::into(at, 512)]);
        assert_eq!(poll_until_used(queue), 513);
    }
    frontend.stop_queue(0).unwrap();
}

#[test]
fn queues_of_other_sizes_than_the_largest() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    for queue_size in [4, 8, 64, 256] {
        let mut frontend = daemon.connect_with(&Setup {
            queue_size,
            ..Default::default()
        });
        for round in 0..40 {
            frontend.queues[round % 2].assert_serves(round as u64 * 8, round as u64);
        }
    }
    // Size and base can be told in either order, and again.
    let mut frontend = daemon.connect();
    frontend.stop_queue(0).unwrap();
    frontend.queues[0].reset(0);
    frontend
        .set(request::SET_VRING_BASE, &vring_state(0, 0), &[])
        .unwrap();
    frontend
        .set(request::SET_VRING_NUM, &vring_state(0, 128), &[])
        .unwrap();
    frontend.start_queue(0).unwrap();
    frontend.queues[0].assert_serves(0, 1);
}
