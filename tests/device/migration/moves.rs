//! Migrations under load, finished and cancelled.

use std::time::Duration;

use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk};

use super::load::{self, Mix, World};
use super::lock_log::LockLog;
use super::{await_shown, incoming, is_qsd, migrations, setup, shown};

/// Moves a guest under load to and fro; each request comes back once, done once, without an error, and one attach at
/// a time has the disk.
#[test]
fn a_guest_under_load_is_moved_again_and_again() {
    if is_qsd() {
        return;
    }
    let mut rng = super::super::crash::random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut log = LockLog::default();
    let mut source = disk.attach_with("disk", &[]);
    let mut moved = 0;
    for round in 0..2 {
        let setup = setup(round);
        let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
        let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
            for _ in 0..migrations() / 2 {
                std::thread::sleep(Duration::from_millis(rng.within(20..200)));
                let destination = incoming(&disk);
                let bases = vmm.suspend().unwrap();
                let left = vmm.migrate(destination.socket(), &bases).unwrap();
                if !progress.await_those_in_flight() {
                    return;
                }
                moved += 1;
                drop(left);
                log.read(&source);
                let left = std::mem::replace(&mut source, destination);
                left.stop();
            }
        });
        eprintln!("round {round}: {done} requests");
        drop(vmm);
        world.verify(&source);
    }
    log.read(&source);
    let taken = log.assert_one_at_a_time();
    assert_eq!(taken, 1 + moved);
    source.stop();
    let daemon = disk.attach(&AttachOptions::default());
    world.verify(&daemon);
}

/// A migration that is cancelled has the guest go on where it was, before the destination has begun or after that.
#[test]
fn a_cancelled_migration_takes_the_disk_back() {
    if is_qsd() {
        return;
    }
    let mut rng = Rng::new(11);
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut log = LockLog::default();
    let source = disk.attach_with("disk", &[]);
    let mut destination = incoming(&disk);
    let setup = setup(0);
    let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
    let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
        for cancel in 0..migrations() {
            std::thread::sleep(Duration::from_millis(rng.within(20..150)));
            // It may have been left before it had the disk.
            if shown(&disk)["awaitedBy"].is_null() {
                log.read(&destination);
                std::mem::replace(&mut destination, incoming(&disk)).stop();
            }
            let bases = vmm.suspend().unwrap();
            match cancel % 3 {
                // At once, when the source may be letting go.
                0 => vmm.resume(&bases).unwrap(),
                // When it has.
                1 => {
                    await_shown(&disk, |shown| shown["diskState"] == "Unattached");
                    vmm.resume(&bases).unwrap();
                }
                // When the destination serves already.
                _ => {
                    let inflight = vmm.frontend.inflight.take();
                    let left = vmm.migrate(destination.socket(), &bases).unwrap();
                    std::thread::sleep(Duration::from_millis(rng.within(0..100)));
                    let bases = vmm.suspend().unwrap();
                    vmm.go_back((left, inflight), &bases).unwrap();
                }
            }
            if !progress.await_those_in_flight() {
                return;
            }
        }
    });
    assert!(done > 0);
    drop(vmm);
    world.verify(&source);
    log.read(&source);
    log.read(&destination);
    log.assert_one_at_a_time();
    destination.stop();
    source.stop();
}
