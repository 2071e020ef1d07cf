//! What is left of a DEK in the memory of the processes that had it.

use test_support::key_search::{Needle, may_read_memory, needles, search, search_what_stays};
use test_support::{Customer, Daemon, PATIENCE};

use super::load::Load;
use super::{FAIL, MIB, PAUSE};

/// Both processes.
fn search_both(daemon: &Daemon, needles: &[Needle]) -> [Vec<String>; 2] {
    [
        search_what_stays(daemon.pid(), needles),
        search(daemon.data_plane(), needles),
    ]
}

/// Before the revocation the DEK and its schedule are in the data plane, and in the data plane only;
/// afterwards nothing of them is in either process; and the same again when it was restored.
fn no_key_is_left(mode: &'static [&'static str], upgrades: bool) {
    if !may_read_memory() {
        return;
    }
    let customer = Customer::new(16 * MIB);
    let needles = needles(&customer.dek());
    let daemon = customer.attach(mode);
    let mut frontend = daemon.connect();
    let (first, second) = frontend.queues.split_at_mut(1);
    let queues = [&mut first[0], &mut second[0]];
    let mut loads = [0, 1].map(|n| Load::new(queues[n], n as u64 * Load::LEN, 11 + n as u64));
    for (load, queue) in loads.iter_mut().zip(queues) {
        load.run_until(queue, PATIENCE, |stats| stats.done > 300);
        load.finish(queue);
    }
    let held = |found: &[String], what: &str| found.iter().any(|f| f.starts_with(what));
    for _ in 0..2 {
        customer.wait_served();
        // Large enough for threads that help, where there are any.
        let large = vec![7; MIB as usize];
        let queue = &mut frontend.queues[0];
        queue.write(8 * MIB / 512, &large).unwrap();
        assert!(queue.read(8 * MIB / 512, large.len()) == Ok(large));
        if upgrades {
            customer.ok("upgrade disk");
            loads[0].run_until(&mut frontend.queues[0], PATIENCE, |stats| stats.done > 600);
            loads[0].finish(&mut frontend.queues[0]);
        }
        let [control, data_plane] = search_both(&daemon, &needles);
        assert!(held(&data_plane, "the DEK"), "the search finds nothing");
        assert!(held(&data_plane, "round key 7 of half 2"), "{data_plane:?}");
        assert!(control.is_empty(), "in the attach process: {control:#?}");

        customer.enable(false);
        customer.wait_stopped();
        let [control, data_plane] = search_both(&daemon, &needles);
        assert!(control.is_empty(), "in the attach process: {control:#?}");
        assert!(data_plane.is_empty(), "in the data plane: {data_plane:#?}");
        customer.enable(true);
    }
    customer.wait_served();
    frontend.queues[0].assert_serves(0, 5);
}

#[test]
fn no_key_is_left_after_a_revocation() {
    no_key_is_left(FAIL, false);
}

/// Each helper has a cipher of its own for each of the disk's.
#[test]
fn no_key_is_left_in_threads_that_help() {
    const HELPED: &[&str] = &[
        "--key-check-interval",
        "1s",
        "--on-revoke",
        "error",
        "--crypto-threads",
        "2",
        // With more of them an ordinary limit of locked memory is too little for helpers.
        "--num-queues",
        "2",
    ];
    no_key_is_left(HELPED, false);
}

#[test]
fn no_key_is_left_after_a_pause() {
    no_key_is_left(PAUSE, false);
}

/// Nor where the keys were on their way to another program.
#[test]
fn no_key_is_left_after_an_upgrade() {
    no_key_is_left(FAIL, true);
}
