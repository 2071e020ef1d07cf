//! Upgrades that succeed, under load.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use test_support::frontend::device::{Setup, feature};
use test_support::rng::Rng;
use test_support::{AttachOptions, Disk, PATIENCE, times};

use super::{MIB_8, assert_goes_on, await_only_one, command, refused, serving, upgrade};
use crate::crash::load::{self, Mix, World};
use crate::crash::random;
use crate::supervise::is_qsd;
use crate::supervise::load::{DISK_BYTES, run, setup};

/// Upgrades in each test, unless the environment has another number.
fn upgrades() -> u64 {
    times("SEALDISK_UPGRADES", 5).into()
}

/// Every sector is what the guest was told, and every request comes back once.
#[test]
fn nothing_is_lost_or_done_twice() {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(load::DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut world = World::new();
    for round in 0..3 {
        let frontend = daemon.connect_with(&load::setup(round));
        let queues = frontend.queues;
        let mut stalls = Vec::new();
        let done = world.run_across(queues, Mix::All, rng.next(), |_| {
            for _ in 0..upgrades().div_ceil(2) {
                std::thread::sleep(Duration::from_millis(rng.within(1..300)));
                stalls.push(upgrade(&disk, None)["stallMs"].as_u64().unwrap());
            }
        });
        drop(frontend.conn);
        eprintln!("round {round}: {done} requests, stalls of {stalls:?} ms");
        world.verify(&daemon);
    }
    assert_eq!(serving(&disk)["restarts"], 0, "{}", daemon.log());
    await_only_one(&daemon);
    daemon.stop();
}

/// As a guest sees it: how long a request takes at most.
fn are_not_noticed(setup: &Setup, arguments: &'static [&'static str]) {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect_with(setup);
    let mut longest = 0;
    let done = run(&mut frontend, rng.next(), || {
        for _ in 0..upgrades() {
            std::thread::sleep(Duration::from_millis(rng.within(1..300)));
            let stall = upgrade(&disk, None)["stallMs"].as_u64().unwrap();
            longest = longest.max(stall);
        }
    });
    eprintln!(
        "{} upgrades, {} requests: the longest stall was {longest} ms, the longest request took {:?}",
        upgrades(),
        done.requests,
        done.longest
    );
    assert!(done.requests > upgrades(), "no load to speak of");
    assert_goes_on(&mut frontend, 1);
    assert_eq!(serving(&disk)["restarts"], 0, "{}", daemon.log());
    drop(frontend);
    daemon.stop();
}

#[test]
fn upgrades_under_load_are_not_noticed() {
    are_not_noticed(&setup(), &[]);
}

#[test]
fn upgrades_are_not_noticed_with_event_indices_and_indirect_descriptors() {
    let mut setup = setup().with(feature::EVENT_IDX);
    setup.indirect = true;
    are_not_noticed(&setup, &[]);
}

#[test]
fn upgrades_are_not_noticed_where_a_limit_holds_requests_back() {
    are_not_noticed(&setup(), &["--iops", "3000", "--bandwidth", "20MiB"]);
}

/// `disk show`, the events and the audit log tell.
#[test]
fn an_upgrade_is_told() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let version = env!("CARGO_PKG_VERSION");
    let before = serving(&disk);
    assert_eq!(before["version"], version, "{before}");
    let upgraded = upgrade(&disk, None);
    assert_eq!(upgraded["name"], "disk", "{upgraded}");
    assert_eq!(
        (&upgraded["from"], &upgraded["to"]),
        (&version.into(), &version.into())
    );
    let after = serving(&disk);
    assert_eq!(after["version"], version, "{after}");
    assert_eq!(after["lastUpgrade"]["stallMs"], upgraded["stallMs"]);
    assert_eq!(after["restarts"], 0);
    let events = disk.text("disk events disk");
    let event = events
        .lines()
        .find(|line| line.contains("DataPlaneUpgraded"));
    let event: Value = serde_json::from_str(event.expect(&events)).unwrap();
    let message = event["reason"]["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("version {version} goes on for {version}, after ")));
    assert!(!events.contains("DataPlaneRestarted"), "{events}");
    let end = Instant::now() + PATIENCE;
    while !disk
        .text("audit list -o json")
        .contains("Upgraded: another program serves the disk")
    {
        assert!(Instant::now() < end, "{}", disk.text("audit list -o json"));
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.stop();
}

/// SIGHUP, as `systemctl reload` sends it, is the same; several at once are no more than that.
#[test]
fn a_hangup_is_an_order_to_upgrade() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let before = daemon.data_plane();
    let attach = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(attach, Signal::HUP).unwrap();
    kill_process(attach, Signal::HUP).unwrap();
    let end = Instant::now() + PATIENCE;
    while serving(&disk)["lastUpgrade"].is_null() {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_goes_on(&mut frontend, 1);
    assert_ne!(daemon.data_plane(), before);
    drop(frontend);
    daemon.stop();
}

/// Of two at once, one is refused or comes after the other.
#[test]
fn one_upgrade_is_made_at_a_time() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&setup());
    run(&mut frontend, 5, || {
        std::thread::scope(|scope| {
            let ask = || scope.spawn(|| command(&disk, None).output().unwrap());
            let both = [ask(), ask(), ask()].map(|asked| asked.join().unwrap());
            let done = both.iter().filter(|said| said.status.success()).count();
            assert!(done > 0, "{both:?}");
            for said in both.iter().filter(|said| !said.status.success()) {
                let why = refused(said);
                let expected = ["another upgrade of it goes on", "try again"];
                assert!(expected.iter().any(|e| why.contains(e)), "{why}");
            }
        });
    });
    assert_goes_on(&mut frontend, 1);
    await_only_one(&daemon);
}

/// Several disks by one command; one that is not attached is named.
#[test]
fn all_attached_disks_are_upgraded_by_one_command() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    disk.ok("disk create other --size 8MiB");
    let daemon = disk.attach(&AttachOptions::default());
    let all = disk.json("upgrade --all");
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    let other = test_support::Host::attach(&disk, "other");
    let all = disk.json("upgrade --all");
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all}");
    let both = disk.json("upgrade disk other");
    assert_eq!(both.as_array().map(Vec::len), Some(2), "{both}");
    other.stop();
    let said = disk.refused_with("DiskNotAttached", "upgrade other");
    assert!(said.contains("not attached"), "{said}");
    let said = disk.refused("upgrade nothing");
    assert!(said.contains("nothing"), "{said}");
    daemon.stop();
}

/// A guest can come after an upgrade, and go before one.
#[test]
fn a_frontend_connects_before_and_after() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    upgrade(&disk, None);
    let data = Rng::new(1).bytes(65536);
    let mut frontend = daemon.connect();
    frontend.queues[0].write(100, &data).unwrap();
    drop(frontend);
    upgrade(&disk, None);
    let mut frontend = daemon.connect();
    assert!(frontend.queues[1].read(100, data.len()).as_ref() == Ok(&data));
    upgrade(&disk, None);
    assert_goes_on(&mut frontend, 2);
    drop(frontend);
    daemon.stop();
}
