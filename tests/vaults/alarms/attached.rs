//! Each kind of alarm of an attached disk, by what really is the matter.

use std::fs;
use std::time::Duration;

use test_support::small_fs::SmallFs;
use test_support::{AttachOptions, Customer, data_plane_of, kill, stop};

use super::{alarms, customer, is_alarm, status, wait};

const OFTEN: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];

/// The only alarm with that code.
fn only(customer: &Customer, code: &str) -> serde_json::Value {
    let found = alarms(customer, code);
    assert_eq!(found.len(), 1, "{code}: {:#}", status(customer).1);
    assert_eq!(found[0]["subject"]["name"], "disk", "{:#}", found[0]);
    found[0].clone()
}

#[test]
fn a_key_that_cannot_be_checked_and_one_that_is_revoked_are_told() {
    let customer = customer();
    let daemon = customer.attach(OFTEN);
    let (code, view) = status(&customer);
    assert_eq!(code, Some(0), "{view:#}");
    assert_eq!(
        (
            &view["disks"]["states"]["Attached"],
            &view["keys"]["granted"]
        ),
        (&1.into(), &1.into())
    );
    customer.hide_vault();
    customer.wait_for("KeyUnreachable", "Held");
    let alarm = only(&customer, "KeyUnreachable");
    assert_eq!(alarm["severity"], "Warning");
    assert!(
        alarm["message"]
            .as_str()
            .unwrap()
            .contains("it is served until"),
        "{alarm}"
    );
    assert!(
        !alarms(&customer, "NotKnown").is_empty(),
        "of the vault itself nothing is known"
    );
    customer.show_vault();
    customer.wait_served();
    assert_eq!(status(&customer).0, Some(0));
    customer.enable(false);
    customer.wait_stopped();
    let alarm = only(&customer, "KeyRevoked");
    assert_eq!(alarm["severity"], "Critical");
    assert!(
        alarm["message"].as_str().unwrap().contains("KeyDisabled"),
        "{alarm}"
    );
    assert_eq!(status(&customer).0, Some(2));
    customer.enable(true);
    customer.wait_served();
    assert_eq!(status(&customer).0, Some(0));
    // These have events of their own, and are not told twice.
    assert!(
        customer.events().iter().all(|event| event != "AlarmRaised"),
        "{:?}",
        customer.events()
    );
    drop(daemon);
}

#[test]
fn data_planes_that_die_again_and_again_are_told_once() {
    let customer = customer();
    let daemon = customer.attach(OFTEN);
    assert!(alarms(&customer, "CrashLoop").is_empty());
    let dead = || {
        customer.show()["serving"]["deathsInARow"]
            .as_u64()
            .unwrap_or(0)
    };
    wait("three deaths", || {
        if let Some(pid) = data_plane_of(daemon.pid()) {
            kill(pid);
        }
        dead() >= 3
    });
    assert_eq!(only(&customer, "CrashLoop")["severity"], "Critical");
    let events = || {
        let text = customer.text("disk events disk");
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let raised = |event: &serde_json::Value| is_alarm(event, "AlarmRaised", "CrashLoop");
        events.filter(raised).count()
    };
    wait("the event", || events() > 0);
    customer.wait_served();
    assert_eq!(events(), 1);
}

#[test]
fn a_disk_whose_attach_was_killed_is_dirty_and_graver_without_its_map() {
    let customer = customer();
    let mut daemon = customer.attach(OFTEN);
    daemon.kill();
    // Its data plane flushes, and ends by itself.
    wait("the end of the data plane", || {
        !alarms(&customer, "DiskDirty").is_empty()
    });
    assert_eq!(only(&customer, "DiskDirty")["severity"], "Warning");
    let map = fs::read_dir(customer.runtime()).unwrap();
    let mut maps = map.map(|entry| entry.unwrap().path());
    let map = maps
        .find(|path| path.extension().is_some_and(|e| e == "map"))
        .unwrap();
    let aside = customer.path("map");
    fs::copy(&map, &aside).unwrap();
    fs::remove_file(&map).unwrap();
    assert_eq!(only(&customer, "DiskDirty")["severity"], "Critical");
    fs::copy(&aside, &map).unwrap();
    let mut daemon = customer.attach(OFTEN);
    assert!(daemon.terminate().success());
    assert_eq!(status(&customer).0, Some(0));
}

/// What is not known is not safe.
#[test]
fn an_attach_that_does_not_answer_is_not_called_fine() {
    let customer = customer();
    let mut daemon = customer.attach(OFTEN);
    assert_eq!(status(&customer).0, Some(0));
    stop(daemon.pid());
    assert_eq!(only(&customer, "NotKnown")["subject"]["kind"], "Disk");
    let (code, view) = status(&customer);
    assert_eq!((code, &view["keys"]["notKnown"]), (Some(1), &1.into()));
    daemon.kill();
}

/// Two installations with one runtime directory: neither takes the other's disks for its own, nor for unknown ones.
#[test]
fn an_attached_disk_of_another_installation_is_said_to_be_one() {
    let customer = customer();
    let daemon = customer.attach(OFTEN);
    let other = customer.path("other");
    let state = ["--state-dir", other.to_str().unwrap()];
    let run = |words: &[&str]| customer.run(&[&state[..], words].concat());
    assert!(run(&["keyvault", "create", "other"]).status.success());
    assert!(
        run(&[
            "alarm",
            "update",
            "--space-warning",
            "0",
            "--space-critical",
            "0"
        ])
        .status
        .success()
    );
    let seen = run(&["status", "-o", "json"]);
    assert_eq!(seen.status.code(), Some(0));
    let view: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(view["disks"]["ofOtherInstallations"], 1, "{view:#}");
    assert_eq!(view["disks"]["total"], 0, "{view:#}");
    assert_eq!(
        (&view["keys"]["notKnown"], &view["keys"]["granted"]),
        (&0.into(), &0.into())
    );
    let screen = run(&["status"]).stdout;
    let screen = String::from_utf8_lossy(&screen);
    assert!(screen.contains("1 of other installations"), "{screen}");
    // Of its own installation it is fine, and nothing is left of it once it is detached.
    assert_eq!(status(&customer).0, Some(0));
    daemon.stop();
    assert_eq!(run(&["status", "-o", "json"]).status.code(), Some(0));
}

/// An attach that sees nothing any more tells it as an event.
#[test]
fn an_attach_that_does_not_look_any_more_tells_it_once_and_when_it_does_again() {
    let customer = customer();
    let daemon = customer.attach(OFTEN);
    let told = |name: &str| {
        let text = customer.text("disk events disk");
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        events
            .filter(|event| is_alarm(event, name, "NotKnown"))
            .count()
    };
    let header = customer.disks().join("disk/header");
    let good = fs::read(&header).unwrap();
    let damage = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&header).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    };
    damage(&vec![0x5a; good.len()]);
    wait("it is told", || told("AlarmRaised") == 1);
    std::thread::sleep(Duration::from_secs(3));
    damage(&good);
    wait("it is over", || told("AlarmCleared") == 1);
    assert_eq!(told("AlarmRaised"), 1);
    daemon.stop();
}

#[test]
fn a_job_that_does_not_go_on_is_told() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let disk = fs.disk(16 << 20);
    disk.ok("alarm update --space-warning 0 --space-critical 0");
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    for at in 0..8 {
        queue.write(at * 2048, &vec![7; 1 << 20]).unwrap();
    }
    queue.flush().unwrap();
    // So slow that it is not done before the file system is full.
    disk.ok("disk rotate-dek disk --rate 4KiB");
    let full = fs.fill();
    disk.ok("disk rotate-dek disk --resume --rate 1GiB");
    let told = || alarms(&disk, "JobHeldUp");
    // It is tried again and again, and not held up meanwhile.
    wait("the job is held up", || {
        told().iter().any(|alarm| alarm["severity"] == "Warning")
    });
    // Each try begins anew, and is no reason to say that it goes on.
    for _ in 0..40 {
        assert!(!told().is_empty(), "{:#}", disk.json("disk show disk"));
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(full);
    wait("it goes on", || told().is_empty());
}
