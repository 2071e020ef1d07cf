//! Stopping, resetting, reconnecting: what firmware, kernels and VMMs do to a device.

use std::time::Duration;

use test_support::frontend::client::{Pending, Status, kind};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::message::request;
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE, frontend};

use super::MIB;
use super::host::go_on;

/// Fills a queue with writes and doesn't wait.
fn load(queue: &mut Queue, depth: u64, len: u32) -> Vec<Pending> {
    queue.arena.reset();
    (0..depth)
        .map(|i| {
            let at = queue.arena.alloc(u64::from(len), 4096);
            queue.mem.fill(at, i as u8 + 1, len as usize);
            queue.request(kind::OUT, i * u64::from(len) / 512, &[Seg::out(at, len)])
        })
        .collect()
}

#[test]
fn stopping_a_queue_drains_it_and_tells_where_it_stood() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    for round in 0..20u64 {
        let pending = load(&mut frontend.queues[0], 32, 65536);
        if round % 2 == 0 {
            // Sometimes it has begun with them, sometimes not.
            std::thread::sleep(Duration::from_micros(200 * round));
        }
        let base = frontend.stop_queue(0).unwrap();
        let queue = &mut frontend.queues[0];
        assert_eq!(base, queue.used_idx(), "all that it took it has given back");
        let done = base.wrapping_sub(queue.seen);
        assert!(done <= 32);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(queue.used_idx(), base, "a stopped queue goes on");
        for _ in 0..done {
            assert!(queue.poll().is_some());
        }
        // Goes on where it stood: the requests it didn't take are served now.
        go_on(&mut frontend, base);
        let queue = &mut frontend.queues[0];
        for pending in pending {
            assert_eq!(queue.mem.read(pending.status, 1), [0]);
        }
        queue.assert_serves(2048, round);
    }
}

#[test]
fn stopping_one_queue_leaves_the_other_running() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let running = load(&mut frontend.queues[1], 32, 4096);
    frontend.stop_queue(0).unwrap();
    for pending in running {
        assert_eq!(frontend.queues[1].complete(pending).status, Status::Ok);
    }
    frontend.queues[1].assert_serves(0, 1);
}

#[test]
fn a_device_reset_starts_over() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let data = Rng::new(1).bytes(4096);
    frontend.queues[0].write(0, &data).unwrap();
    for _ in 0..3 {
        load(&mut frontend.queues[0], 16, 65536);
        frontend.set(request::RESET_DEVICE, &[], &[]).unwrap();
        // Everything again, as after a connect; the rings start at 0.
        let features = frontend.features;
        frontend.set_features(features).unwrap();
        frontend.set_mem_table().unwrap();
        restart(&mut frontend);
        frontend.queues[0].assert_serves(8000, 1);
        frontend.queues[1].assert_serves(9000, 2);
    }
    assert_eq!(
        frontend.queues[0].read(8000, 512).map(|data| data.len()),
        Ok(512)
    );
}

/// Sets all queues up again, from index 0.
fn restart(frontend: &mut Frontend) {
    for index in 0..frontend.queues.len() as u32 {
        frontend.queues[index as usize].reset(0);
        frontend.start_queue(index).unwrap();
    }
    frontend.barrier().unwrap();
}

#[test]
fn a_new_connection_is_a_fresh_device() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    drop(daemon.connect());
    let fds = daemon.open_fds();
    let data = Rng::new(2).bytes(4096);
    for round in 0..10u64 {
        let mut frontend = daemon.connect();
        if round > 0 {
            assert!(frontend.queues[0].read(4096, 4096).as_ref() == Ok(&data));
        }
        frontend.queues[1].write(4096, &data).unwrap();
        // Leaves with requests in flight, every second time.
        if round % 2 == 0 {
            load(&mut frontend.queues[0], 16, 65536);
        }
    }
    daemon.assert_fds_within(fds);
}

#[test]
fn the_end_of_a_connection_ends_the_use_of_its_memory() {
    // What a gone frontend had in flight must not reach the next one's memory, which is why the
    // daemon finishes it first; and writes that were completed are there.
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut before = daemon.connect();
    let pending = load(&mut before.queues[0], 4, 65536);
    for pending in pending {
        assert_eq!(before.queues[0].complete(pending).status, Status::Ok);
    }
    let mem = before.mem.clone();
    let mut after = daemon.connect_after(before);
    for i in 0..4u64 {
        let sector = i * 128;
        assert!(after.queues[0].read(sector, 65536) == Ok(vec![i as u8 + 1; 65536]));
    }
    drop(mem);
}

#[test]
fn sigterm_ends_it_with_success() {
    let disk = Disk::new(4 * MIB);
    for connected in [false, true] {
        let mut daemon = disk.attach(&AttachOptions::default());
        let frontend = connected.then(|| {
            let mut frontend = daemon.connect();
            frontend.queues[0].assert_serves(0, 1);
            frontend
        });
        let status = daemon.terminate();
        assert!(
            status.success(),
            "{status:?}, connected: {connected}\n{}",
            daemon.log()
        );
        drop(frontend);
    }
    let daemon = disk.attach(&AttachOptions::default());
    daemon.connect().queues[0].read(0, 512).unwrap();
}

/// What was taken is completed before the connection ends: a frontend that sees the end may look at
/// the rings, and hand them to the next process.
#[test]
fn sigterm_completes_the_rings_before_the_connection_ends() {
    let disk = Disk::new(64 * MIB);
    for round in 0..3u64 {
        let mut daemon = disk.attach(&AttachOptions::default());
        let mut frontend = daemon.connect();
        for queue in &mut frontend.queues {
            queue.call.take();
            load(queue, 32, 512 * 1024);
        }
        std::thread::sleep(Duration::from_millis(5 * round));
        daemon.signal_end();
        assert!(frontend.conn.closed_by_peer());
        let at_the_end: Vec<u16> = frontend.queues.iter().map(Queue::used_idx).collect();
        assert!(daemon.wait().success(), "{}", daemon.log());
        for (queue, then) in frontend.queues.iter_mut().zip(at_the_end) {
            assert_eq!(
                queue.used_idx(),
                then,
                "requests of queue {} were completed after the connection's end",
                queue.index
            );
            assert!(then == 0 || queue.call.take() > 0, "the guest was not told");
            while let Some(used) = queue.poll() {
                assert_eq!(used.len, 1);
            }
        }
    }
}

/// SeaBIOS: legacy, one request at a time, no interrupts, a 16-bit index in a queue of 128 or less.
#[test]
fn seabios_habits() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let accepted = feature::BLK_SIZE | feature::PROTOCOL_FEATURES | feature::SEG_MAX;
    let setup = Setup {
        features: accepted,
        queues: 1,
        ..Default::default()
    };
    let mut frontend = daemon.connect_with(&setup);
    let queue = &mut frontend.queues[0];
    queue.set_avail_flags(1);
    // What it was told when it was set.
    queue.call.take();
    for sector in 0..300u64 {
        queue.arena.reset();
        let at = queue.arena.alloc(512, 1);
        queue.mem.fill(at, 0xff, 512);
        let pending = queue.request(kind::IN, sector, &[Seg::into(at, 512)]);
        let used = busy_wait(queue);
        assert_eq!(queue.completion(pending, used).status, Status::Ok);
        assert_eq!(queue.mem.read(at, 512), [0; 512]);
    }
    assert!(!queue.call.wait(Duration::ZERO), "called although it polls");
}

fn busy_wait(queue: &mut Queue) -> frontend::queue::Used {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(used) = queue.poll() {
            return used;
        }
        assert!(std::time::Instant::now() < end, "nothing used");
        std::hint::spin_loop();
    }
}

/// OVMF drives the disk, resets it at ExitBootServices, and the kernel's driver takes over with
/// other features, another memory table and more queues, on the same connection.
#[test]
fn ovmf_hands_over_to_the_kernel() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    for legacy in [false, true] {
        let version = if legacy { 0 } else { feature::VERSION_1 };
        let accepted = feature::BLK_SIZE | feature::FLUSH | feature::PROTOCOL_FEATURES | version;
        let setup = Setup {
            features: accepted,
            queues: 1,
            queue_size: 4,
            ..Default::default()
        };
        let mut frontend = daemon.connect_with(&setup);
        for sector in 0..40 {
            frontend.queues[0].assert_serves(sector * 8, sector);
        }
        frontend.enable(0, false).unwrap();
        let base = frontend.stop_queue(0).unwrap();
        assert_eq!(base, frontend.queues[0].avail_idx);
        // The kernel.
        let kernel = frontend.offered & Setup::default().with(feature::EVENT_IDX).features;
        frontend.set_features(kernel).unwrap();
        frontend.set_mem_table().unwrap();
        frontend.queues.clear();
        for index in 0..4 {
            let mut queue = Queue::new(&frontend.mem, index, 128);
            queue.event_idx = true;
            queue.indirect = true;
            queue.reset(0);
            frontend.queues.push(queue);
        }
        restart(&mut frontend);
        for queue in &mut frontend.queues {
            queue.assert_serves(512, 5);
        }
    }
}

/// A kernel that reboots: its queues are stopped, and set up again from 0.
#[test]
fn a_reboot_of_the_guest() {
    let disk = Disk::new(16 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let data = Rng::new(3).bytes(65536);
    frontend.queues[0].write(77, &data).unwrap();
    for round in 0..5 {
        for index in 0..2 {
            frontend.queues[index as usize].assert_serves(4096, round);
            frontend.stop_queue(index).unwrap();
        }
        restart(&mut frontend);
        assert!(frontend.queues[1].read(77, data.len()).as_ref() == Ok(&data));
    }
}
