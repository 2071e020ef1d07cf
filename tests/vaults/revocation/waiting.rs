//! Requests in flight that wait for the key too: a ring that is stopped meanwhile keeps them, for a frontend that has
//! the in-flight region.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use test_support::frontend::client::{NO_STATUS, Pending, Status};
use test_support::frontend::device::{Setup, feature};
use test_support::frontend::message::{request, words};
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::small_fs::{Ballast, SmallFs};
use test_support::{Customer, Daemon};

use super::{MIB, PAUSE};

const WHILE: Duration = Duration::from_millis(300);

/// A guest with writes in flight that wait for space, whose key is revoked.
struct Guest {
    daemon: Daemon,
    customer: Customer,
    vmm: Vmm,
    queues: Vec<Queue>,
    pending: Vec<Pending>,
    ballast: Ballast,
}

impl Guest {
    fn new(fs: &SmallFs) -> Self {
        let customer = Customer::of(fs.disk(64 * MIB));
        let daemon = customer.attach(PAUSE);
        let setup = Setup::default().with_inflight();
        let (vmm, mut queues) = Vmm::of(daemon.connect_with(&setup), &setup);
        let ballast = fs.fill();
        let queue = &mut queues[0];
        let pending = (0..8)
            .map(|n| queue.begin_write(n * 512, &[n as u8 + 1; 256 << 10]))
            .collect();
        assert_eq!(queue.next_within(WHILE), None);
        customer.enable(false);
        customer.wait_stopped();
        Self {
            customer,
            daemon,
            vmm,
            queues,
            pending,
            ballast,
        }
    }

    fn assert_in_flight(&mut self) {
        let queue = &mut self.queues[0];
        assert_eq!(queue.next_within(WHILE), None);
        for pending in &self.pending {
            assert_eq!(queue.mem.read(pending.status, 1), [NO_STATUS]);
        }
        let region = self.vmm.frontend.inflight.as_ref().unwrap();
        assert_eq!(region.marked(0).len(), self.pending.len());
    }

    /// Stops the rings and starts them again: now those in flight are another's, which are to be done again.
    fn suspend_for_a_moment(&mut self) {
        let bases = self.vmm.suspend().unwrap();
        assert_eq!(bases[0], self.queues[0].avail_idx);
        self.assert_in_flight();
        self.vmm.resume(&bases).unwrap();
        self.assert_in_flight();
    }

    fn finish(mut self) {
        drop(self.ballast);
        let queue = &mut self.queues[0];
        for pending in self.pending {
            assert_eq!(queue.complete(pending).status, Status::Ok);
        }
        for n in 0..8 {
            let written = queue.read(n * 512, 256 << 10);
            assert!(written == Ok(vec![n as u8 + 1; 256 << 10]), "write {n}");
        }
    }
}

fn guest(test: fn(Guest)) {
    if let Some(fs) = SmallFs::mount("tmpfs") {
        test(Guest::new(&fs));
    }
}

#[test]
fn a_ring_that_is_stopped_without_a_key_keeps_what_is_in_flight() {
    guest(|mut guest| {
        guest.suspend_for_a_moment();
        guest.suspend_for_a_moment();
        guest.customer.enable(true);
        guest.customer.wait_served();
        guest.finish();
    });
}

#[test]
fn what_is_in_flight_without_a_key_outlives_both_processes() {
    guest(|mut guest| {
        guest.daemon.kill();
        guest.assert_in_flight();
        guest.customer.enable(true);
        guest.daemon = guest.customer.attach(PAUSE);
        guest.vmm.reconnect(guest.daemon.socket()).unwrap();
        guest.finish();
    });
}

/// The host that the guest is on its way to gets its rings, but not the in-flight region.
#[test]
fn while_pages_are_logged_what_waits_for_the_key_is_returned() {
    guest(|mut guest| {
        guest.suspend_for_a_moment();
        let frontend = &mut guest.vmm.frontend;
        let bytes = frontend.mem.regions()[2].end() / 4096 / 8;
        let log = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&log, bytes).unwrap();
        let (body, fds) = (words(&[bytes, 0]), [log.as_fd()]);
        let conn = &frontend.conn;
        conn.call(request::SET_LOG_BASE, &body, &fds).unwrap();
        let logged = frontend.features | feature::LOG_ALL;
        frontend.set_features(logged).unwrap();
        let bases = guest.vmm.suspend().unwrap();
        let queue = &mut guest.queues[0];
        assert_eq!(bases[0], queue.used_idx(), "some are in flight");
        for pending in guest.pending {
            assert_eq!(queue.complete(pending).status, Status::IoErr);
        }
        let region = guest.vmm.frontend.inflight.as_ref().unwrap();
        assert!(region.marked(0).is_empty());
    });
}
