//! Memory tables, memory slots and the dirty log of a migration.

use std::time::Duration;

use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::dirty_log::LOG_PAGE;
use test_support::frontend::memory::Region;
use test_support::frontend::message::{request, words};
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE, expect_success, frontend};

use super::MIB;

#[test]
fn buffers_in_every_region_and_across_two_that_touch() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let regions: Vec<_> = frontend
        .mem
        .regions()
        .iter()
        .map(|r| (r.gpa, r.end()))
        .collect();
    let data = Rng::new(1).bytes(8192);
    let queue = &mut frontend.queues[0];
    queue.write(0, &data).unwrap();
    // At the first and the last byte of each, and over the seam of the first two.
    let mut places: Vec<_> = regions[1..]
        .iter()
        .flat_map(|&(gpa, end)| [gpa, end - 8192])
        .collect();
    places.extend([1, 512, 4096, 5000, 8191].map(|before| regions[1].0 - before));
    for place in places {
        queue.arena.reset();
        let pending = queue.request(kind::IN, 0, &[Seg::into(place, 8192)]);
        let done = queue.complete(pending);
        assert_eq!(
            (done.status, done.len),
            (Status::Ok, 8193),
            "read to {place:#x}"
        );
        let seam = regions[1].0;
        let first = seam.saturating_sub(place).min(8192) as usize;
        let first = if place < seam { first } else { 8192 };
        let mut got = queue.mem.read(place, first);
        got.extend(queue.mem.read(place + first as u64, 8192 - first));
        assert!(got == data, "read to {place:#x}");
        let pending = queue.request(kind::OUT, 100, &[Seg::out(place, 8192)]);
        assert_eq!(
            queue.complete(pending).status,
            Status::Ok,
            "write from {place:#x}"
        );
        assert!(
            queue.read(100, 8192).as_ref() == Ok(&data),
            "write from {place:#x}"
        );
    }
}

#[test]
fn regions_come_and_go_while_queues_are_busy() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    for round in 0..20u64 {
        let region = Region::new(0x10_0000_0000 + round % 3 * 16 * MIB, 2 * MIB);
        let busy: Vec<_> = {
            let queue = &mut frontend.queues[0];
            queue.arena.reset();
            (0..16)
                .map(|i| {
                    let at = queue.arena.alloc(65536, 4096);
                    queue.mem.fill(at, 9, 65536);
                    queue.request(kind::OUT, i * 128, &[Seg::out(at, 65536)])
                })
                .collect()
        };
        frontend.add_region(&region).unwrap();
        // The new memory is usable at once.
        let queue = &mut frontend.queues[1];
        queue.arena.reset();
        let pending = queue.request(kind::IN, 20_000, &[Seg::into(region.gpa + 100, 4096)]);
        assert_eq!(queue.complete(pending).status, Status::Ok, "round {round}");
        frontend.remove_region(&region).unwrap();
        for pending in busy {
            assert_eq!(frontend.queues[0].complete(pending).status, Status::Ok);
        }
        // And not any more.
        let queue = &mut frontend.queues[1];
        let pending = queue.request(kind::IN, 0, &[Seg::into(region.gpa, 4096)]);
        assert_ne!(
            queue.complete(pending).status,
            Status::Ok,
            "memory that is gone was used"
        );
    }
    frontend.queues[0].assert_serves(0, 1);
}

#[test]
fn a_frontend_that_only_adds_regions() {
    // libvhost and newer QEMU send ADD_MEM_REG for each region and no table at all.
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let conn = frontend::message::Connection::open(daemon.socket()).unwrap();
    let mut frontend = Frontend::negotiate(conn, &Setup::default()).unwrap();
    for region in frontend.mem.regions() {
        frontend.add_region(region).unwrap();
    }
    let queue = frontend::queue::Queue::new(&frontend.mem, 0, 64);
    frontend.queues.push(queue);
    frontend.queues[0].reset(0);
    frontend.start_queue(0).unwrap();
    frontend.queues[0].assert_serves(0, 1);
}

/// The standard asks for no order; QEMU's is that of its memory slots.
#[test]
fn a_table_in_any_order() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let regions = frontend.mem.regions();
    for order in [[2, 0, 1], [1, 2, 0], [2, 1, 0]] {
        let mut body = words(&[3]);
        let regions = order.map(|index: usize| &regions[index]);
        for region in regions {
            body.extend(words(&[region.gpa, region.size, region.user(), 0]));
        }
        let fds = regions.map(Region::fd);
        frontend.set(request::SET_MEM_TABLE, &body, &fds).unwrap();
    }
    let high = frontend.mem.regions()[2].gpa;
    let queue = &mut frontend.queues[0];
    queue.assert_serves(0, 1);
    let pending = queue.request(kind::IN, 0, &[Seg::into(high, 4096)]);
    assert_eq!(queue.complete(pending).status, Status::Ok);
    assert!(queue.mem.read(high, 4096) == Rng::new(1).bytes(4096));
}

/// Attached, a frontend that negotiates and then says `act`, the end of its connection, and that the
/// log and the events say what to change.
fn assert_ended_as_not_shared(act: impl FnOnce(&Frontend)) {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let conn = frontend::message::Connection::open(daemon.socket()).unwrap();
    let frontend = Frontend::negotiate(conn, &Setup::default()).unwrap();
    act(&frontend);
    assert!(frontend.conn.closed_by_peer(), "the connection goes on");
    drop(frontend);
    let events = ["disk", "events", "disk"];
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let events = expect_success(&mut disk.command(&events)).stdout;
        let events = String::from_utf8(events).unwrap();
        if events.contains("MemoryNotShared") {
            assert!(events.contains("share=on"), "{events}");
            break;
        }
        assert!(std::time::Instant::now() < end, "{events}");
    }
    assert!(daemon.log().contains("share=on"), "{}", daemon.log());
    // And the next one is served.
    daemon.connect().queues[0].assert_serves(0, 1);
}

/// QEMU with `share=off`.
#[test]
fn memory_that_is_mapped_privately_ends_the_connection() {
    let region = Region::private(0, MIB);
    assert_ended_as_not_shared(|frontend| {
        let mut body = words(&[1]);
        body.extend(words(&[region.gpa, region.size, region.user(), 0]));
        let fds = [region.fd()];
        let _ = frontend.send_only(request::SET_MEM_TABLE, &body, &fds);
    });
}

/// QEMU with `memory-backend-ram`, of which it announces nothing.
#[test]
fn queues_in_memory_that_was_not_announced_end_the_connection() {
    assert_ended_as_not_shared(|frontend| {
        let at = frontend::memory::USER_BASE;
        let body = frontend::device::vring_addr(0, 0, at, at + 8192, at + 4096, 0);
        let _ = frontend.send_only(request::SET_VRING_NUM, &words(&[128 << 32]), &[]);
        let _ = frontend.send_only(request::SET_VRING_ADDR, &body, &[]);
    });
}

#[test]
fn a_migration_sees_every_page_that_is_written() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    for setup in [Setup::default(), Setup::default().with(feature::EVENT_IDX)] {
        let mut frontend = daemon.connect_with(&setup);
        frontend.queues[0]
            .write(0, &Rng::new(2).bytes(65536))
            .unwrap();
        let log = frontend.log_all();
        log.take();
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let data = queue.arena.alloc(65536, 4096) + 4000;
        let status = queue.arena.alloc(4096, 4096);
        let header = queue.arena.alloc(4096, 4096);
        let untouched = queue.arena.alloc(65536, 4096);
        queue.mem.write(header, &[0; 16]);
        // 200 bytes before a page's end to somewhere in the fourth page.
        let segs = [
            Seg::out(header, 16),
            Seg::into(data, 12_288),
            Seg::into(status, 1),
        ];
        let head = queue.submit(&segs);
        assert_eq!(queue.wait_for(head).len, 12_289);
        let pages = log.take();
        let page = |gpa: u64| gpa / LOG_PAGE;
        let mut wanted: Vec<u64> = (page(data)..=page(data + 12_287)).collect();
        wanted.extend([page(status), page(queue.used)]);
        for page in wanted {
            assert!(
                pages.contains(&page),
                "page {page:#x} was written and not logged: {pages:x?}"
            );
        }
        for gpa in [header, untouched, queue.avail] {
            assert!(
                !pages.contains(&page(gpa)),
                "page {:#x} was logged and not written",
                page(gpa)
            );
        }
        // After the log is off, nothing is marked.
        frontend.stop_log().unwrap();
        frontend.queues[0].assert_serves(0, 3);
    }
}

/// A read that was taken before the log began writes its pages after: they are in the log, and those
/// of its status and of the used ring. The same where a log takes the place of another, as when the
/// guest's memory grows while it is migrated.
#[test]
fn reads_under_way_when_the_log_begins_are_in_it() {
    let disk = Disk::new(16 * MIB);
    // 512 KiB every eight seconds: the second request waits.
    const LEN: u64 = 512 << 10;
    let arguments = &["--bandwidth", "64KiB", "--bandwidth-burst", "1"];
    for logs in [1, 2] {
        let daemon = disk.attach(&AttachOptions {
            arguments,
            ..AttachOptions::default()
        });
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        let at = queue.arena.alloc(3 * LEN, 4096);
        let reads: Vec<_> = (0..3)
            .map(|i| {
                let to = Seg::into(at + LEN * i, LEN as u32);
                queue.request(kind::IN, i * LEN / 512, &[to])
            })
            .collect();
        assert_eq!(queue.complete(reads[0]).status, Status::Ok);
        assert!(
            queue.next_within(Duration::from_millis(50)).is_none(),
            "the second read was not held back"
        );
        let started: Vec<_> = (0..logs).map(|_| frontend.log_all()).collect();
        let log = started.last().unwrap();
        log.take();
        let update = &["disk", "update", "disk", "--no-limits"];
        expect_success(&mut disk.command(update));
        let queue = &mut frontend.queues[0];
        for read in &reads[1..] {
            assert_eq!(queue.complete(*read).status, Status::Ok);
        }
        let pages = log.take();
        let data = (at + LEN) / LOG_PAGE..(at + 3 * LEN) / LOG_PAGE;
        let others = [reads[1].status, reads[2].status, queue.used];
        for page in data.chain(others.map(|at| at / LOG_PAGE)) {
            assert!(
                pages.contains(&page),
                "page {page:#x} was written and not logged: {pages:x?}"
            );
        }
    }
}

#[test]
fn a_whole_read_at_depth_is_logged() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let log = frontend.log_all();
    for queue in &mut frontend.queues {
        log.take();
        queue.arena.reset();
        let reads: Vec<_> = (0..24)
            .map(|i| {
                let at = queue.arena.alloc(65536, 4096);
                (
                    queue.request(kind::IN, i * 128, &[Seg::into(at, 65536)]),
                    at,
                )
            })
            .collect();
        for &(pending, _) in &reads {
            assert_eq!(queue.complete(pending).status, Status::Ok);
        }
        let pages: std::collections::HashSet<_> = log.take().into_iter().collect();
        for (pending, at) in reads {
            for page in at / LOG_PAGE..(at + 65536) / LOG_PAGE {
                assert!(pages.contains(&page), "page {page:#x} of the data");
            }
            assert!(pages.contains(&(pending.status / LOG_PAGE)), "the status");
        }
        assert!(pages.contains(&(queue.used / LOG_PAGE)), "the used ring");
    }
}
