//! Processes that end while the key is revoked.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use test_support::frontend::client::kind;
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;
use test_support::{Customer, Daemon, PATIENCE, alive, kill};

use super::{FAIL, MIB, PAUSE};

/// A disk with something that was completed and not flushed, stopped.
fn stopped(customer: &Customer, mode: &'static [&'static str], seed: u64) -> Daemon {
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
    daemon
}

fn wait_for_the_end_of(pid: u32) {
    let end = Instant::now() + PATIENCE;
    while alive(pid) {
        assert!(Instant::now() < end, "process {pid} lives on alone");
        thread::sleep(Duration::from_millis(5));
    }
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
        let mut daemon = stopped(&customer, mode, seed);
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
fn either_process_is_killed_while_the_key_is_revoked() {
    for (mode, seed) in [(FAIL, 3), (PAUSE, 4)] {
        for data_plane in [true, false] {
            let customer = Customer::new(4 * MIB);
            let mut daemon = stopped(&customer, mode, seed);
            let (parent, child) = (daemon.pid(), daemon.data_plane());
            assert_ne!(parent, child);
            kill(if data_plane { child } else { parent });
            assert!(!daemon.wait().success());
            wait_for_the_end_of(child);
            assert_nothing_lost(&customer, seed);
        }
    }
}
