//! Deaths at each step of a migration, under load.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::frontend::device::Setup;
use test_support::frontend::message::Connection;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{Daemon, Disk, PATIENCE, alive, await_end, kill, stop};

use super::super::crash::random;
use super::load::{self, Mix, World};
use super::lock_log::LockLog;
use super::{MIB_8, incoming, is_qsd, migrations, setup};

/// The longest time after the rings have stopped at which somebody is killed.
const STEPS: Duration = Duration::from_millis(120);

/// Waits for a moment within the steps of a migration, then kills.
fn kill_at_a_step(rng: &mut Rng, victims: Vec<u32>) -> std::thread::JoinHandle<()> {
    let delay = Duration::from_micros(rng.within(0..STEPS.as_micros() as u64));
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        victims.iter().for_each(|victim| kill(*victim));
        let end = Instant::now() + PATIENCE;
        while victims.iter().any(|victim| alive(*victim)) {
            assert!(Instant::now() < end, "{victims:?} do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

/// All processes of an attach, its data plane first.
fn all_of(daemon: &Daemon) -> Vec<u32> {
    daemon.processes().into_iter().rev().collect()
}

/// Connects until it serves, as QEMU does.
fn reconnect(vmm: &mut Vmm, to: &Daemon) {
    let end = Instant::now() + PATIENCE;
    while let Err(error) = vmm.reconnect(to.socket()) {
        assert!(Instant::now() < end, "{error}\n{}", to.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Arrives at the destination, whatever becomes of its data plane on the way.
fn arrive(vmm: &mut Vmm, at: &Daemon, bases: &[u16]) -> Connection {
    let conn = Connection::open(at.socket()).unwrap();
    let left = vmm.leave(conn);
    if vmm.arrive(bases).is_err() {
        reconnect(vmm, at);
    }
    left
}

/// The data plane of either end.
#[test]
fn a_data_plane_that_dies_at_any_step_is_not_noticed() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut log = LockLog::default();
    let mut source = disk.attach_with("disk", &[]);
    let setup = setup(0);
    let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
    let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
        for round in 0..migrations() {
            let destination = incoming(&disk);
            let victim = match round % 2 {
                0 => source.data_plane(),
                _ => destination.data_plane(),
            };
            let bases = vmm.suspend().unwrap();
            let killed = kill_at_a_step(&mut rng, vec![victim]);
            let left = arrive(&mut vmm, &destination, &bases);
            killed.join().unwrap();
            if vmm.frontend.barrier().is_err() {
                reconnect(&mut vmm, &destination);
            }
            if !progress.await_those_in_flight() {
                return;
            }
            drop(left);
            log.read(&source);
            std::mem::replace(&mut source, destination).stop();
        }
    });
    eprintln!("{done} requests");
    drop(vmm);
    world.verify(&source);
    log.read(&source);
    log.assert_one_at_a_time();
}

/// All of the source, while the guest is on its way: what it had completed is there for the destination.
#[test]
fn a_source_that_dies_at_any_step_leaves_everything() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut log = LockLog::default();
    let mut source = disk.attach_with("disk", &[]);
    let setup = setup(0);
    let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
    let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
        for _ in 0..migrations() {
            std::thread::sleep(Duration::from_millis(rng.within(20..100)));
            let destination = incoming(&disk);
            let bases = vmm.suspend().unwrap();
            let killed = kill_at_a_step(&mut rng, all_of(&source));
            let left = arrive(&mut vmm, &destination, &bases);
            killed.join().unwrap();
            if !progress.await_those_in_flight() {
                return;
            }
            drop(left);
            log.read_killed(&source);
            source = destination;
        }
    });
    eprintln!("{done} requests");
    drop(vmm);
    world.verify(&source);
    log.read(&source);
    log.assert_one_at_a_time();
}

/// All of the destination: the guest goes on at the source, which takes the disk back.
#[test]
fn a_destination_that_dies_at_any_step_gives_the_disk_back() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut log = LockLog::default();
    let source = disk.attach_with("disk", &[]);
    let setup = setup(0);
    let (mut vmm, queues) = Vmm::of(source.connect_with(&setup), &setup);
    let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
        for _ in 0..migrations() {
            std::thread::sleep(Duration::from_millis(rng.within(20..100)));
            let destination = incoming(&disk);
            let bases = vmm.suspend().unwrap();
            let conn = Connection::open(destination.socket()).unwrap();
            let left = vmm.leave(conn);
            let killed = kill_at_a_step(&mut rng, all_of(&destination));
            // It has no answer for what it died over.
            let _ = vmm.arrive(&bases);
            killed.join().unwrap();
            log.read_killed(&destination);
            // The memory is the same here, so what was in flight there is in flight here.
            let (inflight, used) = (vmm.frontend.inflight.take(), vmm.used());
            vmm.go_back((left, inflight), &used).unwrap();
            if !progress.await_those_in_flight() {
                return;
            }
        }
    });
    eprintln!("{done} requests");
    drop(vmm);
    world.verify(&source);
    log.read(&source);
    log.assert_one_at_a_time();
    source.stop();
}

/// A destination whose data plane stands still over the disk that it is given: it may take it any time, so the attach
/// keeps it for the next one.
#[test]
fn a_data_plane_that_does_not_say_that_it_has_the_disk_is_replaced() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut log = LockLog::default();
    let source = disk.attach_with("disk", &[]);
    let setup = Setup::default().with_inflight();
    let (mut vmm, mut queues) = Vmm::of(source.connect_with(&setup), &setup);
    let data = Rng::new(1).bytes(65536);
    queues[0].write(0, &data).unwrap();
    let bases = vmm.suspend().unwrap();
    // It lets go of the disk when that is awaited already.
    stop(source.pid());
    let destination = incoming(&disk);
    let left = vmm.migrate(destination.socket(), &bases).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let silent = destination.data_plane();
    stop(silent);
    source.signal_all(&[source.pid()], Signal::CONT);
    await_log(&destination, "has taken");
    await_end(silent);
    queues[0].arena.reset();
    assert!(queues[0].read(0, data.len()).as_ref() == Ok(&data));
    let said = destination.log();
    assert!(said.contains("does not answer, so it is killed"), "{said}");
    assert!(!said.contains("lets go of"), "{said}");
    drop(left);
    log.read(&source);
    log.read(&destination);
    log.assert_one_at_a_time();
    source.stop();
    drop(vmm);
    destination.stop();
}

fn await_log(daemon: &Daemon, what: &str) {
    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains(what) {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}
