//! Two hosts with the directory of a disk: each has a mount, a name and a runtime directory of its own. They share the
//! installation, as those of a fleet have one catalog.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use test_support::frontend::message::Connection;
use test_support::rng::Rng;
use test_support::shared_fs::SharedFs;
use test_support::{Daemon, Disk, PATIENCE, one_line, program, text, times};

use super::supervise::{MIB_8, is_qsd};

/// Puts what the other host has mounted in the place where the first one has it, for all that runs in it, and nothing in
/// that of the first one's memory.
const WITH_ITS_OWN_MOUNTS: &str =
    r#"mount --bind "$1" "$2" && mount -t tmpfs none "$3" && shift 3 && exec "$@""#;

/// The same for the first host, of whose machine the other one's memory is no part.
const WITHOUT_THE_OTHERS: &str = r#"mount -t tmpfs none "$1" && shift && exec "$@""#;

/// A disk, and both hosts.
struct Fleet {
    // Before what it is mounted on.
    disk: Disk,
    other: TempDir,
    shared: SharedFs,
}

impl Fleet {
    /// `None`, with a word on stderr, where that cannot be played.
    fn new() -> Option<Self> {
        if is_qsd() {
            return None;
        }
        let shared = SharedFs::mount(2)?;
        let may = Command::new("unshare").args(["-m", "true"]).status();
        if !may.is_ok_and(|status| status.success()) {
            eprintln!("not tested: another host takes a mount namespace");
            return None;
        }
        let at = shared.path(0);
        Some(Self {
            disk: Disk::with(MIB_8, &["--data-dir", text(&at)]),
            other: TempDir::new_in("/dev/shm").unwrap(),
            shared,
        })
    }

    /// `sealdisk` on the other host.
    fn elsewhere(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        self.disk.prepare(&mut command);
        command.env("SEALDISK_HOST", "other");
        command.env("SEALDISK_RUNTIME_DIR", self.other.path());
        command.args(["-m", "sh", "-c", WITH_ITS_OWN_MOUNTS, "sh"]);
        command.args([self.shared.path(1), self.shared.path(0)]);
        command.arg(self.disk.runtime());
        command.arg(program()).args(line.split(' '));
        command
    }

    /// What the first host says of what it refuses.
    fn refused_here(&self, line: &str) -> String {
        let mut command = Command::new("unshare");
        self.disk.prepare(&mut command);
        command.args(["-m", "sh", "-c", WITHOUT_THE_OTHERS, "sh"]);
        command.arg(self.other.path()).arg(program());
        one_line(&command.args(line.split(' ')).output().unwrap())
    }

    fn run_elsewhere(&self, line: &str) -> Output {
        self.elsewhere(line).output().unwrap()
    }

    /// Of the other host's attach.
    fn path(&self, name: &str) -> PathBuf {
        self.other.path().join(name)
    }

    fn attach_line(&self) -> String {
        format!("attach disk --socket-path {}", text(&self.path("socket")))
    }

    /// As after a loss of power of the host that has it attached.
    fn lose_power(&self) {
        let installation = self.disk.installation();
        let disk = disks::Disk::find(&installation, "disk").unwrap();
        let file = disk.header_file().unwrap();
        let mut lock = file.lock().unwrap();
        let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
        header.session.as_mut().unwrap().boot = uuid::Uuid::new_v4();
        lock.write(&header, &dek).unwrap();
    }

    fn attach_elsewhere(&self, options: &str) -> Daemon {
        let command = self.elsewhere(&format!("{}{options}", self.attach_line()));
        Daemon::start(command, self.path("socket"), self.path("log"))
    }
}

/// Writes to a disk that is attached, without a flush; what.
fn written(daemon: &Daemon, seed: u64) -> Vec<u8> {
    let mut frontend = daemon.connect();
    let data = Rng::new(seed).bytes(65536);
    frontend.queues[0].write(0, &data).unwrap();
    data
}

fn assert_reads(daemon: &Daemon, data: &[u8]) {
    let mut frontend = daemon.connect();
    assert!(frontend.queues[0].read(0, data.len()).as_deref() == Ok(data));
}

/// The guest of a daemon that died may live, and what it was told is written is in memory of that host alone.
#[test]
fn what_a_killed_daemon_left_is_for_its_own_host() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let mut daemon = fleet.disk.attach_with("disk", &[]);
    let data = written(&daemon, 1);
    let attach = fleet.attach_line();
    let refused = one_line(&fleet.run_elsewhere(&attach));
    assert!(refused.contains("is in use"), "{refused}");
    daemon.kill();
    for line in [
        attach.as_str(),
        "disk decrypt disk",
        "snapshot create s --source disk",
        "disk resize disk --size 16MiB",
        "disk rotate-dek disk",
        "disk unregister disk",
    ] {
        let refused = one_line(&fleet.run_elsewhere(line));
        assert!(
            refused.contains("not let go of in order"),
            "{line}: {refused}"
        );
    }
    let shown = fleet.run_elsewhere("disk show disk -o json");
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["session"]["state"], "OtherHost", "{shown}");
    assert_eq!(shown["diskState"], "Dirty");
    // What it makes elsewhere cleans up, and leaves this alone.
    let other = fleet.run_elsewhere(&format!(
        "disk create second --size 1M --data-dir {}",
        text(&fleet.shared.path(0))
    ));
    assert!(other.status.success(), "{other:?}");
    let daemon = fleet.disk.reattach(daemon);
    assert_reads(&daemon, &data);
    daemon.stop();
    // Detached in order, it is anybody's.
    let daemon = fleet.attach_elsewhere("");
    assert_reads(&daemon, &data);
    daemon.stop();
}

/// Whoever says so has what was flushed, and then the disk is the other host's.
#[test]
fn a_disk_of_a_host_that_is_gone_is_taken_over_when_that_is_said() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let mut daemon = fleet.disk.attach_with("disk", &[]);
    let flushed = written(&daemon, 1);
    daemon.connect().queues[0].flush().unwrap();
    written(&daemon, 2);
    daemon.kill();
    // Neither what is about lost maps says so, nor the name of another host.
    for wrong in ["--discard-unflushed", "--take-over-from third"] {
        let line = format!("{} {wrong}", fleet.attach_line());
        let refused = one_line(&fleet.run_elsewhere(&line));
        assert!(refused.contains("--take-over-from"), "{wrong}: {refused}");
    }
    let shown = fleet.run_elsewhere("disk show disk -o json");
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let host = shown["session"]["host"].as_str().unwrap();
    let mut taken = fleet.attach_elsewhere(&format!(" --take-over-from {host}"));
    let mut frontend = taken.connect();
    let read = frontend.queues[0].read(0, flushed.len()).unwrap();
    // Over blocks that were flushed before it writes in place: either may be there.
    assert!(read == flushed || read == Rng::new(2).bytes(65536));
    drop(frontend);
    let refused = fleet.disk.refused("disk decrypt disk");
    assert!(refused.contains("is in use"), "{refused}");
    taken.kill();
    let refused = fleet.refused_here("disk decrypt disk");
    assert!(refused.contains("not let go of in order"), "{refused}");
    drop(daemon);
    // Once its power is back that host has what was flushed, and no other one has it unasked.
    fleet.lose_power();
    let refused = fleet.refused_here("disk decrypt disk");
    assert!(refused.contains("not let go of in order"), "{refused}");
    let decrypted = fleet.run_elsewhere("disk decrypt disk");
    assert!(decrypted.status.success(), "{decrypted:?}");
}

/// What became of an attach that was begun.
enum Became {
    Serves,
    Refused(String),
}

/// Waits until it serves or has ended.
fn await_attach(attach: &mut Child, socket: &Path, log: &Path) -> Became {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = attach.try_wait().unwrap() {
            let said = std::fs::read_to_string(log).unwrap();
            assert!(!status.success(), "{said}");
            return Became::Refused(said);
        }
        if Connection::open(socket).is_ok() {
            return Became::Serves;
        }
        assert!(Instant::now() < end, "it neither serves nor ends");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_of_two_hosts_that_attach_at_once_has_the_disk() {
    let Some(fleet) = Fleet::new() else {
        return;
    };
    let dir = TempDir::new_in("/dev/shm").unwrap();
    for round in 0..times("SEALDISK_RACES", 5) {
        let begun = [0, 1].map(|host| {
            let (socket, log) = (
                dir.path().join(format!("socket{host}")),
                dir.path().join(format!("log{host}")),
            );
            let _ = std::fs::remove_file(&socket);
            let line = format!("attach disk --socket-path {}", text(&socket));
            let mut command = match host {
                0 => fleet.disk.command(&line),
                _ => fleet.elsewhere(&line),
            };
            let stderr = File::create(&log).unwrap();
            let attach = command.stdin(Stdio::null()).stderr(stderr).spawn();
            (attach.unwrap(), socket, log)
        });
        let mut served = 0;
        let mut left = begun.map(|(mut attach, socket, log)| {
            match await_attach(&mut attach, &socket, &log) {
                Became::Serves => served += 1,
                Became::Refused(said) => assert!(said.contains("is in use"), "{said}"),
            }
            attach
        });
        assert_eq!(served, 1, "round {round}");
        for attach in &mut left {
            if attach.try_wait().unwrap().is_none() {
                kill_process(Pid::from_child(attach), Signal::TERM).unwrap();
                assert!(attach.wait().unwrap().success());
            }
        }
    }
}
