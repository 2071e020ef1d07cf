//! Hosts that share a catalog on a PostgreSQL server, and the directory of a disk: each has a mount, a name and a runtime
//! directory of its own. They share the state directory, since the platform's vault is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use test_support::frontend::message::Connection;
use test_support::postgres::PostgresServer;
use test_support::rng::Rng;
use test_support::shared_fs::SharedFs;
use test_support::{
    Daemon, Host, PATIENCE, await_end, expect_success, one_line, program, stop, text, times,
};

use super::supervise::is_qsd;

/// Mounts a file or a directory over another one, for what runs in it.
const WITH_ITS_OWN: &str = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;

/// Two hosts, `one` and `two`, and a disk.
struct Hosts {
    // Before what its disk is on.
    one: Host,
    /// The runtime directory of the other one.
    two: TempDir,
    shared: SharedFs,
    server: &'static PostgresServer,
    schema: String,
}

/// Whether hosts can be played that have mounts of their own; else that is said.
fn can_mount() -> bool {
    let may = Command::new("unshare").args(["-m", "true"]).status();
    let may = may.is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tested: another host takes a mount namespace");
    }
    may
}

impl Hosts {
    /// `None`, with a word on stderr, where that cannot be played.
    fn new() -> Option<Self> {
        if is_qsd() {
            return None;
        }
        let server = PostgresServer::shared()?;
        let shared = SharedFs::mount(2)?;
        if !can_mount() {
            return None;
        }
        let url = server.new_schema();
        let (_, schema) = url.rsplit_once("%3D").unwrap();
        let schema = schema.to_owned();
        let mut one = Host::that_attaches();
        one.set_env("SEALDISK_CATALOG", &url);
        one.set_env("SEALDISK_HOST", "one");
        let this = Self {
            one,
            two: TempDir::new_in("/dev/shm").unwrap(),
            shared,
            server,
            schema,
        };
        this.create("disk");
        Some(this)
    }

    fn create(&self, disk: &str) {
        let at = self.shared.path(0);
        let line = format!("disk create {disk} --size 8MiB --data-dir {}", text(&at));
        self.one.ok(&line);
    }

    /// `sealdisk` on the other host.
    fn on_two(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        self.one.prepare(&mut command);
        command.env("SEALDISK_HOST", "two");
        command.env("SEALDISK_RUNTIME_DIR", self.two.path());
        command.args(["-m", "sh", "-c", WITH_ITS_OWN, "sh"]);
        command.args([self.shared.path(1), self.shared.path(0)]);
        command.arg(program()).args(line.split(' '));
        command
    }

    fn json_on_two(&self, line: &str) -> Value {
        let done = expect_success(&mut self.on_two(&format!("{line} -o json")));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn refused_on_two(&self, code: &str, line: &str) -> String {
        let output = self.on_two(&format!("{line} -o json")).output().unwrap();
        refused(code, &output)
    }

    fn attach_line(&self) -> String {
        let socket = self.two.path().join("socket");
        format!("attach disk --socket-path {}", text(&socket))
    }

    fn attach_on_two(&self) -> Daemon {
        let path = |name: &str| self.two.path().join(name);
        let command = self.on_two(&self.attach_line());
        Daemon::start(command, path("socket"), path("log"))
    }

    /// As if all hosts had been silent for long.
    fn end_leases(&self) {
        self.set_leases("0");
    }

    /// However slow this machine is.
    fn prolong_leases(&self) {
        self.set_leases("unixepoch() + 600");
    }

    fn set_leases(&self, to: &str) {
        let schema = &self.schema;
        let sql = format!("SET search_path TO {schema}; UPDATE hosts SET expires = {to}");
        self.server.sql(&sql);
    }
}

/// What was said by a command that was refused.
fn refused(code: &str, output: &Output) -> String {
    let line = one_line(output);
    let value: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    assert_eq!(value["code"], code, "{line}");
    value["message"].as_str().unwrap().to_owned()
}

/// Writes to a disk that is attached and makes that durable; what.
fn written(daemon: &Daemon, seed: u64) -> Vec<u8> {
    let mut frontend = daemon.connect();
    let data = Rng::new(seed).bytes(65536);
    frontend.queues[0].write(0, &data).unwrap();
    frontend.queues[0].flush().unwrap();
    data
}

fn assert_reads(daemon: &Daemon, data: &[u8]) {
    let mut frontend = daemon.connect();
    assert!(frontend.queues[0].read(0, data.len()).as_deref() == Ok(data));
}

/// The host that has a disk, and its epoch, as it is shown.
fn attachment(shown: &Value) -> (&str, i64) {
    let attachment = &shown["attachment"];
    let host = attachment["host"].as_str();
    (
        host.unwrap_or_else(|| panic!("it is attached nowhere: {shown}")),
        attachment["epoch"].as_i64().unwrap(),
    )
}

fn host<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut hosts = list.as_array().unwrap().iter();
    let found = hosts.find(|host| host["name"] == name);
    found.unwrap_or_else(|| panic!("no host {name}: {list}"))
}

#[test]
fn each_host_says_where_a_disk_is_attached_and_no_other_one_gets_it() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let daemon = hosts.one.attach("disk");
    for shown in [
        hosts.one.json("disk show disk"),
        hosts.json_on_two("disk show disk"),
    ] {
        assert_eq!(attachment(&shown), ("one", 1));
        assert_eq!(shown["attachment"]["hostState"], "Alive", "{shown}");
    }
    let said = hosts.refused_on_two("AttachedElsewhere", &hosts.attach_line());
    assert!(said.contains("attached on the host one"), "{said}");
    hosts.refused_on_two("AttachedElsewhere", "snapshot create s --source disk");
    hosts.refused_on_two("AttachedElsewhere", "disk delete disk --yes");
    hosts.refused_on_two("HostAlive", "disk takeover disk --host-is-off");
    hosts.refused_on_two("HostAlive", "host evict one --host-is-off --yes");
    let listed = hosts.json_on_two("host list");
    let one = host(&listed, "one");
    assert_eq!(one["state"], "Alive", "{listed}");
    assert_eq!(one["disks"], 1, "{listed}");
    let shown = hosts.json_on_two("host show one");
    assert_eq!(shown["attachments"][0]["disk"], "disk", "{shown}");
    hosts.refused_on_two("HostNotFound", "host show three");
    daemon.stop();
    assert!(hosts.json_on_two("disk show disk")["attachment"].is_null());

    let daemon = hosts.attach_on_two();
    let shown = hosts.one.json("disk show disk");
    assert_eq!(attachment(&shown), ("two", 2));
    // Nothing of it keeps a lease any more.
    let listed = hosts.one.json("host list");
    assert_eq!(host(&listed, "one")["state"], "Silent", "{listed}");
    daemon.stop();
}

/// The guest of a daemon that died may live: its host alone has what it was told is written.
#[test]
fn a_disk_whose_daemon_was_killed_is_its_hosts_until_that_is_said_to_be_off() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let mut daemon = hosts.one.attach("disk");
    let mut frontend = daemon.connect();
    let data = Rng::new(1).bytes(65536);
    frontend.queues[0].write(0, &data).unwrap();
    daemon.kill();
    drop(frontend);
    hosts.prolong_leases();
    let attach = hosts.attach_line();
    let said = hosts.refused_on_two("AttachedElsewhere", &attach);
    assert!(said.contains("its guest may live"), "{said}");
    hosts.refused_on_two("AttachedElsewhere", "disk delete disk --yes");
    hosts.refused_on_two("HostAlive", "disk takeover disk --host-is-off");
    let mut daemon = hosts.one.reattach(daemon);
    assert_reads(&daemon, &data);
    assert_eq!(attachment(&hosts.json_on_two("disk show disk")), ("one", 2));
    let data = written(&daemon, 2);
    daemon.kill();

    hosts.end_leases();
    let said = hosts.refused_on_two("AttachedElsewhere", &attach);
    assert!(said.contains("disk takeover disk"), "{said}");
    // Not by an option that may stand in a unit.
    hosts.refused_on_two(
        "AttachedElsewhere",
        &format!("{attach} --discard-unflushed"),
    );
    hosts.refused_on_two("HostNotFenced", "disk takeover disk");
    let shown = hosts.json_on_two("disk takeover disk --host-is-off");
    assert_eq!(shown["diskState"], "Unattached", "{shown}");
    assert!(shown["attachment"].is_null(), "{shown}");
    let other = hosts.attach_on_two();
    assert_reads(&other, &data);
    other.stop();
    // It is anybody's again.
    let daemon = hosts.one.reattach(daemon);
    assert_reads(&daemon, &data);
    daemon.stop();
}

#[test]
fn the_disks_of_an_evicted_host_are_taken_over_by_who_attaches_them() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let mut daemon = hosts.one.attach("disk");
    let data = written(&daemon, 1);
    daemon.kill();
    hosts.end_leases();
    hosts.refused_on_two("HostNotFenced", "host evict one --yes");
    let evicted = hosts.json_on_two("host evict one --host-is-off --yes");
    assert_eq!(evicted["disks"], 1, "{evicted}");
    let listed = hosts.json_on_two("host list");
    assert_eq!(host(&listed, "one")["state"], "Evicted", "{listed}");
    let other = hosts.attach_on_two();
    assert_reads(&other, &data);
    let shown = hosts.json_on_two("disk show disk");
    assert_eq!(attachment(&shown), ("two", 3));
    let socket = hosts.one.runtime().join("socket");
    let attach = format!("attach disk --socket-path {}", text(&socket));
    let said = hosts.one.refused_with("AttachedElsewhere", &attach);
    assert!(said.contains("on the host two"), "{said}");
    other.stop();
}

/// A host freezes with its guest, the storage gives its locks to others, and it wakes up again.
fn thaws_after_a_takeover(take_locks: impl FnOnce(&SharedFs), has_request: bool) {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let mut daemon = hosts.one.attach("disk");
    written(&daemon, 1);
    let mut frontend = daemon.connect();
    let frozen = daemon.processes();
    for process in &frozen {
        stop(*process);
    }
    if has_request {
        frontend.queues[0].begin_write(0, &Rng::new(9).bytes(65536));
    }
    hosts.end_leases();
    // Whoever says so is wrong, and the lock of the storage says that.
    let said = hosts.refused_on_two("StillHeld", "disk takeover disk --host-is-off");
    assert!(said.contains("neither off nor cut off"), "{said}");
    take_locks(&hosts.shared);
    hosts.json_on_two("disk takeover disk --host-is-off");
    let other = hosts.attach_on_two();
    let data = written(&other, 2);

    daemon.signal_all(&frozen, Signal::CONT);
    let status = daemon.wait();
    assert!(!status.success(), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("has taken the disk disk over"), "{log}");
    // The keys go with them.
    for process in frozen {
        await_end(process);
    }
    assert_reads(&other, &data);
    other.stop();
}

#[test]
fn a_host_that_was_frozen_writes_nothing_when_the_storage_has_evicted_it() {
    thaws_after_a_takeover(|shared| shared.evict(0), true);
}

/// Storage that takes locks and refuses nothing is seen through within moments, and not before.
#[test]
fn a_host_that_was_frozen_ends_when_the_header_is_anothers() {
    thaws_after_a_takeover(|shared| shared.take_locks(0), false);
}

/// Hosts that were made of one configuration.
#[test]
fn of_two_machines_with_one_name_the_second_attaches_nothing() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let own = Path::new("/etc/machine-id");
    if !own.exists() {
        eprintln!("not tested: this machine has no id");
        return;
    }
    hosts.create("second");
    let daemon = hosts.one.attach("disk");
    let machine = hosts.two.path().join("machine-id");
    fs::write(&machine, "0123456789abcdef0123456789abcdef\n").unwrap();
    let mut command = Command::new("unshare");
    hosts.one.prepare(&mut command);
    command.env("SEALDISK_RUNTIME_DIR", hosts.two.path());
    command.args(["-m", "sh", "-c", WITH_ITS_OWN, "sh"]);
    command.args([machine.as_path(), own]);
    let socket = hosts.two.path().join("socket");
    command
        .arg(program())
        .args(["attach", "second", "--socket-path"]);
    let output = command.arg(&socket).args(["-o", "json"]).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    // It is told before what is waited for.
    let said = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["code"], "HostNameTaken", "{said}");
    let listed = hosts.one.json("host list");
    assert_eq!(host(&listed, "one")["state"], "Alive", "{listed}");
    assert_eq!(attachment(&hosts.one.json("disk show disk")).0, "one");
    daemon.stop();
}

/// Two installations in which the same keys are, as by a state directory that was copied.
#[test]
fn two_catalogs_that_name_one_disk_have_its_lock_and_its_header_in_common() {
    if is_qsd() {
        return;
    }
    let Some(shared) = SharedFs::mount(2) else {
        return;
    };
    let [one, two] = ["one", "two"].map(|name| {
        let mut host = Host::that_attaches();
        host.set_env("SEALDISK_HOST", name);
        host
    });
    one.ok("disk create first --size 1MiB");
    one.ok("disk delete first --yes");
    let copied = Command::new("cp")
        .arg("-a")
        .args([one.state(), two.state()])
        .status();
    assert!(copied.unwrap().success());
    let at = |host: usize| text(&shared.path(host)).to_owned();
    one.ok(&format!(
        "disk create disk --size 8MiB --data-dir {}",
        at(0)
    ));
    two.ok(&format!("disk register --dir {}/disk", at(1)));
    let attach = |host: &Host| {
        let socket = host.runtime().join("socket");
        format!("attach disk --socket-path {}", text(&socket))
    };
    let mut daemon = one.attach("disk");
    let data = written(&daemon, 1);
    let said = two.refused_with("AttachedElsewhere", &attach(&two));
    assert!(said.contains("on the host one"), "{said}");
    two.refused_with("HostNotFenced", "disk takeover disk");
    two.refused_with("StillHeld", "disk takeover disk --host-is-off");
    daemon.kill();
    two.refused_with("UnflushedWrites", &attach(&two));
    two.ok("disk takeover disk --host-is-off");
    let other = two.attach("disk");
    assert_reads(&other, &data);
    let said = one.refused_with("AttachedElsewhere", &attach(&one));
    assert!(said.contains("on the host two"), "{said}");
    // Each of them knows itself alone.
    let listed = one.json("host list");
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(host(&listed, "one")["thisHost"], true);
    other.stop();
    one.reattach(daemon).stop();
}

#[test]
fn without_the_database_guests_go_on_and_nothing_else_is_attached() {
    if is_qsd() {
        return;
    }
    let Some(server) = PostgresServer::start(&[]) else {
        return;
    };
    let mut host = Host::that_attaches();
    host.set_env("SEALDISK_CATALOG", &server.new_schema());
    for disk in ["disk", "second"] {
        host.ok(&format!("disk create {disk} --size 8MiB"));
    }
    let mut daemon = host.attach("disk");
    written(&daemon, 1);
    server.kill();
    let data = written(&daemon, 2);
    assert_reads(&daemon, &data);
    let socket = host.runtime().join("socket");
    let attach = format!("attach second --socket-path {}", text(&socket));
    let said = host.refused_with("CatalogError", &attach);
    assert!(said.contains("catalog"), "{said}");
    // Nobody waits for the server in order to end.
    let status = daemon.terminate();
    assert!(status.success(), "{}", daemon.log());
    server.run();
    let daemon = host.reattach(daemon);
    assert_reads(&daemon, &data);
    assert_eq!(attachment(&host.json("disk show disk")).1, 2);
    daemon.stop();
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
            let said = fs::read_to_string(log).unwrap();
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

/// The lock of the storage decides, whatever the database says meanwhile.
#[test]
fn of_hosts_that_attach_at_once_one_has_the_disk_and_its_row() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let dir = TempDir::new_in("/dev/shm").unwrap();
    for round in 0..times("SEALDISK_RACES", 3) {
        let begun = ["one", "two"].map(|name| {
            let path = |what: &str| -> PathBuf { dir.path().join(format!("{what}-{name}")) };
            let (socket, log) = (path("socket"), path("log"));
            let _ = fs::remove_file(&socket);
            let line = format!("attach disk --socket-path {}", text(&socket));
            let mut command = match name {
                "one" => hosts.one.command(&line),
                _ => hosts.on_two(&line),
            };
            let stderr = fs::File::create(&log).unwrap();
            let attach = command.stdin(Stdio::null()).stderr(stderr).spawn();
            (attach.unwrap(), socket, log, name)
        });
        let mut has_it = Vec::new();
        let mut left = begun.map(|(mut attach, socket, log, name)| {
            match await_attach(&mut attach, &socket, &log) {
                Became::Serves => has_it.push(name),
                Became::Refused(said) => {
                    let is_told = ["is in use", "is attached on the host"];
                    assert!(is_told.iter().any(|told| said.contains(told)), "{said}");
                }
            }
            attach
        });
        assert_eq!(has_it.len(), 1, "round {round}");
        let shown = hosts.one.json("disk show disk");
        assert_eq!(attachment(&shown).0, has_it[0], "round {round}: {shown}");
        for attach in &mut left {
            if attach.try_wait().unwrap().is_none() {
                kill_process(Pid::from_child(attach), Signal::TERM).unwrap();
                assert!(attach.wait().unwrap().success());
            }
        }
    }
}
