//! What a guest's requests come to while the key is revoked, and afterwards.

use std::thread;
use std::time::{Duration, Instant};

use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::message::request;
use test_support::frontend::queue::Seg;
use test_support::{Customer, PATIENCE, frontend};

use super::load::Load;
use super::{BOUND, FAIL, MIB, PAUSE};

/// How long a paused ring is watched for something that must not happen.
const WHILE: Duration = Duration::from_millis(300);

/// Both queues of a frontend under load.
struct Guest {
    frontend: Frontend,
    loads: Vec<Load>,
}

impl Guest {
    fn new(mut frontend: Frontend, seed: u64) -> Self {
        let queues = frontend.queues.iter_mut();
        let loads = (0u64..)
            .zip(queues)
            .map(|(n, queue)| Load::new(queue, n * Load::LEN, seed + n))
            .collect();
        Self { frontend, loads }
    }

    fn each(&mut self, mut act: impl FnMut(&mut Load, &mut frontend::queue::Queue)) {
        for (load, queue) in self.loads.iter_mut().zip(&mut self.frontend.queues) {
            act(load, queue);
        }
    }

    /// Runs all queues until `enough` of each.
    fn run_until(&mut self, enough: impl Fn(&Load) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !self.loads.iter().all(&enough) {
            assert!(Instant::now() < end, "the load does not come so far");
            self.each(|load, queue| load.turn(queue));
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.each(|load, queue| load.turn(queue));
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn serve_some(&mut self) {
        let before: Vec<u64> = self.loads.iter().map(|load| load.stats.done).collect();
        let most = before.into_iter().max().unwrap();
        self.run_until(|load| load.stats.done > most + 200);
    }

    fn last_success(&self) -> Instant {
        let last = self.loads.iter().map(|load| load.stats.last_success);
        last.max().unwrap()
    }

    fn verify(&mut self) {
        self.each(|load, queue| {
            load.finish(queue);
            load.verify(queue);
        });
    }
}

#[test]
fn requests_fail_from_the_revocation_on_until_the_key_is_granted_again() {
    let customer = Customer::new(16 * MIB);
    let mut daemon = customer.attach(FAIL);
    let mut guest = Guest::new(daemon.connect(), 1);
    guest.serve_some();

    let disabled = Instant::now();
    customer.enable(false);
    guest.run_until(|load| load.stats.failed > 50);
    let access = customer.wait_stopped();
    assert_eq!(access["reason"]["code"], "KeyDisabled");
    let stopped = guest.loads[0].stats.done;
    guest.run(WHILE);
    assert_eq!(guest.loads[0].stats.done, stopped, "served without a key");
    let after = guest.last_success().saturating_duration_since(disabled);
    assert!(after < BOUND, "the last success came {after:?} later");
    guest.each(|load, queue| load.finish(queue));

    // What needs no key goes on: what was completed can be made durable.
    let queue = &mut guest.frontend.queues[0];
    queue.arena.reset();
    queue.flush().unwrap();
    assert!(queue.get_id().is_ok());
    assert_eq!(queue.read(0, 4096), Err(Status::IoErr));
    // Not even that a block was never written is told.
    assert_eq!(queue.read(15 * MIB / 512, 4096), Err(Status::IoErr));
    assert_eq!(queue.write(0, &[1; 512]), Err(Status::IoErr));
    assert_eq!(queue.discard(&[(0, 8, 0)]), Err(Status::IoErr));
    assert_eq!(queue.write_zeroes(&[(0, 8, 0)]), Err(Status::IoErr));

    customer.enable(true);
    customer.wait_served();
    guest.each(|load, queue| load.verify(queue));
    assert!(daemon.terminate().success());
    let log = daemon.log();
    for line in [
        "is revoked",
        "KeyDisabled",
        "key destroyed",
        "granted again",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn paused_requests_wait_in_the_ring_and_none_of_them_fails() {
    for setup in [Setup::default(), Setup::default().with(feature::EVENT_IDX)] {
        let customer = Customer::new(16 * MIB);
        let daemon = customer.attach(PAUSE);
        let mut guest = Guest::new(daemon.connect_with(&setup), 2);
        guest.serve_some();
        let disabled = Instant::now();
        customer.enable(false);
        while customer.show()["keyAccess"]["dek"] != "Destroyed" {
            guest.run(Duration::from_millis(10));
            assert!(disabled.elapsed() < PATIENCE);
        }
        guest.run(Duration::from_millis(50));
        assert!(guest.loads.iter().all(|load| load.in_flight() > 0));
        let used: Vec<u16> = guest.frontend.queues.iter().map(|q| q.used_idx()).collect();
        // Kicks change nothing.
        guest.frontend.queues.iter().for_each(|q| q.kick.signal());
        guest.run(WHILE);
        let now: Vec<u16> = guest.frontend.queues.iter().map(|q| q.used_idx()).collect();
        assert_eq!(now, used, "served without a key");
        let after = guest.last_success().saturating_duration_since(disabled);
        assert!(after < BOUND, "the last success came {after:?} later");

        // Nobody kicks: the rings are looked at when the key is back.
        customer.enable(true);
        guest.each(|load, queue| load.finish(queue));
        guest.serve_some();
        guest.verify();
        assert!(guest.loads.iter().all(|load| load.stats.failed == 0));
        customer.wait_served();
    }
}

/// Waits for the pause with requests of a queue in the ring; the frontend, and how many there are.
fn paused_with_requests(customer: &Customer, frontend: &mut Frontend, count: u64) {
    customer.enable(false);
    customer.wait_stopped();
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    for i in 0..count {
        let at = queue.arena.alloc(4096, 4096);
        queue.request(kind::OUT, 8 * i, &[Seg::out(at, 4096)]);
    }
}

#[test]
fn a_paused_queue_is_stopped_restarted_and_reset_promptly() {
    let customer = Customer::new(16 * MIB);
    let daemon = customer.attach(PAUSE);
    let mut frontend = daemon.connect();
    frontend.queues[0].assert_serves(100, 1);
    paused_with_requests(&customer, &mut frontend, 20);
    thread::sleep(Duration::from_millis(50));

    // GET_VRING_BASE has nothing to wait for, and tells where the waiting ones begin.
    let base = frontend.stop_queue(0).unwrap();
    assert_eq!(base, frontend.queues[0].used_idx());
    assert_eq!(frontend.queues[0].avail_idx.wrapping_sub(base), 20);
    frontend.queues[0].base = base;
    frontend.start_queue(0).unwrap();
    frontend.enable(0, false).unwrap();
    frontend.enable(0, true).unwrap();
    frontend.queues[0].kick.signal();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(frontend.queues[0].used_idx(), base);

    // A reset drops them, as a guest that is rebooted does.
    frontend.set(request::RESET_DEVICE, &[], &[]).unwrap();
    let features = frontend.features;
    frontend.set_features(features).unwrap();
    frontend.set_mem_table().unwrap();
    for index in 0..2 {
        frontend.queues[index as usize].reset(0);
        frontend.start_queue(index).unwrap();
    }
    // Another frontend may come while the key is away, and wait too.
    let mut frontend = daemon.connect_after(frontend);
    let queue = &mut frontend.queues[0];
    let at = queue.arena.alloc(4096, 4096);
    let pending = queue.request(kind::IN, 100, &[Seg::into(at, 4096)]);
    thread::sleep(Duration::from_millis(50));
    assert!(queue.poll().is_none());
    customer.enable(true);
    assert_eq!(queue.complete(pending).status, Status::Ok);
    queue.assert_serves(0, 2);
}

/// A request that a limit holds back was taken already; it goes back into the ring.
#[test]
fn a_request_that_a_limit_held_back_waits_in_the_ring() {
    let customer = Customer::new(16 * MIB);
    let daemon = customer.attach(&[
        "--key-check-interval",
        "1",
        "--on-revoke",
        "pause",
        "--bandwidth",
        "64KiB",
        "--bandwidth-burst",
        "1",
    ]);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    let size = 512 << 10;
    let at = queue.arena.alloc(3 * u64::from(size), 4096);
    let pending: Vec<_> = (0..3)
        .map(|i| {
            queue.request(
                kind::IN,
                1024 * i,
                &[Seg::into(at + u64::from(size) * i, size)],
            )
        })
        .collect();
    assert_eq!(queue.complete(pending[0]).status, Status::Ok);
    customer.enable(false);
    customer.wait_stopped();
    assert_eq!(queue.used_idx(), 1);
    let base = frontend.stop_queue(0).unwrap();
    assert_eq!(base, 1, "the held request was put back");
    frontend.queues[0].base = base;
    frontend.start_queue(0).unwrap();

    customer.ok(&["disk", "update", "disk", "--no-limits"]);
    customer.enable(true);
    let queue = &mut frontend.queues[0];
    for pending in &pending[1..] {
        assert_eq!(queue.complete(*pending).status, Status::Ok);
    }
    customer.wait_served();
    queue.arena.reset();
    queue.assert_serves(64, 3);
}

/// The same where it fails: a limit does not hold a failure back.
#[test]
fn a_request_that_a_limit_held_back_fails_with_the_others() {
    let customer = Customer::new(16 * MIB);
    let daemon = customer.attach(&[
        "--key-check-interval",
        "1",
        "--iops",
        "1",
        "--iops-burst",
        "1",
    ]);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    customer.enable(false);
    let at = queue.arena.alloc(64 * 512, 4096);
    let pending: Vec<_> = (0..32)
        .map(|i| queue.request(kind::IN, i, &[Seg::into(at + 512 * i, 512)]))
        .collect();
    let started = Instant::now();
    let statuses: Vec<Status> = pending.iter().map(|p| queue.complete(*p).status).collect();
    assert_eq!(statuses.last(), Some(&Status::IoErr));
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "32 requests at one a second"
    );
}

#[test]
fn again_and_again_under_load_nothing_is_lost() {
    for (mode, seed) in [(FAIL, 10), (PAUSE, 20)] {
        let customer = Customer::new(16 * MIB);
        let daemon = customer.attach(mode);
        let mut guest = Guest::new(daemon.connect(), seed);
        for _ in 0..3 {
            guest.serve_some();
            customer.enable(false);
            while customer.show()["keyAccess"]["dek"] != "Destroyed" {
                guest.run(Duration::from_millis(5));
            }
            customer.enable(true);
            while customer.show()["keyAccess"]["state"] != "Active" {
                guest.run(Duration::from_millis(5));
            }
        }
        guest.serve_some();
        guest.verify();
        let failed: u64 = guest.loads.iter().map(|load| load.stats.failed).sum();
        assert_eq!(failed > 0, mode == FAIL);
    }
}
