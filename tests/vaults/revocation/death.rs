//! Processes that end while the key is revoked.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::frontend::client::{Status, kind};
use test_support::frontend::device::Frontend;
use test_support::frontend::queue::Seg;
use test_support::key_search::{may_read_memory, needles, search_what_stays};
use test_support::rng::Rng;
use test_support::{Customer, Daemon, PATIENCE, await_end, kill, stop};

use super::{FAIL, MIB, PAUSE};

/// A disk with something that was completed and not flushed, stopped.
fn stopped(customer: &Customer, mode: &'static [&'static str], seed: u64) -> (Daemon, Frontend) {
    let daemon = customer.attach(mode);
    let mut frontend = daemon.connect();
    let data = Rng::new(seed).bytes(65536);
    frontend.queues[0].write(77, &data).unwrap();
    customer.enable(false);
    customer.wait_stopped();
    // Something is in the ring, wherever it ends.
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    let at = queue.arena.alloc(4096, 4096);
    queue.request(kind::OUT, 0, &[Seg::out(at, 4096)]);
    (daemon, frontend)
}

/// The key comes back, and all that was completed is there.
fn assert_nothing_lost(customer: &Customer, seed: u64) {
    customer.enable(true);
    let daemon = customer.attach(FAIL);
    let mut frontend = daemon.connect();
    let found = frontend.queues[0].read(77, 65536);
    assert!(found == Ok(Rng::new(seed).bytes(65536)), "seed {seed}");
}

#[test]
fn a_stopped_disk_is_detached_and_flushed_without_its_key() {
    for (mode, seed) in [(FAIL, 1), (PAUSE, 2)] {
        let customer = Customer::new(4 * MIB);
        let (mut daemon, frontend) = stopped(&customer, mode, seed);
        drop(frontend);
        assert!(daemon.terminate().success(), "{}", daemon.log());
        // The map that outlives a process is not needed: everything is durable.
        let left: Vec<_> = fs::read_dir(customer.disk.runtime())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".map"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let refused = customer
            .disk
            .command(&["attach", "disk", "--socket-path", "/dev/shm/never-bound"])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && error.contains("is disabled"),
            "{error}"
        );
        assert_nothing_lost(&customer, seed);
    }
}

#[test]
fn both_processes_end_with_the_attach_process_while_the_key_is_revoked() {
    for (mode, seed) in [(FAIL, 3), (PAUSE, 4)] {
        let customer = Customer::new(4 * MIB);
        let (mut daemon, _frontend) = stopped(&customer, mode, seed);
        let (parent, child) = (daemon.pid(), daemon.data_plane());
        assert_ne!(parent, child);
        kill(parent);
        assert!(!daemon.wait().success());
        await_end(child);
        assert_nothing_lost(&customer, seed);
    }
}

/// The next data plane gets no key, and is served as any other when the key is granted again. The frontend
/// notices neither.
#[test]
fn a_data_plane_that_dies_while_the_key_is_revoked_comes_back_without_it() {
    for (mode, seed) in [(FAIL, 5), (PAUSE, 6)] {
        let customer = Customer::new(4 * MIB);
        let needles = needles(&customer.dek());
        let (daemon, mut frontend) = stopped(&customer, mode, seed);
        let dead = daemon.data_plane();
        kill(dead);
        await_end(dead);
        let end = Instant::now() + PATIENCE;
        while !daemon.log().contains("is served again") {
            assert!(Instant::now() < end, "{}", daemon.log());
            thread::sleep(Duration::from_millis(5));
        }
        customer.wait_stopped();
        if may_read_memory() {
            for pid in [daemon.pid(), daemon.data_plane()] {
                let found = search_what_stays(pid, &needles);
                assert!(found.is_empty(), "{found:#?}");
            }
        }
        let queue = &mut frontend.queues[0];
        match mode {
            FAIL => {
                let pending = queue.begin_write(0, &[1; 512]);
                assert_eq!(queue.complete(pending).status, Status::IoErr);
            }
            _ => assert_eq!(queue.next_within(Duration::from_millis(300)), None),
        }
        customer.enable(true);
        customer.wait_served();
        frontend.barrier().expect("the connection is still there");
        if mode == PAUSE {
            // What waited in the ring.
            frontend.queues[0].next_used();
        }
        let found = frontend.queues[0].read(77, 65536);
        assert!(found == Ok(Rng::new(seed).bytes(65536)), "seed {seed}");
        assert!(!customer.events().contains(&"KeyNotRestored".to_owned()));
    }
}

/// A key that is on its way to a data plane that dies, or is being destroyed in one, is destroyed with it.
#[test]
fn a_revocation_comes_to_its_end_with_the_data_plane() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    let mut frontend = daemon.connect();
    frontend.queues[0].assert_serves(0, 1);
    let dead = daemon.data_plane();
    // It does not answer to what it is told.
    stop(dead);
    customer.enable(false);
    customer.wait_for("KeyRevoked", "BeingDestroyed");
    kill(dead);
    customer.wait_stopped();
    let pending = frontend.queues[0].begin_write(0, &[1; 512]);
    assert_eq!(frontend.queues[0].complete(pending).status, Status::IoErr);
    customer.enable(true);
    customer.wait_served();
    frontend.queues[0].assert_serves(0, 2);
}

/// A disk without its key, and its data plane, which is given it and says nothing: it may have read it by then.
fn silent_with_key(customer: &Customer) -> (Daemon, u32) {
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    customer.enable(false);
    customer.wait_stopped();
    let silent = daemon.data_plane();
    stop(silent);
    customer.enable(true);
    customer.wait_for("KeyRevoked", "BeingRestored");
    (daemon, silent)
}

#[test]
fn a_key_that_is_on_its_way_to_a_data_plane_is_revoked_as_one_that_it_has() {
    let customer = Customer::new(4 * MIB);
    let (daemon, silent) = silent_with_key(&customer);
    customer.enable(false);
    customer.wait_for("KeyRevoked", "BeingDestroyed");
    daemon.signal_all(&[silent], Signal::CONT);
    customer.wait_stopped();
    assert!(!customer.events().contains(&"KeyRestored".to_owned()));
    customer.enable(true);
    customer.wait_served();
    daemon.connect().queues[0].assert_serves(0, 1);
}

#[test]
fn a_data_plane_that_takes_its_key_and_says_nothing_is_replaced() {
    let customer = Customer::new(4 * MIB);
    let (daemon, silent) = silent_with_key(&customer);
    await_end(silent);
    customer.wait_served();
    assert!(customer.events().contains(&"KeyNotRestored".to_owned()));
    daemon.connect().queues[0].assert_serves(0, 1);
}
