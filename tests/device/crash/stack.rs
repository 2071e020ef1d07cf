//! Other layers under a guest that works: snapshots, new DEKs, flattening, and kills among them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use attach::AttachError;
use attach::{self, DekState};
use disks::{Applied, Disk as Resource, JobChange, LayerOp, SnapshotRequest};
use installation::envelope::ResourceKind;
use test_support::clean::assert_clean_disk;
use test_support::frontend::client::{kind, request_header};
use test_support::frontend::queue::{Queue, Seg};
use test_support::rng::Rng;
use test_support::{AttachOptions, Backend, Disk, PATIENCE, deaths, expect_success};
use uuid::Uuid;

use super::load::{self, Mix, World};
use super::{Victims, strike};

/// Asks for changes of an attached disk's layers, as commands do.
struct Changes<'a> {
    runtime_dir: &'a Path,
    disk: Uuid,
    snapshots: u32,
    /// The longest that a change took.
    longest: Duration,
}

impl<'a> Changes<'a> {
    fn of(disk: &'a Disk) -> Self {
        let installation = disk.installation();
        let found = Resource::find(&installation, "disk").unwrap();
        Self {
            runtime_dir: disk.runtime(),
            disk: found.id(),
            snapshots: 0,
            longest: Duration::ZERO,
        }
    }

    fn timed(&mut self, op: &LayerOp) -> Result<Applied, AttachError> {
        let begun = Instant::now();
        let applied = attach::send_layer_op(self.runtime_dir, self.disk, op);
        self.longest = self.longest.max(begun.elapsed());
        applied
    }

    fn snapshot(&mut self) -> Result<Applied, AttachError> {
        self.snapshots += 1;
        let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: format!("s{}-{}", self.snapshots, Uuid::new_v4().simple()),
            incremental: false,
            data_dir: None,
        });
        self.timed(&snapshot)
    }

    fn rotate(&mut self, rate: Option<u64>) -> Result<Applied, AttachError> {
        self.timed(&LayerOp::RotateDek { rate })
    }

    fn flatten(&mut self) -> Result<Applied, AttachError> {
        self.timed(&LayerOp::Flatten { rate: None })
    }

    /// Waits until the job is done.
    fn await_job(&self) {
        let end = Instant::now() + PATIENCE;
        while let Some(job) = attach::key_status(self.runtime_dir, self.disk).unwrap().job {
            assert!(Instant::now() < end, "the job isn't done: {job:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn layers(disk: &Disk) -> usize {
        let installation = disk.installation();
        let found = Resource::find(&installation, "disk").unwrap();
        let header = found.header_file().unwrap().read().unwrap();
        header.claims().layers.len()
    }
}

fn not_ours() -> bool {
    Backend::chosen() != Backend::Sealdisk
}

#[test]
fn a_guest_under_load_does_not_notice_other_layers() {
    if not_ours() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    for round in 0..3 {
        let daemon = disk.attach(&AttachOptions::default());
        world.verify(&daemon);
        let mut changes = Changes::of(&disk);
        let frontend = daemon.connect_with(&load::setup(round));
        let done = world.run(frontend, Mix::All, round.into(), || {
            changes.snapshot().unwrap();
            changes.snapshot().unwrap();
            changes.rotate(None).unwrap();
            changes.await_job();
        });
        assert_eq!(Changes::layers(&disk), 1);
        eprintln!(
            "{done} requests, a change took {:?} at most",
            changes.longest
        );
        assert!(done > 100, "only {done} requests: no load to speak of");
        world.verify(&daemon);
    }
    let mut daemon = disk.attach(&AttachOptions::default());
    world.verify(&daemon);
    assert!(daemon.terminate().success());
    is_clean(&disk);
}

/// Holds a disk that was detached in order to the rule of [`test_support::clean`].
fn is_clean(disk: &Disk) {
    assert_clean_disk(|arguments| disk.command(arguments), "disk");
}

#[test]
fn as_many_layers_as_there_can_be_are_served_and_flattened() {
    if not_ours() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let mut world = World::new();
    let daemon = disk.attach(&AttachOptions::default());
    let mut changes = Changes::of(&disk);
    world.run(daemon.connect(), Mix::All, 1, || {
        // One of what was not written to since takes no layer.
        let end = Instant::now() + PATIENCE;
        while Changes::layers(&disk) < 32 {
            assert!(Instant::now() < end, "the guest writes nothing");
            changes.snapshot().unwrap();
        }
    });
    assert_eq!(Changes::layers(&disk), 32);
    assert!(changes.rotate(None).is_err(), "32 layers are the most");
    world.verify(&daemon);
    drop(daemon);
    let daemon = disk.attach(&AttachOptions::default());
    world.verify(&daemon);
    world.run(daemon.connect(), Mix::All, 2, || {
        assert_eq!(changes.flatten().unwrap(), Applied::JobBegun);
        changes.await_job();
    });
    assert_eq!(Changes::layers(&disk), 1);
    world.verify(&daemon);
}

/// A key that is disabled in the midst of a rotation stops the copy as well, and both go on with it.
#[test]
fn a_key_revoked_during_a_rotation_stops_the_copy_until_it_is_back() {
    if not_ours() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let run = |line: &str| {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        expect_success(&mut disk.command(&arguments)).stdout
    };
    run("keyvault create vault1");
    run("keyvault key create k --vault-name vault1 --size 2048");
    run("disk-encryption-set create set --key-url https://vault1.vault.localhost/keys/k");
    let set = run("disk-encryption-set show set -o json");
    let set: serde_json::Value = serde_json::from_slice(&set).unwrap();
    let id = set["identity"]["principalId"].as_str().unwrap();
    run(&format!(
        "keyvault set-policy vault1 --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
    run("disk update disk --disk-encryption-set set");

    let mut world = World::new();
    let daemon = disk.attach(&AttachOptions {
        arguments: &["--key-check-interval", "1s", "--on-revoke", "pause"],
        ..AttachOptions::default()
    });
    let mut changes = Changes::of(&disk);
    world.run(daemon.connect_with(&load::setup(0)), Mix::All, 1, || {
        std::thread::sleep(Duration::from_secs(1));
    });
    world.run(daemon.connect_with(&load::setup(1)), Mix::All, 2, || {
        changes.snapshot().unwrap();
        // So slow that it is not done before the key is gone, however busy the machine is.
        changes.rotate(Some(64 << 10)).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        run("keyvault key set-attributes k --vault-name vault1 --enabled false");
        let status = || attach::key_status(disk.runtime(), changes.disk).unwrap();
        let until = |state: DekState| {
            let end = Instant::now() + PATIENCE;
            while status().dek != state {
                assert!(Instant::now() < end, "{:?}", status());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        until(DekState::Destroyed);
        std::thread::sleep(Duration::from_millis(500));
        let stopped = status().job.expect("the job goes on some time");
        std::thread::sleep(Duration::from_secs(3));
        let still = status().job.expect("the job goes on some time");
        assert_eq!(still.bytes_done, stopped.bytes_done, "copied without a key");
        assert_eq!(Changes::layers(&disk), 3);
        run("keyvault key set-attributes k --vault-name vault1 --enabled true");
        until(DekState::Held);
        let (kind, change) = (None, JobChange::Resume(None));
        changes.timed(&LayerOp::Job { kind, change }).unwrap();
        changes.await_job();
        assert_eq!(Changes::layers(&disk), 1);
    });
    world.verify(&daemon);
}

/// Reads the first block with so many requests at a time that there is always one under way.
fn read_without_end(queue: &mut Queue, stop: &AtomicBool) {
    let header = queue.arena.alloc(16, 16);
    queue.mem.write(header, &request_header(kind::IN, 0));
    let data = queue.arena.alloc(4096, 4096);
    let status = queue.arena.alloc(1, 1);
    // All of them, since nobody looks at what comes.
    let request = [
        Seg::out(header, 16),
        Seg::into(data, 4096),
        Seg::into(status, 1),
    ];
    for _ in 0..32 {
        queue.submit(&request);
    }
    while !stop.load(Ordering::Acquire) {
        // In the end there is nobody to answer.
        if queue.next_within(Duration::from_millis(50)).is_some() {
            queue.submit(&request);
        }
    }
}

/// A guest that reads a block all the time can neither keep its old DEK by it, nor keep anybody from stopping the copy
/// or from detaching the disk.
#[test]
fn reads_without_end_keep_up_no_rotation_and_no_command() {
    // The copy waits for long after its first step.
    const SLOW: Option<u64> = Some(64 << 10);
    if not_ours() {
        return;
    }
    let disk = Disk::new(load::DISK_BYTES);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let data = Rng::new(1).bytes(8 << 20);
    frontend.queues[0].write(0, &data).unwrap();
    let mut changes = Changes::of(&disk);
    let go_on = LayerOp::Job {
        kind: None,
        change: JobChange::Resume(None),
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = load::Stop(&stop);
        for queue in &mut frontend.queues {
            let stop = &stop;
            scope.spawn(move || read_without_end(queue, stop));
        }
        changes.rotate(SLOW).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let (kind, change) = (None, JobChange::Pause);
        changes.timed(&LayerOp::Job { kind, change }).unwrap();
        changes.timed(&go_on).unwrap();
        changes.await_job();
        assert_eq!(Changes::layers(&disk), 1);
        changes.rotate(SLOW).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(daemon.terminate().success(), "{}", daemon.log());
    });
    drop(frontend);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    assert!(frontend.queues[0].read(0, data.len()).as_ref() == Ok(&data));
    changes.timed(&go_on).unwrap();
    changes.await_job();
    assert_eq!(Changes::layers(&disk), 1);
    assert!(frontend.queues[0].read(0, data.len()).as_ref() == Ok(&data));
}

/// Snapshots and rotations one after the other, and a kill at a random moment of one.
#[test]
fn kills_in_the_midst_of_changes_lose_nothing() {
    if not_ours() {
        return;
    }
    let mut rng = super::random();
    let disk = Disk::new(load::DISK_BYTES);
    let (mut world, mut all_made) = (World::new(), 0);
    for round in 0..deaths(5) {
        let mut daemon = disk.attach(&AttachOptions::default());
        world.verify(&daemon);
        let delay = Duration::from_millis(rng.within(20..900));
        let victims = rng.pick(&[Victims::Both, Victims::Parent]);
        let frontend = daemon.connect_with(&load::setup(round));
        let (made, slow) = (AtomicU64::new(0), rng.one_in(2).then_some(20 << 20));
        // However slow the machine is, some rounds kill after a change and not only before the first.
        let before = rng.within(0..3);
        world.run(frontend, Mix::All, rng.next(), || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut changes = Changes::of(&disk);
                    let count = |done: bool| made.fetch_add(u64::from(done), Ordering::Relaxed);
                    // Until there is nobody to ask.
                    while attach::key_status(changes.runtime_dir, changes.disk).is_ok() {
                        count(changes.snapshot().is_ok());
                        count(changes.rotate(slow).is_ok());
                    }
                });
                // Whatever happens it is killed: who makes changes goes on until there is nobody to ask.
                let end = Instant::now() + PATIENCE;
                while made.load(Ordering::Relaxed) < before && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(2));
                }
                std::thread::sleep(delay);
                strike(&mut daemon, victims);
            });
        });
        let (made, layers) = (made.into_inner(), Changes::layers(&disk));
        all_made += made;
        eprintln!("round {round}: {victims:?} after {delay:?}, {made} changes, {layers} layers");
    }
    assert!(all_made > 0, "no changes were made");
    let daemon = disk.attach(&AttachOptions::default());
    world.verify(&daemon);
    let mut changes = Changes::of(&disk);
    changes.await_job();
    changes.flatten().unwrap();
    changes.await_job();
    world.verify(&daemon);
}
