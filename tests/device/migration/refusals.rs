//! A destination that does not get the disk, and a source that cannot let go of it.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use test_support::frontend::client::Status;
use test_support::frontend::device::{Setup, feature};
use test_support::frontend::message::{Connection, protocol, request, words};
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::small_fs::{FailingFs, SmallFs};
use test_support::{Customer, Daemon, Disk};

use super::{MIB_8, await_shown, incoming, is_qsd, shown};

/// Arrives at a destination that refuses the ring, and goes back to the source.
fn refused_and_back(vmm: &mut Vmm, destination: &Daemon, disk: &Disk, code: &str) {
    let bases = vmm.suspend().unwrap();
    let inflight = vmm.frontend.inflight.take();
    let left = vmm.leave(Connection::open(destination.socket()).unwrap());
    // Its messages may be answered, or not any more.
    let _ = vmm.arrive(&bases);
    vmm.await_end();
    let now = shown(disk);
    let waiting = now["waiting"].as_array().unwrap();
    let refused = waiting
        .iter()
        .find_map(|one| one["refused"]["code"].as_str());
    assert_eq!(refused, Some(code), "{now}");
    assert!(
        destination.log().contains("is not started"),
        "{}",
        destination.log()
    );
    vmm.go_back((left, inflight), &bases).unwrap();
}

fn assert_reads(queue: &mut Queue, data: &[u8]) {
    queue.arena.reset();
    assert!(queue.read(0, data.len()).as_deref() == Ok(data));
}

/// The guest goes on at the source, whose key waits there; with the vault back it can be moved.
#[test]
fn a_destination_that_gets_no_key_starts_no_ring() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let options = ["--key-check-interval", "1h", "--incoming"];
    let source = customer.disk.attach_with("disk", &options[..2]);
    let destination = customer.disk.attach_with("disk", &options);
    let setup = Setup::default().with_inflight();
    let (mut vmm, mut queues) = Vmm::of(source.connect_with(&setup), &setup);
    let data = Rng::new(1).bytes(65536);
    queues[0].write(0, &data).unwrap();
    customer.hide_vault();
    let bases = vmm.suspend().unwrap();
    vmm.resume(&bases).unwrap();
    assert_reads(&mut queues[0], &data);
    refused_and_back(&mut vmm, &destination, &customer.disk, "VaultNotFound");
    assert_reads(&mut queues[0], &data);
    customer.show_vault();
    customer.enable(false);
    refused_and_back(&mut vmm, &destination, &customer.disk, "KeyDisabled");
    assert_reads(&mut queues[0], &data);
    customer.enable(true);
    let bases = vmm.suspend().unwrap();
    vmm.migrate(destination.socket(), &bases).unwrap();
    assert_reads(&mut queues[1], &data);
    // It is guarded there from now on, and every use of the key is on record.
    let audit = customer.disk.text("audit list -o json");
    assert!(audit.matches("DekHandOver").count() >= 3, "{audit}");
}

/// A sync that failed stays with the source, and with it the disk.
#[test]
fn a_source_that_cannot_flush_keeps_the_disk() {
    let Some(fs) = FailingFs::mount() else {
        return;
    };
    if is_qsd() {
        return;
    }
    let disk = fs.disk(MIB_8);
    let source = disk.attach_with("disk", &[]);
    let destination = incoming(&disk);
    let setup = Setup::default().with_inflight();
    let (mut vmm, mut queues) = Vmm::of(source.connect_with(&setup), &setup);
    let data = Rng::new(1).bytes(65536);
    queues[0].write(0, &data).unwrap();
    let failing = fs.fail();
    let bases = vmm.suspend().unwrap();
    let inflight = vmm.frontend.inflight.take();
    let left = vmm.leave(Connection::open(destination.socket()).unwrap());
    let _ = vmm.arrive(&bases);
    vmm.await_end();
    let now = shown(&disk);
    assert_eq!(now["serving"]["disk"], "Held", "{now}");
    assert!(
        source.log().contains("is awaited and not let go of"),
        "{}",
        source.log()
    );
    drop(failing);
    vmm.go_back((left, inflight), &bases).unwrap();
    assert_reads(&mut queues[0], &data);
}

/// What waits for space at the source goes on waiting at the destination, where the frontend carries the in-flight
/// region over; then it is done.
#[test]
fn what_waits_for_space_is_carried_over() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    if is_qsd() {
        return;
    }
    let disk = fs.disk(2 * MIB_8);
    let source = disk.attach_with("disk", &[]);
    let destination = incoming(&disk);
    let mut setup = Setup::default().with_inflight();
    setup.protocol |= protocol::GET_VRING_BASE_INFLIGHT;
    let (mut vmm, mut queues) = Vmm::of(source.connect_with(&setup), &setup);
    assert_ne!(vmm.frontend.protocol & protocol::GET_VRING_BASE_INFLIGHT, 0);
    let ballast = fs.fill();
    let data = Rng::new(5).bytes(1 << 20);
    queues[0].arena.reset();
    let pending: Vec<_> = (0..4)
        .map(|i| queues[0].begin_write(2048 * i, &data))
        .collect();
    assert_eq!(queues[0].next_within(Duration::from_millis(800)), None);
    log_all(&mut vmm);
    let bases = vmm.suspend().unwrap();
    assert_ne!(bases[0], queues[0].used_idx(), "some are in flight");
    assert_eq!(vmm.frontend.inflight.as_ref().unwrap().marked(0).len(), 4);
    vmm.migrate(destination.socket(), &bases).unwrap();
    assert_eq!(queues[0].next_within(Duration::from_millis(800)), None);
    drop(ballast);
    for pending in pending {
        assert_eq!(queues[0].complete(pending).status, Status::Ok);
    }
    for i in 0..4 {
        queues[0].arena.reset();
        assert!(queues[0].read(2048 * i, data.len()).as_ref() == Ok(&data));
    }
    await_shown(&disk, |now| now["serving"]["disk"] == "Held");
}

/// As while a guest is migrated.
fn log_all(vmm: &mut Vmm) {
    let frontend = &mut vmm.frontend;
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
}
