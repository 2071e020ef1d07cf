//! The attach process goes on as another program, under the same id.

use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::message::Connection;
use test_support::rng::Rng;
use test_support::{AttachOptions, Customer, Daemon, Disk, PATIENCE, kill, program, stat};

use super::impostor::beside_the_program;
use super::{MIB_8, assert_goes_on, await_only_one, command, serving, upgrade};
use crate::supervise::connection::attach_by_fd;
use crate::supervise::is_qsd;
use crate::supervise::load::{DISK_BYTES, run, setup};

/// The program of the attach process.
fn program_of(daemon: &Daemon) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap()
}

/// Another file, with the same program.
struct Other(tempfile::TempDir, std::path::PathBuf);

impl Other {
    fn new() -> Self {
        let directory = beside_the_program();
        let path = directory.path().join("sealdisk");
        std::fs::hard_link(program(), &path).unwrap();
        Self(directory, path)
    }
}

/// Back and forth, under load: both processes are of the new program, and the events are all there.
#[test]
fn both_processes_go_on_as_the_new_program() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&setup());
    let (other, old) = (Other::new(), program().canonicalize().unwrap());
    let mut follow = disk.command("disk events disk --follow");
    let follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(program_of(&daemon), old);
    let done = run(&mut frontend, 1, || {
        for (binary, expected) in [(Some(&*other.1), &other.1), (None, &old)] {
            let upgraded = upgrade(&disk, binary);
            assert_eq!(upgraded.get("attachKept"), None, "{upgraded}");
            assert_eq!(&program_of(&daemon), expected);
        }
    });
    eprintln!("the longest request took {:?}", done.longest);
    assert_goes_on(&mut frontend, 1);
    await_only_one(&daemon);
    let events = disk.text("disk events disk");
    for (event, count) in [
        ("\"Attached\"", 1),
        ("DataPlaneUpgraded", 2),
        ("AttachProcessUpgraded", 2),
    ] {
        assert_eq!(events.matches(event).count(), count, "{events}");
    }
    // A death of its data plane is noticed, and its end is orderly.
    kill(daemon.data_plane());
    assert_goes_on(&mut frontend, 2);
    let end = Instant::now() + PATIENCE;
    while serving(&disk)["restarts"] != 1 {
        assert!(Instant::now() < end, "{}", serving(&disk));
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(frontend);
    drop(other.0);
    daemon.stop();
    // Who has followed the events has seen each once.
    let seen = follow.wait_with_output().unwrap();
    let seen = String::from_utf8(seen.stdout).unwrap();
    for (event, count) in [
        ("\"Attached\"", 1),
        ("DataPlaneUpgraded", 2),
        ("AttachProcessUpgraded", 2),
        ("DataPlaneRestarted", 1),
        ("\"Detached\"", 1),
    ] {
        assert_eq!(seen.matches(event).count(), count, "{event}: {seen}");
    }
}

/// A socket that was connected before (`--fd`) goes along, and ends the attach as ever.
#[test]
fn a_connection_that_was_inherited_goes_on() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut attach = attach_by_fd(&disk, theirs);
    let mut frontend = Frontend::start(Connection::from(ours), &Setup::default()).unwrap();
    assert_goes_on(&mut frontend, 1);
    for seed in 2..4 {
        upgrade(&disk, None);
        assert_goes_on(&mut frontend, seed);
    }
    drop(frontend);
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match attach.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < end, "it does not end with its connection"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
}

/// A signal that comes at any moment of an upgrade ends the attach, in order.
#[test]
fn a_signal_during_an_upgrade_is_not_lost() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut rng = crate::crash::random();
    for _ in 0..6 {
        let mut daemon = disk.attach(&AttachOptions::default());
        let mut asked = command(&disk, None);
        asked.stdout(Stdio::null());
        let mut asked = asked.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(rng.within(0..250)));
        let attach = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
        kill_process(attach, Signal::TERM).unwrap();
        let status = daemon.wait();
        assert!(status.success(), "{status}\n{}", daemon.log());
        asked.wait().unwrap();
        let shown = disk.json("disk show disk");
        assert_eq!(shown["diskState"], "Unattached", "{shown}");
    }
}

/// The grace period goes on where it was, and ends the disk.
#[test]
fn a_grace_period_goes_on() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(&["--key-check-interval", "1s", "--key-grace", "8s"]);
    let mut frontend = daemon.connect();
    customer.hide_vault();
    let before = customer.wait_for("KeyUnreachable", "Held");
    upgrade(&customer.disk, None);
    let after = customer.show()["keyAccess"].take();
    assert_eq!(after["state"], "KeyUnreachable");
    assert_eq!(after["since"], before["since"], "{after}");
    customer.wait_stopped();
    customer.show_vault();
    customer.wait_served();
    assert_goes_on(&mut frontend, 6);
    drop(frontend);
    daemon.stop();
}

/// What the next program has to know of a frontend it knows: a data plane that dies after it is followed by another.
#[test]
fn what_is_kept_is_kept_by_the_next_program() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    upgrade(&disk, None);
    let data = Rng::new(1).bytes(65536);
    frontend.queues[0].write(64, &data).unwrap();
    let base = frontend.stop_queue(1).unwrap();
    frontend.queues[1].base = base;
    frontend.start_queue(1).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    kill(daemon.data_plane());
    assert!(frontend.queues[1].read(64, data.len()).as_ref() == Ok(&data));
    upgrade(&disk, None);
    std::thread::sleep(Duration::from_millis(50));
    kill(daemon.data_plane());
    assert_goes_on(&mut frontend, 2);
    // It has the capabilities that it had, and is confined as it was.
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("Seccomp:").ends_with('2'), "{status}");
    assert!(line("NoNewPrivs:").ends_with('1'), "{status}");
    assert!(stat(daemon.pid()).is_some());
    let shown: Value = disk.json("disk show disk");
    assert_eq!(shown["diskState"], "Attached", "{shown}");
    drop(frontend);
    daemon.stop();
}
