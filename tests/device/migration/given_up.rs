//! Migrations that are given up after the source has let go of the disk: its guest is still there.

use std::time::Duration;

use rustix::process::Signal;
use test_support::frontend::device::Setup;
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{Daemon, Disk, expect_success, stop};

use super::{MIB_8, await_shown, incoming, is_qsd, shown};

/// A guest that is suspended at a source that has let go of the disk, for a destination that waits.
struct Scene {
    disk: Disk,
    source: Daemon,
    destination: Daemon,
    vmm: Vmm,
    bases: Vec<u16>,
    queues: Vec<Queue>,
    data: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let disk = Disk::new(MIB_8);
        let source = disk.attach_with("disk", &[]);
        let setup = Setup::default().with_inflight();
        let mut frontend = source.connect_with(&setup);
        let data = Rng::new(1).bytes(65536);
        frontend.queues[0].write(0, &data).unwrap();
        let (vmm, queues) = Vmm::of(frontend, &setup);
        let bases = vmm.suspend().unwrap();
        let destination = incoming(&disk);
        await_shown(&disk, |shown| shown["diskState"] == "Unattached");
        Self {
            disk,
            source,
            destination,
            vmm,
            bases,
            queues,
            data,
        }
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.disk.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The source has the disk again, before its guest goes on: nobody else may have it, or delete it.
#[test]
fn the_source_takes_the_disk_back() {
    if is_qsd() {
        return;
    }
    let Scene {
        disk,
        source,
        destination,
        vmm,
        bases,
        mut queues,
        data,
    } = Scene::new();
    let give_up = |destination: Daemon| {
        await_shown(&disk, |shown| shown["diskState"] == "Unattached");
        destination.stop();
        await_shown(&disk, |shown| shown["diskState"] == "Attached");
    };
    give_up(destination);
    give_up(incoming(&disk));
    let delete = disk
        .command(&["disk", "delete", "disk", "--yes"])
        .output()
        .unwrap();
    assert!(!delete.status.success());
    vmm.resume(&bases).unwrap();
    queues[0].arena.reset();
    assert!(queues[0].read(0, data.len()).as_ref() == Ok(&data));
    source.stop();
}

/// Between the end of the destination and the moment in which the source takes the disk back anybody may change it.
/// The guest does not go on with what it does not know.
#[test]
fn a_guest_does_not_go_on_with_another_disk() {
    if is_qsd() {
        return;
    }
    let scene = Scene::new();
    stop(scene.source.pid());
    let pid = scene.destination.pid();
    scene.destination.signal_all(&[pid], Signal::TERM);
    await_shown(&scene.disk, |shown| shown["awaitedBy"].is_null());
    let resize = ["disk", "resize", "disk", "--size", "16MiB"];
    expect_success(&mut scene.disk.command(&resize));
    scene.source.signal_all(&[scene.source.pid()], Signal::CONT);
    // It does not take it back, and says so once.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(shown(&scene.disk)["diskState"], "Unattached");
    let _ = scene.vmm.resume(&scene.bases);
    scene.vmm.await_end();
    let log = scene.source.log();
    let refused = "was reverted or resized while this attach did not have it";
    assert!(log.contains(refused), "{log}");
    let error = scene.fails(&["upgrade", "disk"]);
    assert!(error.contains("does not have the disk"), "{error}");
    // Another guest may have it.
    let mut another = scene.source.connect();
    another.queues[0].assert_serves(0, 2);
    drop(another);
    scene.source.stop();
}

/// Its control socket goes with an attach that has let go of its disk.
#[test]
fn nothing_is_left_of_a_source_that_ends_without_the_disk() {
    if is_qsd() {
        return;
    }
    let scene = Scene::new();
    scene.source.stop();
    scene.destination.stop();
    let left = std::fs::read_dir(scene.disk.runtime()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
