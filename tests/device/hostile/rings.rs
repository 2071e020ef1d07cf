//! Rings whose indices lie.

use std::time::Duration;

use test_support::PATIENCE;
use test_support::frontend::client::kind;
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;

use super::{KEPT, Victim};

/// Long enough for what must not happen to have happened.
const A_WHILE: Duration = Duration::from_millis(150);

/// Stops a queue and sets it up again from index 0, as a VMM does when the guest resets it.
fn reset_queue(frontend: &mut Frontend, index: u32) {
    frontend.stop_queue(index).unwrap();
    frontend.queues[index as usize].reset(0);
    frontend.start_queue(index).unwrap();
    frontend.barrier().unwrap();
}

#[test]
fn an_available_index_that_jumps_breaks_the_ring_and_only_that() {
    let victim = Victim::new();
    for setup in [Setup::default(), Setup::default().with(feature::EVENT_IDX)] {
        for jump in [129u16, 130, 1000, 32_768, 65_535] {
            let mut frontend = victim.connect_with(&setup);
            let queue = &mut frontend.queues[0];
            queue.assert_serves(KEPT, 1);
            let seen = queue.seen;
            queue.set_avail_idx(queue.avail_idx.wrapping_add(jump));
            queue.kick.signal();
            assert!(
                queue.err.wait(PATIENCE),
                "a jump by {jump}: the error fd is silent"
            );
            // Broken for good: even a correct index doesn't bring it back.
            queue.set_avail_idx(queue.avail_idx);
            queue.kick.signal();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(queue.used_idx(), seen, "a jump by {jump}: it went on");
            frontend.queues[1].assert_serves(KEPT + 16, 2);
            // Until it is set up again.
            reset_queue(&mut frontend, 0);
            frontend.queues[0].assert_serves(KEPT, 3);
            frontend.queues[1].assert_serves(KEPT + 16, 4);
            victim.assert_unharmed_after(frontend, &format!("a jump by {jump}"));
        }
    }
}

#[test]
fn an_index_that_jumps_with_requests_in_flight() {
    let victim = Victim::new();
    for round in 0..10u64 {
        let mut frontend = victim.connect();
        let queue = &mut frontend.queues[0];
        for i in 0..16 {
            let at = queue.arena.alloc(65536, 4096);
            queue.request(kind::OUT, KEPT + i * 128, &[Seg::out(at, 65536)]);
        }
        std::thread::sleep(Duration::from_micros(100 * round));
        queue.set_avail_idx(queue.avail_idx.wrapping_add(5000));
        queue.kick.signal();
        assert!(queue.err.wait(PATIENCE));
        frontend.queues[1].assert_serves(KEPT + 4000, 2);
        reset_queue(&mut frontend, 0);
        frontend.queues[0].assert_serves(KEPT, 3);
        victim.assert_unharmed_after(frontend, "a jump with requests in flight");
    }
}

#[test]
fn a_broken_ring_does_not_flood_the_log() {
    let victim = Victim::new();
    let before = victim.daemon.log().len();
    let mut frontend = victim.connect();
    for _ in 0..200 {
        let queue = &mut frontend.queues[0];
        queue.set_avail_idx(queue.avail_idx.wrapping_add(5000));
        queue.kick.signal();
        assert!(queue.err.wait(PATIENCE));
        reset_queue(&mut frontend, 0);
    }
    let said = victim.daemon.log().len() - before;
    assert!(said < 20_000, "{said} bytes of log for 200 broken rings");
    victim.assert_unharmed_after(frontend, "200 broken rings");
}

#[test]
fn bad_chains_do_not_flood_the_log() {
    let victim = Victim::new();
    let before = victim.daemon.log().len();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for _ in 0..2000 {
        let head = queue.submit(&[Seg::out(0x7777_0000_0000, 16)]);
        assert_eq!(queue.wait_for(head).len, 0);
    }
    let said = victim.daemon.log().len() - before;
    assert!(said < 20_000, "{said} bytes of log for 2000 bad chains");
    victim.assert_unharmed_after(frontend, "2000 bad chains");
}

#[test]
fn heads_that_are_available_twice() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let queue = &mut frontend.queues[0];
    for _ in 0..20 {
        queue.arena.reset();
        let at = queue.arena.alloc(4096, 4096);
        let pending = queue.prepare(kind::IN, KEPT, &[Seg::into(at, 4096)]);
        for _ in 0..8 {
            queue.push(pending.head);
        }
        queue.kick.signal();
        for _ in 0..8 {
            queue.expect(pending.head);
            assert!(matches!(queue.next_used().len, 0 | 4097));
        }
    }
    frontend.queues[1].assert_serves(KEPT, 2);
    victim.assert_unharmed_after(frontend, "heads that are available twice");
}

/// The whole ring at once, of garbage.
#[test]
fn a_ring_full_of_garbage() {
    let victim = Victim::new();
    for seed in 0..8 {
        let mut frontend = victim.connect();
        let mut rng = Rng::new(seed);
        let queue = &mut frontend.queues[0];
        queue.mem.write(queue.desc, &rng.bytes(16 * 128));
        for head in 0..128 {
            queue.push(head);
        }
        queue.kick.signal();
        std::thread::sleep(A_WHILE / 4);
        frontend.queues[1].assert_serves(KEPT, 2);
        reset_queue(&mut frontend, 0);
        frontend.queues[0].assert_serves(KEPT, 3);
        victim.assert_unharmed_after(frontend, "a ring full of garbage");
    }
}

/// A guest that kicks without end gets nothing for it, and its neighbour is served.
#[test]
fn a_storm_of_kicks() {
    let victim = Victim::new();
    let mut frontend = victim.connect();
    let (storm, calm) = frontend.queues.split_at_mut(1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                storm[0].kick.signal();
            }
        });
        for round in 0..50 {
            calm[0].assert_serves(KEPT, round);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    storm[0].assert_serves(KEPT + 16, 1);
    victim.assert_unharmed_after(frontend, "a storm of kicks");
}

/// The used ring's own words are the guest's to scribble on.
#[test]
fn a_guest_that_writes_the_used_ring() {
    let victim = Victim::new();
    for setup in [Setup::default(), Setup::default().with(feature::EVENT_IDX)] {
        let mut frontend = victim.connect_with(&setup);
        let queue = &mut frontend.queues[0];
        for round in 0..20u64 {
            queue.arena.reset();
            let at = queue.arena.alloc(4096, 4096);
            queue.request(kind::IN, KEPT, &[Seg::into(at, 4096)]);
            queue
                .mem
                .write(queue.used, &Rng::new(round).bytes(6 + 8 * 128));
            std::thread::sleep(Duration::from_millis(2));
        }
        frontend.queues[1].assert_serves(KEPT, 2);
        reset_queue(&mut frontend, 0);
        frontend.queues[0].assert_serves(KEPT, 3);
        victim.assert_unharmed_after(frontend, "a used ring of garbage");
    }
}
