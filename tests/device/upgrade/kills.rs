//! Processes that are killed at a random moment of an upgrade.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use test_support::frontend::vmm::Vmm;
use test_support::{AttachOptions, Daemon, Disk, PATIENCE, await_end, kill, stop, times};

use super::{assert_goes_on, await_only_one, command, serving, upgrade};
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

/// Waits until the disk has told that its launcher is no more.
fn await_told(disk: &Disk, daemon: &Daemon) {
    let end = Instant::now() + PATIENCE;
    while !disk.text("disk events disk").contains("LauncherEnded") {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The launcher that serves is gone: that is told at once, the disk is served on, and it is said that it cannot be
/// upgraded. It is detached in order.
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
    await_told(&disk, &daemon);
    assert!(serving(&disk)["launcherEnded"].is_string());
    // Its exit status is that of the alarms.
    let alarms = disk.run("status -o json").stdout;
    let alarms = String::from_utf8_lossy(&alarms);
    assert!(alarms.contains("LauncherEnded"), "{alarms}");
    let said = super::refusal(&disk, None);
    assert!(said.contains("its launcher has ended"), "{said}");
    assert_goes_on(&mut frontend, 1);
    let events = disk.text("disk events disk");
    assert_eq!(events.matches("\"LauncherEnded\"").count(), 2, "{events}");
    drop(frontend);
    daemon.stop();
}

/// A launcher that an upgrade has ended is none whose end is told.
#[test]
fn an_upgrade_tells_of_no_launchers_end() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    upgrade(&disk, None);
    await_only_one(&daemon);
    upgrade(&disk, None);
    await_only_one(&daemon);
    let events = disk.text("disk events disk");
    assert!(!events.contains("LauncherEnded"), "{events}");
    // The end of the one that is there now is told, by the program that has gone on.
    kill(of_kind(&daemon, "data-plane-launcher")[0]);
    await_told(&disk, &daemon);
    daemon.stop();
}

/// Nobody who could kill the data plane is left but the attach process: it does, and ends, since no other one can be
/// started.
#[test]
fn a_data_plane_without_its_launcher_does_not_outlive_the_attach_process() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let mut daemon = disk.attach(&AttachOptions::default());
    let data_plane = of_kind(&daemon, "data-plane")[0];
    kill(of_kind(&daemon, "data-plane-launcher")[0]);
    await_told(&disk, &daemon);
    kill(data_plane);
    await_end(data_plane);
    assert!(!daemon.wait().success(), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("its launcher has ended"), "{log}");
}

/// Whoever has taken a data plane over does not keep its key by the death of the attach process: the launcher gives it
/// half a minute.
#[test]
fn a_data_plane_that_does_not_end_is_killed_after_the_attach_process() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let mut daemon = disk.attach(&AttachOptions::default());
    let data_plane = of_kind(&daemon, "data-plane")[0];
    stop(data_plane);
    kill(daemon.pid());
    daemon.wait();
    await_end(data_plane);
}
