//! Two hosts that share the directory of a disk: another runtime directory, and another boot of the kernel.

use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::frontend::device::Setup;
use test_support::frontend::message::Connection;
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{Daemon, Disk, PATIENCE, program, text};

use super::{MIB_8, is_qsd, shown};

/// What is another boot for all that runs in it.
const IN_ANOTHER_BOOT: &str =
    r#"mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@""#;

/// Another host, as far as a disk can tell.
struct OtherHost {
    /// Its runtime directory, and what else it has.
    dir: TempDir,
}

impl OtherHost {
    /// `None`, with a word on stderr, where that cannot be played.
    fn new() -> Option<Self> {
        let may = Command::new("unshare").args(["-m", "true"]).status();
        if !may.is_ok_and(|status| status.success()) {
            eprintln!("not tested: another host takes a mount namespace");
            return None;
        }
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let boot = "00000000-1111-4222-8333-444444444444\n";
        std::fs::write(dir.path().join("boot"), boot).unwrap();
        Some(Self { dir })
    }

    /// An attach there that waits for the disk.
    fn incoming(&self, disk: &Disk) -> Daemon {
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("unshare");
        disk.prepare(&mut command);
        command.args(["-m", "sh", "-c", IN_ANOTHER_BOOT, "sh", text(&path("boot"))]);
        command.args([text(program()), "attach", "disk", "--incoming", "-vv"]);
        command.args(["--socket-path", text(&path("socket"))]);
        command.args(["--runtime-dir", text(self.dir.path())]);
        Daemon::start(command, path("socket"), path("log"))
    }
}

fn assert_reads(queue: &mut Queue, data: &[u8]) {
    queue.arena.reset();
    assert!(queue.read(0, data.len()).as_deref() == Ok(data));
}

/// A guest at a source with something written that is not flushed.
fn guest(source: &Daemon) -> (Vmm, Vec<Queue>, Vec<u8>) {
    let setup = Setup::default().with_inflight();
    let (vmm, mut queues) = Vmm::of(source.connect_with(&setup), &setup);
    let data = Rng::new(1).bytes(65536);
    queues[0].write(0, &data).unwrap();
    (vmm, queues, data)
}

#[test]
fn a_guest_moves_to_another_host_and_back() {
    let (Some(other), false) = (OtherHost::new(), is_qsd()) else {
        return;
    };
    let disk = Disk::new(MIB_8);
    let source = disk.attach_with("disk", &[]);
    let destination = other.incoming(&disk);
    let (mut vmm, mut queues, data) = guest(&source);
    let bases = vmm.suspend().unwrap();
    vmm.migrate(destination.socket(), &bases).unwrap();
    assert_reads(&mut queues[0], &data);
    assert_eq!(shown(&disk)["session"]["state"], "Attached");
    let new = Rng::new(2).bytes(65536);
    queues[1].write(0, &new).unwrap();
    // The source takes it back like any other.
    let bases = vmm.suspend().unwrap();
    vmm.migrate(source.socket(), &bases).unwrap();
    assert_reads(&mut queues[0], &new);
    drop(vmm);
    destination.stop();
    source.stop();
}

/// What was completed and not flushed is on the source's host only: the guest, which was told that it is written,
/// waits until the source has been attached again.
#[test]
fn a_source_that_died_keeps_the_guest_from_another_host() {
    let (Some(other), false) = (OtherHost::new(), is_qsd()) else {
        return;
    };
    let disk = Disk::new(MIB_8);
    let mut source = disk.attach_with("disk", &[]);
    let (mut vmm, mut queues, data) = guest(&source);
    source.kill();
    let used = vmm.used();
    let destination = other.incoming(&disk);
    vmm.leave(Connection::open(destination.socket()).unwrap());
    let _ = vmm.arrive(&used);
    vmm.await_end();
    let log = destination.log();
    assert!(log.contains("not let go of in order"), "{log}");
    let source = disk.reattach(source);
    let end = Instant::now() + PATIENCE;
    while vmm.reconnect(destination.socket()).is_err() {
        assert!(Instant::now() < end, "{}", destination.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_reads(&mut queues[0], &data);
    source.stop();
    assert_reads(&mut queues[1], &data);
}

/// On the same host the runtime map is there, in another runtime directory.
#[test]
fn another_runtime_directory_is_named() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let mut source = disk.attach_with("disk", &[]);
    let (mut vmm, _queues, _) = guest(&source);
    source.kill();
    let used = vmm.used();
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let options = ["--incoming", "--runtime-dir", text(dir.path())];
    let destination = disk.attach_with("disk", &options);
    vmm.leave(Connection::open(destination.socket()).unwrap());
    let _ = vmm.arrive(&used);
    vmm.await_end();
    let log = destination.log();
    assert!(log.contains(text(disk.runtime())), "{log}");
}
