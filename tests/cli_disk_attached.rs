//! `sealdisk disk` on a disk that is attached, or whose daemon died.

#![allow(
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach functions that tests call"
)]

mod disk_support;

use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use disk_support::{Host, holds, text};
use rustix::process::{Pid, Signal, kill_process};
use sealdisk::control::disks::{self, Disk};
use sealdisk::control::runtime_map;
use sealdisk::envelope::Header;
use sealdisk::pipeline::DiskIo;
use sealdisk::volume::{RuntimeMap, Volume};
use tempfile::TempDir;
use uuid::Uuid;

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

/// A runtime directory, which has to be on tmpfs.
fn runtime_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// An attached disk; its daemon is ended when this is dropped.
struct Attached(Child);

impl Attached {
    fn start(host: &Host, runtime: &TempDir, disk: &str) -> Self {
        let socket = host.path("socket");
        let attach = ["attach", disk, "--socket-path", text(&socket)];
        let options = ["--runtime-dir", text(runtime.path())];
        let child = host
            .command(&[&attach[..], &options].concat())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut attached = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(attached.0.try_wait().unwrap().is_none(), "attach ended");
            assert!(Instant::now() < deadline, "attach does not become ready");
            thread::sleep(Duration::from_millis(5));
        }
        attached
    }

    fn detach(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_attached_disk_is_re_wrapped_and_nothing_else_is_done_to_it() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.encryption_set("set1", ALL);
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    let attached = Attached::start(&host, &runtime, "d");

    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Attached");
    host.refused_with("OperationNotAllowed", &["disk", "delete", "d", "--yes"]);
    host.refused_with("OperationNotAllowed", &["disk", "decrypt", "d"]);
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["encryption"]["diskEncryptionSetId"], "set1");

    attached.detach();
    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Unattached");
    // The header that the re-wrap wrote is the one that counts from now on.
    Attached::start(&host, &runtime, "d").detach();
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
    host.ok(&["disk", "delete", "d", "--yes"]);
    host.assert_no_disks();
}

/// What a daemon does up to the moment when it is killed: the disk is stamped with a new attach,
/// and `plaintext` is written to `offset`, completed and not flushed.
fn die_after_a_write(host: &Host, runtime: &TempDir, disk: &str, offset: u64, plaintext: &[u8]) {
    let installation = host.installation();
    let disk = Disk::find(&installation, disk).unwrap();
    let file = disk.header_file().unwrap();
    let claim = disk.claim(file.read().unwrap().claims()).unwrap();
    let (header, dek) = disk.unlock(&installation, file.read().unwrap()).unwrap();
    let top = header.top().unwrap();
    let geometry = disks::geometry(&header, top).unwrap();
    let files = disks::open_files(claim, &header, |layer| disk.layer_paths(layer)).unwrap();
    let layer = disks::layer_map(&header, top, &disk.layer_paths(top)).unwrap();

    let path = runtime_map(runtime.path(), header.disk);
    let next = Uuid::new_v4();
    let (map, _) = RuntimeMap::open(&path, &geometry, header.attach, next).unwrap();
    let mut stamped: Header = header.clone();
    stamped.attach = next;
    file.lock().unwrap().write(&stamped, &dek).unwrap();
    let volume = Volume::open_runtime(layer, vec![], &map).unwrap();
    let mut io = DiskIo::open(Arc::new(volume), files, &dek.into()).unwrap();
    io.write_at(offset, plaintext).unwrap();
}

#[test]
fn what_a_killed_daemon_had_completed_is_decrypted() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let mut expected = vec![0; 1 << 20];
    for (offset, byte) in [(8192, 1), (65_536, 2)] {
        die_after_a_write(&host, &runtime, "d", offset, &[byte; 4096]);
        let offset = usize::try_from(offset).unwrap();
        expected[offset..offset + 4096].fill(byte);
        // The map on disk does not know of it, the one that outlived the daemon does.
        let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
        assert!(decrypted == expected);
    }
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 1);
    assert!(!holds(runtime.path(), &[1; 64]), "plaintext on tmpfs");

    // A check takes them into account, and a repair makes them durable.
    let check = ["disk", "check", "d", "--runtime-dir", text(runtime.path())];
    let report = host.json(&check);
    assert_eq!(report["dataBytes"], 8192);
    assert_eq!(host.json(&["disk", "show", "d"])["dataBytes"], 0);
    host.ok(&[&check[..], &["--repair"]].concat());
    assert_eq!(host.json(&["disk", "show", "d"])["dataBytes"], 8192);
    die_after_a_write(&host, &runtime, "d", 131_072, &[3; 4096]);
    expected[131_072..131_072 + 4096].fill(3);

    // A copy has it too.
    let copy = host.path("copy");
    host.ok(&[&["disk", "copy", "d", "--to", text(&copy)], &options[..]].concat());
    let elsewhere = runtime_dir();
    let options = ["--runtime-dir", text(elsewhere.path())];
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected, "it is durable since");

    // And a disk that is forgotten, which gets another attach id when it is registered.
    die_after_a_write(&host, &runtime, "d", 262_144, &[4; 4096]);
    expected[262_144..262_144 + 4096].fill(4);
    let forget = ["disk", "unregister", "d", "--runtime-dir"];
    host.ok(&[&forget[..], &[text(runtime.path())]].concat());
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
    let directory = host.disks().join("d");
    host.ok(&["disk", "register", "--dir", text(&directory)]);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
}

#[test]
fn what_a_daemon_had_completed_goes_with_the_power() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    // Without the map on tmpfs the write is gone, and the old content is there.
    let elsewhere = runtime_dir();
    let options = ["--runtime-dir", text(elsewhere.path())];
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted.iter().all(|&b| b == 0));

    let options = ["--yes", "--runtime-dir", text(runtime.path())];
    host.ok(&[&["disk", "delete", "d"], &options[..]].concat());
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
}

#[test]
fn a_disk_whose_daemon_died_grows_and_keeps_what_was_completed() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    let resize = ["disk", "resize", "d", "--size", "40MiB"];
    host.ok(&[&resize[..], &options].concat());
    assert_eq!(host.json(&["disk", "show", "d"])["diskSizeBytes"], 40 << 20);
    // The map that outlived the daemon is of the old size.
    let mut expected = vec![0; 40 << 20];
    expected[8192..8192 + 4096].fill(1);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
    die_after_a_write(&host, &runtime, "d", 39 << 20, &[2; 4096]);
    expected[39 << 20..(39 << 20) + 4096].fill(2);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
}

#[test]
fn a_disk_that_another_command_uses_does_not_grow() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let installation = host.installation();
    let disk = Disk::find(&installation, "d").unwrap();
    let header = disk.header_file().unwrap().read().unwrap();
    let claim = disk.claim(header.claims()).unwrap();
    let resize = ["disk", "resize", "d", "--size", "40MiB"];
    host.refused_with("OperationNotAllowed", &[&resize[..], &options].concat());
    drop(claim);
    assert_eq!(host.json(&["disk", "show", "d"])["diskSizeBytes"], 1 << 20);
}
