//! A guest that goes on while its back-end dies under load: the next one gets the same memory, rings and in-flight
//! region from the VMM. Each request comes back once, done once, without an error.

use std::time::Duration;

use test_support::frontend::vmm::Vmm;
use test_support::{AttachOptions, Backend, Daemon, Disk, deaths, kill};

use super::load::{self, Mix, World};
use super::{Victims, random, strike};
use crate::supervise::next_data_plane;

/// How a back-end ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill(Victims),
    Sigterm,
}

impl End {
    fn of(self, daemon: &mut Daemon) {
        match self {
            Self::Kill(victims) => strike(daemon, victims),
            Self::Sigterm => {
                let status = daemon.terminate();
                let log = daemon.log();
                assert!(status.success(), "after SIGTERM: {status}\n{log}");
            }
        }
    }
}

/// With each kind of ring, lets the back-end end so often.
fn outlives(end: End) {
    if Backend::chosen() != Backend::Sealdisk {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let mut daemon = disk.attach(&AttachOptions::default());
    for round in 0..3 {
        let setup = load::setup(round).with_inflight();
        let (mut vmm, queues) = Vmm::of(daemon.connect_with(&setup), &setup);
        assert!(vmm.frontend.inflight.is_some(), "no in-flight region");
        let mut ended = 0;
        let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
            for _ in 0..deaths(5).div_ceil(3) {
                std::thread::sleep(Duration::from_millis(rng.within(1..150)));
                if rng.one_in(4) {
                    // A guest that is suspended for a moment.
                    let bases = vmm.suspend().unwrap();
                    vmm.resume(&bases).unwrap();
                }
                end.of(&mut daemon);
                vmm.await_end();
                daemon = disk.attach(&AttachOptions::default());
                vmm.reconnect(daemon.socket()).unwrap();
                ended += 1;
                // Sometimes it dies again before it has done what its predecessor left.
                if !rng.one_in(3) && !progress.await_those_in_flight() {
                    return;
                }
            }
        });
        eprintln!("round {round}: {done} requests, {end:?} {ended} times");
        drop(vmm);
        world.verify(&daemon);
    }
}

/// With each kind of ring, lets the data plane alone die so often. The attach process keeps the connection, so the
/// frontend never opens another.
fn does_not_notice(has_region: bool) {
    if Backend::chosen() != Backend::Sealdisk {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let daemon = disk.attach(&AttachOptions::default());
    for round in 0..3 {
        let setup = match has_region {
            true => load::setup(round).with_inflight(),
            false => load::setup(round),
        };
        let (vmm, queues) = Vmm::of(daemon.connect_with(&setup), &setup);
        assert_eq!(vmm.frontend.inflight.is_some(), has_region);
        let done = world.run_across(queues, Mix::All, rng.next(), |progress| {
            for _ in 0..deaths(5).div_ceil(3) {
                std::thread::sleep(Duration::from_millis(rng.within(1..150)));
                let dead = daemon.data_plane();
                kill(dead);
                next_data_plane(&daemon, dead);
                // Sometimes the next one dies before it has done what its predecessor left.
                if !rng.one_in(3) && !progress.await_those_in_flight() {
                    return;
                }
            }
        });
        eprintln!("round {round}: {done} requests");
        vmm.frontend.barrier().expect("the connection is the same");
        drop(vmm);
        world.verify(&daemon);
    }
}

#[test]
fn a_frontend_that_keeps_nothing_does_not_notice_that_the_data_plane_dies() {
    does_not_notice(false);
}

#[test]
fn a_frontend_with_an_in_flight_region_does_not_notice_it_either() {
    does_not_notice(true);
}

#[test]
fn a_guest_outlives_kill_9_of_both_processes() {
    outlives(End::Kill(Victims::Both));
}

#[test]
fn a_guest_outlives_kill_9_of_the_attach_process() {
    outlives(End::Kill(Victims::Parent));
}

#[test]
fn a_guest_outlives_sigterm_and_another_attach() {
    outlives(End::Sigterm);
}
