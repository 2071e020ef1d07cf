//! Processes that are killed at a random moment of an upgrade.

use std::process::{Child, Stdio};
use std::time::Duration;

use test_support::frontend::vmm::Vmm;
use test_support::{AttachOptions, Daemon, Disk, await_end, kill, times};

use super::{assert_goes_on, command, upgrade};
use crate::crash::load::{self, Mix, World};
use crate::crash::random;
use crate::supervise::is_qsd;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    OldDataPlane,
    NewDataPlane,
    OldLauncher,
    NewLauncher,
}

fn rounds() -> u32 {
    times("SEALDISK_UPGRADE_KILLS", 8)
}

/// The processes of a kind among those of the daemon.
fn of_kind(daemon: &Daemon, kind: &str) -> Vec<u32> {
    let is_of_kind = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).nth(1) == Some(kind.as_bytes())
    };
    daemon.processes().into_iter().filter(is_of_kind).collect()
}

/// Kills the victim as soon as there is one, if there is one before the upgrade has come to its end.
fn strike(daemon: &Daemon, victim: Victim, before: &[u32], upgrade: &mut Child) {
    loop {
        let processes = match victim {
            Victim::OldDataPlane | Victim::NewDataPlane => of_kind(daemon, "data-plane"),
            Victim::OldLauncher | Victim::NewLauncher => of_kind(daemon, "data-plane-launcher"),
        };
        let is_old = |pid: &u32| before.contains(pid);
        let found = processes.iter().find(|pid| {
            is_old(pid) == matches!(victim, Victim::OldDataPlane | Victim::OldLauncher)
        });
        if let Some(pid) = found {
            return kill(*pid);
        }
        if upgrade.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing is lost, whoever it is and whenever it is.
#[test]
fn kills_at_any_moment_of_an_upgrade_lose_nothing() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut world = World::new();
    for round in 0..rounds() {
        let victims = [
            Victim::OldDataPlane,
            Victim::NewDataPlane,
            Victim::OldLauncher,
            Victim::NewLauncher,
        ];
        let victim = victims[round as usize % victims.len()];
        let delay = Duration::from_millis(rng.within(0..150));
        let frontend = daemon.connect_with(&load::setup(round));
        let mut succeeded = false;
        world.run_across(frontend.queues, Mix::All, rng.next(), |progress| {
            std::thread::sleep(Duration::from_millis(100));
            let before = daemon.processes();
            let mut asked = command(&disk, None);
            let asked = asked.stdout(Stdio::null()).stderr(Stdio::null());
            let mut asked = asked.spawn().unwrap();
            std::thread::sleep(delay);
            strike(&daemon, victim, &before, &mut asked);
            succeeded = asked.wait().unwrap().success();
            progress.await_those_in_flight();
        });
        eprintln!("round {round}: {victim:?} after {delay:?}, upgraded: {succeeded}");
        drop(frontend.conn);
        world.verify(&daemon);
        // Without its launcher a data plane serves on, and cannot be followed by another.
        if of_kind(&daemon, "data-plane-launcher").is_empty() {
            daemon.kill();
            daemon = disk.attach(&AttachOptions::default());
        }
    }
    upgrade(&disk, None);
    world.verify(&daemon);
    daemon.stop();
}

/// When the attach process dies in the midst of an upgrade, of its data plane or of itself, the next attach goes on.
#[test]
fn deaths_of_the_attach_process_lose_nothing() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut world = World::new();
    for round in 0..rounds() {
        let delay = Duration::from_millis(rng.within(0..250));
        let setup = load::setup(round).with_inflight();
        let (mut vmm, queues) = Vmm::of(daemon.connect_with(&setup), &setup);
        world.run_across(queues, Mix::All, rng.next(), |progress| {
            std::thread::sleep(Duration::from_millis(100));
            let mut asked = command(&disk, None);
            let asked = asked.stdout(Stdio::null()).stderr(Stdio::null());
            let mut asked = asked.spawn().unwrap();
            std::thread::sleep(delay);
            let processes = daemon.processes();
            kill(daemon.pid());
            daemon.wait();
            asked.wait().unwrap();
            vmm.await_end();
            processes.into_iter().for_each(await_end);
            daemon = disk.attach(&AttachOptions::default());
            vmm.reconnect(daemon.socket()).unwrap();
            progress.await_those_in_flight();
        });
        eprintln!("round {round}: the attach process is killed after {delay:?}");
        drop(vmm);
        world.verify(&daemon);
    }
    daemon.stop();
}

/// The launcher that serves is gone: the disk is served on, and it is said that it cannot be upgraded.
#[test]
fn without_its_launcher_a_disk_is_served_on() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let launcher = of_kind(&daemon, "data-plane-launcher")[0];
    kill(launcher);
    await_end(launcher);
    let said = super::refusal(&disk, None);
    assert!(said.contains("its launcher has ended"), "{said}");
    assert_goes_on(&mut frontend, 1);
}
