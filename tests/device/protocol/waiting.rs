//! Rings that are stopped while their requests wait for space on the host: a frontend that has an in-flight region keeps
//! them, and they are done when the ring is started again. `virsh suspend` on a host that is full gives no error.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use test_support::frontend::client::{NO_STATUS, Pending, Status};
use test_support::frontend::device::{Setup, feature};
use test_support::frontend::message::{request, words};
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::small_fs::{Ballast, SmallFs};
use test_support::{Daemon, Disk};

use super::MIB;
use super::full::{assert_all_written, assert_waits, attach, begin_writes, both, eight};

/// A guest with writes that wait for space.
struct Guest {
    daemon: Daemon,
    disk: Disk,
    vmm: Vmm,
    queues: Vec<Queue>,
    data: Vec<Vec<u8>>,
    pending: Vec<Pending>,
    ballast: Ballast,
}

impl Guest {
    fn new(fs: &SmallFs) -> Self {
        let disk = fs.disk(64 * MIB);
        let daemon = attach(&disk, &[]);
        let setup = Setup::default().with_inflight();
        let (vmm, mut queues) = Vmm::of(daemon.connect_with(&setup), &setup);
        queues[0].assert_serves(0, 1);
        let ballast = fs.fill();
        queues[0].arena.reset();
        let data = eight(10);
        let pending = begin_writes(&mut queues[0], &data);
        assert_waits(&mut queues[0]);
        Self {
            disk,
            daemon,
            vmm,
            queues,
            data,
            pending,
            ballast,
        }
    }

    /// That none of the writes has come back, and all are in flight.
    fn assert_in_flight(&self) {
        let queue = &self.queues[0];
        for pending in &self.pending {
            assert_eq!(queue.mem.read(pending.status, 1), [NO_STATUS]);
        }
        assert_eq!(queue.used_idx(), queue.seen);
        let region = self.vmm.frontend.inflight.as_ref().unwrap();
        let mut heads: Vec<u16> = self.pending.iter().map(|pending| pending.head).collect();
        heads.sort_unstable();
        assert_eq!(region.marked(0), heads);
    }

    /// Makes space, after which all writes are done.
    fn finish(mut self) {
        drop(self.ballast);
        let queue = &mut self.queues[0];
        assert_all_written(queue, self.pending, &self.data);
        queue.flush().unwrap();
        self.queues[1].assert_serves(0, 2);
    }

    fn attach_again(&mut self) {
        self.daemon = attach(&self.disk, &[]);
        self.vmm.reconnect(self.daemon.socket()).unwrap();
    }
}

#[test]
fn a_guest_that_is_suspended_waits_for_space_when_it_goes_on() {
    both(|fs| {
        let mut guest = Guest::new(fs);
        for _ in 0..2 {
            let bases = guest.vmm.suspend().unwrap();
            assert_eq!(bases[0], guest.queues[0].avail_idx);
            guest.assert_in_flight();
            guest.vmm.resume(&bases).unwrap();
            assert_waits(&mut guest.queues[0]);
            guest.assert_in_flight();
        }
        guest.finish();
    });
}

#[test]
fn a_frontend_that_connects_again_waits_for_space() {
    both(|fs| {
        let mut guest = Guest::new(fs);
        let socket = guest.daemon.socket().to_owned();
        guest.vmm.reconnect(&socket).unwrap();
        assert_waits(&mut guest.queues[0]);
        guest.assert_in_flight();
        guest.finish();
    });
}

#[test]
fn requests_that_wait_for_space_outlive_kill_9() {
    both(|fs| {
        let mut guest = Guest::new(fs);
        guest.daemon.kill();
        guest.attach_again();
        assert_waits(&mut guest.queues[0]);
        guest.assert_in_flight();
        guest.finish();
    });
}

#[test]
fn requests_that_wait_for_space_outlive_sigterm() {
    both(|fs| {
        let mut guest = Guest::new(fs);
        // The last flush may find no space either.
        let _ = guest.daemon.terminate();
        guest.vmm.await_end();
        guest.assert_in_flight();
        guest.attach_again();
        assert_waits(&mut guest.queues[0]);
        guest.finish();
    });
}

/// The host that the guest is on its way to gets its rings, but not the in-flight region.
#[test]
fn while_pages_are_logged_a_stopped_ring_returns_what_waits() {
    both(|fs| {
        let mut guest = Guest::new(fs);
        let frontend = &mut guest.vmm.frontend;
        let bytes = frontend.mem.regions()[2].end() / 4096 / 8;
        let log = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&log, bytes).unwrap();
        let (body, fds) = (words(&[bytes, 0]), [log.as_fd()]);
        frontend
            .conn
            .call(request::SET_LOG_BASE, &body, &fds)
            .unwrap();
        let logged = frontend.features | feature::LOG_ALL;
        frontend.set_features(logged).unwrap();
        let bases = guest.vmm.suspend().unwrap();
        let queue = &mut guest.queues[0];
        assert_eq!(bases[0], queue.used_idx(), "some are in flight");
        for pending in std::mem::take(&mut guest.pending) {
            assert_eq!(queue.complete(pending).status, Status::IoErr);
        }
        let region = guest.vmm.frontend.inflight.as_ref().unwrap();
        assert!(region.marked(0).is_empty());
    });
}
