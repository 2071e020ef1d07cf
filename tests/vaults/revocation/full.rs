//! What becomes of requests that wait for space on the host when the key is revoked.

use std::time::Duration;

use test_support::Customer;
use test_support::frontend::client::{Pending, Status};
use test_support::frontend::queue::Queue;
use test_support::rng::Rng;
use test_support::small_fs::SmallFs;

use super::{FAIL, MIB, PAUSE};

/// Longer than two tries of a request that waits.
const A_WHILE: Duration = Duration::from_millis(1200);

/// Some writes that find no space.
fn stalled(queue: &mut Queue, data: &[u8]) -> Vec<Pending> {
    queue.arena.reset();
    let pending = (0..4).map(|i| queue.begin_write(2048 * i, data)).collect();
    assert_eq!(queue.next_within(A_WHILE), None);
    pending
}

#[test]
fn they_wait_on_where_requests_wait_for_the_key() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let customer = Customer::of(fs.disk(16 * MIB));
    let daemon = customer.attach(PAUSE);
    let mut frontend = daemon.connect();
    let ballast = fs.fill();
    let data = Rng::new(1).bytes(MIB as usize);
    let queue = &mut frontend.queues[0];
    let pending = stalled(queue, &data);
    customer.enable(false);
    customer.wait_stopped();
    // Space alone does not help any more.
    drop(ballast);
    assert_eq!(queue.next_within(A_WHILE), None);
    customer.enable(true);
    customer.wait_served();
    for pending in pending {
        assert_eq!(queue.complete(pending).status, Status::Ok);
    }
    for i in 0..4 {
        assert!(queue.read(2048 * i, data.len()).as_ref() == Ok(&data));
    }
}

#[test]
fn they_fail_where_requests_fail_without_the_key() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let customer = Customer::of(fs.disk(16 * MIB));
    let daemon = customer.attach(FAIL);
    let mut frontend = daemon.connect();
    let ballast = fs.fill();
    let queue = &mut frontend.queues[0];
    let pending = stalled(queue, &[1; 1 << 20]);
    customer.enable(false);
    for pending in pending {
        assert_eq!(queue.complete(pending).status, Status::IoErr);
    }
    customer.wait_stopped();
    drop(ballast);
    customer.enable(true);
    customer.wait_served();
    queue.assert_serves(0, 3);
}
