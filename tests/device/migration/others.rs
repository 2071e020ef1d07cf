//! What others may do with a disk meanwhile, and what they are shown.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::frontend::device::{Config, Setup};
use test_support::frontend::queue::Queue;
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{Daemon, Disk, PATIENCE};

use super::{MIB_8, await_shown, incoming, is_qsd, shown};

/// A guest at a source, with something written, and a destination that waits.
struct Scene {
    disk: Disk,
    source: Daemon,
    destination: Daemon,
    vmm: Vmm,
    queues: Vec<Queue>,
    data: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let disk = Disk::new(2 * MIB_8);
        let source = disk.attach_with("disk", &[]);
        let destination = incoming(&disk);
        let setup = Setup::default().with_inflight();
        let mut frontend = source.connect_with(&setup);
        let data = Rng::new(1).bytes(65536);
        frontend.queues[0].write(0, &data).unwrap();
        let (vmm, queues) = Vmm::of(frontend, &setup);
        Self {
            disk,
            source,
            destination,
            vmm,
            queues,
            data,
        }
    }

    fn migrate(&mut self) {
        let bases = self.vmm.suspend().unwrap();
        self.vmm.migrate(self.destination.socket(), &bases).unwrap();
        self.assert_serves();
    }

    fn assert_serves(&mut self) {
        assert_reads(&mut self.queues[0], &self.data);
    }
}

fn assert_reads(queue: &mut Queue, data: &[u8]) {
    queue.arena.reset();
    assert!(queue.read(0, data.len()).as_deref() == Ok(data));
}

#[test]
fn what_waits_is_shown_and_does_not_keep_the_source_from_anything() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    let disk = &scene.disk;
    let now = shown(disk);
    assert_eq!(now["diskState"], "Attached", "{now}");
    assert_eq!(
        now["awaitedBy"]["process"],
        scene.destination.pid(),
        "{now}"
    );
    assert_eq!(now["serving"]["disk"], "Held", "{now}");
    assert_eq!(now["waiting"][0]["disk"], "Awaited", "{now}");
    assert!(now["waiting"][0]["refused"].is_null(), "{now}");
    // Another of either kind is refused at once.
    let refused = disk.refused("attach disk --socket-path /nonexistent/s --incoming");
    assert!(refused.contains("waits for the disk disk"), "{refused}");
    let refused = disk.refused("attach disk --socket-path /nonexistent/s");
    assert!(refused.contains("is in use"), "{refused}");
    // Layers and size change as ever, and the destination finds them.
    disk.ok("snapshot create s --source disk");
    disk.ok(&format!("disk resize disk --size {}", 3 * MIB_8));
    scene.migrate();
    let config = scene.vmm.frontend.config();
    assert_eq!(config.capacity(), 3 * MIB_8 / 512);
    let now = await_shown(&scene.disk, |now| now["awaitedBy"].is_null());
    assert_eq!(now["serving"]["disk"], "Held", "{now}");
    assert_eq!(now["waiting"][0]["disk"], "LetGo", "{now}");
    assert_eq!(now["layers"].as_array().unwrap().len(), 2, "{now}");
    // Commands reach the one that has it.
    scene.disk.ok("snapshot create t --source disk");
    scene.assert_serves();
    let events = scene.disk.text("disk events disk");
    assert!(events.contains("LockTaken"), "{events}");
    scene.source.stop();
    assert_reads(&mut scene.queues[0], &scene.data);
    drop(scene.vmm);
    scene.destination.stop();
    assert!(!scene.disk.json("disk show disk")["directory"].is_null());
}

/// Between the two the disk is nobody's, and not for others.
#[test]
fn nobody_else_gets_a_disk_that_is_on_its_way() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    let bases = scene.vmm.suspend().unwrap();
    let now = await_shown(&scene.disk, |now| now["diskState"] == "Unattached");
    assert!(now["session"].is_null(), "it is clean: {now}");
    for command in [
        "disk delete disk --yes",
        "snapshot create s --source disk",
        "disk check disk",
        "disk resize disk --size 64MiB",
    ] {
        let refused = scene.disk.refused(command);
        assert!(
            refused.contains("waits for the disk disk"),
            "{command}: {refused}"
        );
    }
    scene
        .vmm
        .migrate(scene.destination.socket(), &bases)
        .unwrap();
    scene.assert_serves();
}

/// One that waits ends in order, with nothing left behind, and so does one that has let go.
#[test]
fn those_that_do_not_have_the_disk_leave_it_alone_in_the_end() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    scene.migrate();
    let again = incoming(&scene.disk);
    again.stop();
    assert!(shown(&scene.disk)["awaitedBy"].is_null());
    scene.source.stop();
    assert_reads(&mut scene.queues[0], &scene.data);
    assert_eq!(shown(&scene.disk)["diskState"], "Attached");
    drop(scene.vmm);
    scene.destination.stop();
    let now = shown(&scene.disk);
    assert_eq!(now["diskState"], "Unattached", "{now}");
    assert!(now["session"].is_null(), "{now}");
    scene.disk.ok("disk delete disk --yes");
}

/// A rotation goes on where the disk is.
#[test]
fn a_job_goes_on_at_the_destination() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    let data = Rng::new(3).bytes(MIB_8 as usize);
    let queue = &mut scene.queues[0];
    queue.write(MIB_8 / 512, &data).unwrap();
    scene.disk.ok("disk rotate-dek disk --no-wait --rate 2MiB");
    std::thread::sleep(Duration::from_millis(300));
    scene.migrate();
    assert!(!shown(&scene.disk)["job"].is_null());
    scene
        .disk
        .ok("disk rotate-dek disk --resume --rate 100MiB --no-wait");
    await_shown(&scene.disk, |now| now["job"].is_null());
    scene.assert_serves();
    let queue = &mut scene.queues[1];
    assert!(queue.read(MIB_8 / 512, data.len()).as_ref() == Ok(&data));
    // The source knows none of the new layers, and takes them all the same.
    let bases = scene.vmm.suspend().unwrap();
    scene.vmm.migrate(scene.source.socket(), &bases).unwrap();
    scene.assert_serves();
}

/// The guest's choice goes with the disk, also one that is made while the disk is waited for.
#[test]
fn the_cache_mode_goes_with_the_guest() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    let frontend = &scene.vmm.frontend;
    frontend.set_config(Config::WRITEBACK, &[0]).unwrap();
    scene.migrate();
    assert_eq!(scene.vmm.frontend.config().writeback(), 0);
    assert_eq!(shown(&scene.disk)["cache"], "writethrough");
    scene.vmm.suspend().unwrap();
    drop(scene.vmm);
    let again = incoming(&scene.disk);
    let fresh = test_support::frontend::device::Frontend::negotiate(
        test_support::frontend::message::Connection::open(again.socket()).unwrap(),
        &Setup::default(),
    )
    .unwrap();
    fresh.set_config(Config::WRITEBACK, &[1]).unwrap();
    drop(fresh);
    let mut frontend = again.connect();
    assert_eq!(frontend.config().writeback(), 1);
    frontend.queues[0].assert_serves(0, 9);
    assert_eq!(shown(&scene.disk)["cache"], "writeback");
}

/// An attach of another program lets go of the disk like the one before it; one that waits gets another data plane.
#[test]
fn an_upgraded_attach_lets_go_of_the_disk() {
    if is_qsd() {
        return;
    }
    let mut scene = Scene::new();
    let upgraded = scene.disk.json("upgrade disk");
    assert!(upgraded[0]["attachKept"].is_null(), "{upgraded}");
    let waiting = scene.destination.data_plane();
    scene
        .destination
        .signal_all(&[scene.destination.pid()], Signal::HUP);
    let end = Instant::now() + PATIENCE;
    while scene.destination.log().matches("waiting for disk").count() < 2 {
        assert!(Instant::now() < end, "{}", scene.destination.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.migrate();
    assert_ne!(scene.destination.data_plane(), waiting);
    let bases = scene.vmm.suspend().unwrap();
    scene.vmm.migrate(scene.source.socket(), &bases).unwrap();
    scene.assert_serves();
    let upgraded = scene.disk.json("upgrade disk");
    assert!(upgraded[0]["attachKept"].is_null(), "{upgraded}");
    scene.assert_serves();
}
