//! A sync that fails under an attached disk: real processes, on a file system whose device runs out of
//! space behind its back.

use std::fs;
use std::io::Write;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use attach::LayerChanges;
use disks::import::Cancel;
use disks::{Disk as Files, LayerOp};
use installation::Installation;
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;
use test_support::frontend::client::Status;
use test_support::rng::Rng;
use test_support::seccomp::supervise_this_thread;
use test_support::small_fs::{FailingFs, Overcommitted};
use test_support::{AttachOptions, Daemon, Disk, expect_success};
use uuid::Uuid;
use volume::store::Witness;

const NAME: &str = "disk";

struct Faulty {
    disk: Disk,
    fs: Overcommitted,
}

impl Faulty {
    fn new() -> Option<Self> {
        Self::of(8 << 20)
    }

    /// With a disk of `size` bytes.
    fn of(size: u64) -> Option<Self> {
        let fs = Overcommitted::mount()?;
        let disk = Disk::with(size, &["--data-dir", fs.path().to_str().unwrap()]);
        Some(Self { disk, fs })
    }

    fn attach(&self) -> Daemon {
        self.disk.attach(&AttachOptions::default())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.disk.command(arguments).output().unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert_eq!(
            stderr.trim_end().lines().count(),
            1,
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains("sync"), "{arguments:?}: {stderr}");
        stderr
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut command = self.disk.command(&[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&expect_success(&mut command).stdout).unwrap()
    }

    fn show(&self) -> Value {
        self.json(&["disk", "show", NAME])
    }

    /// Writes `data` to the beginning, and has the sync fail that is to make it durable. The device has
    /// space again when this returns.
    fn fail_a_sync(&self, daemon: &Daemon, data: &[u8]) {
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        queue.write(0, data).unwrap();
        let full = self.fs.fill_device();
        assert_eq!(queue.flush(), Err(Status::IoErr));
        drop(full);
        for _ in 0..3 {
            assert_eq!(
                queue.flush(),
                Err(Status::IoErr),
                "a sync that failed stays failed"
            );
        }
        assert_eq!(queue.read(0, data.len()).as_deref(), Ok(data));
    }

    fn flush_fails(&self, daemon: &Daemon) {
        assert_eq!(daemon.connect().queues[0].flush(), Err(Status::IoErr));
    }

    /// Waits until the header says it too.
    fn wait_for_the_mark(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.claims().failed_sync.is_none() {
            assert!(Instant::now() < end, "the header is never marked");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn files(&self) -> (Installation, Files) {
        let installation = self.disk.installation();
        let files = Files::find(&installation, NAME).unwrap();
        (installation, files)
    }

    fn claims(&self) -> installation::envelope::HeaderPayload {
        let (_, files) = self.files();
        let header = files.header_file().unwrap().read().unwrap();
        header.claims().clone()
    }

    fn detach_is_not_clean(&self, daemon: &mut Daemon) {
        assert!(!daemon.terminate().success());
        let log = daemon.log();
        let last = log.lines().last().unwrap();
        assert!(last.contains("disk check"), "{log}");
        assert!(self.claims().session.is_some());
        let left = fs::read_dir(self.disk.runtime()).unwrap().flatten();
        let maps = left.filter(|file| file.path().extension().is_some_and(|e| e == "map"));
        assert_eq!(maps.count(), 1, "the runtime map is kept");
    }

    /// Everything but looking, reading and deleting.
    fn is_refused(&self) {
        let image = self.fs.path().join("image");
        let commands: [&[&str]; 5] = [
            &["snapshot", "create", "s", "--source", NAME],
            &["disk", "rotate-dek", NAME],
            &["disk", "flatten", NAME],
            &["disk", "resize", NAME, "--size", "16MiB"],
            &[
                "disk",
                "export",
                NAME,
                "--file",
                image.to_str().unwrap(),
                "--format",
                "raw",
            ],
        ];
        for command in commands {
            let why = self.refused(command);
            assert!(why.contains("disk check"), "{command:?}: {why}");
        }
        assert!(!image.exists());
        assert_eq!(self.claims().size, 8 << 20);
        assert!(self.claims().job.is_none() && self.claims().layers.len() == 1);
    }

    /// A report names what was written for the first time since the last flush.
    fn names_ranges(&self, report: &Value, unflushed: &[(u64, u64)]) {
        let ranges = report["unflushedRanges"].as_array();
        let ranges = ranges.map_or(&[][..], Vec::as_slice).iter();
        let found: Vec<_> = ranges
            .map(|range| {
                let number = |name: &str| range[name].as_u64().unwrap();
                (number("offset"), number("length"))
            })
            .collect();
        assert_eq!(found, unflushed, "{report}");
        let message = report["problems"][0]["message"].as_str().unwrap();
        for (offset, length) in unflushed {
            assert!(message.contains(&format!("{offset}+{length}")), "{message}");
        }
    }

    fn repair(&self, data: &[u8], unflushed: &[(u64, u64)]) {
        let output = self.run(&["disk", "check", NAME, "-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let problem = &report["problems"][0];
        assert_eq!(
            (&problem["part"], &problem["kind"]),
            (&"sync".into(), &"Damage".into())
        );
        self.names_ranges(&report, unflushed);
        let report = self.json(&["disk", "check", NAME, "--repair"]);
        self.names_ranges(&report, unflushed);
        let problem = &report["problems"][0];
        assert_eq!(
            (&problem["part"], &problem["repaired"]),
            (&"sync".into(), &true.into())
        );
        assert!(
            problem["message"].as_str().unwrap().contains("fsck"),
            "{report}"
        );
        let show = self.show();
        assert_eq!(show["diskState"], "Unattached", "{show}");
        assert!(show["failedSync"].is_null(), "{show}");

        let mut daemon = self.attach();
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        assert_eq!(queue.read(0, data.len()).as_deref(), Ok(data));
        queue.write(4096 / 512, data).unwrap();
        queue.flush().unwrap();
        drop(frontend);
        assert!(daemon.terminate().success());
        assert!(
            self.json(&["disk", "check", NAME])["problems"]
                .as_array()
                .unwrap()
                .is_empty()
        );
        let plaintext = expect_success(&mut self.disk.command(&["disk", "decrypt", NAME])).stdout;
        assert!(plaintext[..4096] == *data && plaintext[4096..8192] == *data);
    }
}

#[test]
fn a_failed_sync_stays_failed_until_the_disk_is_repaired() {
    let Some(faulty) = Faulty::new() else {
        return;
    };
    let data = Rng::new(1).bytes(4096);
    let mut daemon = faulty.attach();
    faulty.fail_a_sync(&daemon, &data);
    faulty.wait_for_the_mark();
    let show = faulty.show();
    assert_eq!(show["diskState"], "SyncFailed", "{show}");
    assert_eq!(show["failedSync"]["file"], "map", "{show}");
    assert_eq!(faulty.json(&["disk", "list"])[0]["diskState"], "SyncFailed");
    let status = faulty.run(&["status", "-o", "json"]);
    let view: Value = serde_json::from_slice(&status.stdout).unwrap();
    let is_it = |alarm: &Value| alarm["code"] == "SyncFailed" && alarm["subject"]["name"] == NAME;
    assert!(
        view["alarms"].as_array().unwrap().iter().any(is_it),
        "{view:#}"
    );
    assert_eq!(status.status.code(), Some(2));
    let events = expect_success(&mut faulty.disk.command(&["disk", "events", NAME])).stdout;
    let events = String::from_utf8(events).unwrap();
    assert!(events.contains("SyncFailed"), "{events}");
    for command in [
        &["snapshot", "create", "s", "--source", NAME][..],
        &["disk", "rotate-dek", NAME],
        &["disk", "resize", NAME, "--size", "16MiB"],
    ] {
        faulty.refused(command);
    }

    // Of whatever process.
    daemon.kill();
    let mut daemon = faulty.attach();
    faulty.flush_fails(&daemon);
    assert!(daemon.log().contains("sync"), "{}", daemon.log());
    faulty.detach_is_not_clean(&mut daemon);
    faulty.is_refused();
    faulty.repair(&data, &[(0, 4096)]);
}

#[test]
fn a_failed_sync_is_not_forgotten_by_a_loss_of_power() {
    let Some(faulty) = Faulty::new() else {
        return;
    };
    let mut daemon = faulty.attach();
    let kept = Rng::new(1).bytes(4096);
    let mut frontend = daemon.connect();
    frontend.queues[0].write(0, &kept).unwrap();
    frontend.queues[0].flush().unwrap();
    drop(frontend);
    let (installation, files) = faulty.files();
    mark(&installation, &files);
    daemon.kill();
    fs::read_dir(faulty.disk.runtime())
        .unwrap()
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|e| e == "map"))
        .for_each(|map| fs::remove_file(map.path()).unwrap());

    assert_eq!(faulty.show()["diskState"], "SyncFailed");
    faulty.is_refused();
    let mut daemon = faulty.attach();
    faulty.flush_fails(&daemon);
    faulty.detach_is_not_clean(&mut daemon);
    faulty.repair(&kept, &[]);
}

/// What the kernel makes of a file system whose storage fails is that nobody can write to it: also then it
/// is told what has become of the disk, attached or not.
#[test]
fn a_failed_sync_is_told_when_the_file_system_is_read_only() {
    let Some(storage) = FailingFs::mount() else {
        return;
    };
    let disk = storage.disk(8 << 20);
    let run = |arguments: &[&str]| disk.command(arguments).output().unwrap();
    let json = |output: Output| -> Value { serde_json::from_slice(&output.stdout).unwrap() };
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    frontend.queues[0].write(0, &[1; 4096]).unwrap();
    let ballast = storage.fail();
    assert_eq!(frontend.queues[0].flush(), Err(Status::IoErr));
    drop(frontend);

    let show = json(run(&["disk", "show", NAME, "-o", "json"]));
    let list = json(run(&["disk", "list", "-o", "json"]));
    for view in [&show, &list[0]] {
        assert_eq!(view["diskState"], "SyncFailed", "{view}");
        assert_eq!(view["session"]["state"], "Attached", "{view}");
        assert!(view["problem"].is_null(), "{view}");
    }
    assert!(!show["failedSync"].is_null(), "{show}");
    let one_line = |arguments: &[&str], words: &[&str]| {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {said}");
        }
    };
    one_line(&["disk", "check", NAME], &["in use"]);
    assert!(!daemon.terminate().success());

    let output = run(&["disk", "check", NAME, "-o", "json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report = json(output);
    assert_eq!(report["headerAuthenticated"], true, "{report}");
    let problems = report["problems"].as_array().unwrap().iter();
    let parts: Vec<_> = problems.map(|problem| &problem["part"]).collect();
    assert_eq!(parts, ["sync"], "{report}");
    for command in [
        &["disk", "check", NAME, "--repair"][..],
        &["disk", "resize", NAME, "--size", "16MiB"],
    ] {
        one_line(command, &["read-only", "mend the storage"]);
    }
    drop(ballast);
}

/// A file system that goes back to what its journal has leaves holes where the guest wrote since the last
/// flush. Nothing of that is garbage to anybody, and a repair has them read as before.
#[test]
fn unflushed_data_that_are_lost_are_named_and_given_up_by_a_repair() {
    let Some(faulty) = Faulty::new() else {
        return;
    };
    let (before, data) = (Rng::new(1).bytes(8192), Rng::new(2).bytes(4096));
    let mut daemon = faulty.attach();
    daemon.connect().queues[0].write(0, &before).unwrap();
    assert!(daemon.terminate().success());
    faulty.json(&["snapshot", "create", "s", "--source", NAME]);
    for fails in [true, false] {
        let mut daemon = faulty.attach();
        if fails {
            faulty.fail_a_sync(&daemon, &data);
        } else {
            daemon.connect().queues[0].write(0, &data).unwrap();
        }
        daemon.connect().queues[0]
            .write(4096 * 4 / 512, &data)
            .unwrap();
        daemon.kill();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let claims = faulty.claims();
        let top = claims.layers.last().unwrap().id;
        let (_, files) = faulty.files();
        let top = fs::OpenOptions::new()
            .write(true)
            .open(files.directory().join(format!("{top}.data")))
            .unwrap();
        fallocate(&top, hole, 0, 4096).unwrap();

        let output = faulty.run(&["disk", "check", NAME, "-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let lost = |report: &Value, repaired: bool| {
            assert_eq!(
                report["lostRanges"],
                serde_json::json!([{"offset": 0, "length": 4096}]),
                "{report}"
            );
            let problems = report["problems"].as_array().unwrap();
            let problem = problems.iter().find(|p| p["part"] == "data").unwrap();
            assert_eq!(problem["repaired"], repaired, "{report}");
            let message = problem["message"].as_str().unwrap();
            assert!(
                message.contains("0+4096") && !message.contains("backup"),
                "{message}"
            );
        };
        lost(&serde_json::from_slice(&output.stdout).unwrap(), false);
        let plain = faulty.fs.path().join("plain");
        let refused = faulty.run(&[
            "disk",
            "decrypt",
            NAME,
            "--output-file",
            plain.to_str().unwrap(),
        ]);
        assert!(!refused.status.success() && !plain.exists(), "{refused:?}");

        lost(&faulty.json(&["disk", "check", NAME, "--repair"]), true);
        assert_eq!(faulty.show()["diskState"], "Unattached");
        let report = faulty.json(&["disk", "check", NAME]);
        assert!(
            report["problems"].as_array().unwrap().is_empty(),
            "{report}"
        );
        let plaintext = expect_success(&mut faulty.disk.command(&["disk", "decrypt", NAME])).stdout;
        assert!(plaintext[..8192] == before[..] && plaintext[4096 * 4..4096 * 5] == data[..]);
    }
}

/// A command that does a job of a disk that nobody has attached meets the failure itself.
#[test]
fn a_job_whose_sync_failed_is_refused_until_the_disk_is_repaired() {
    let Some(faulty) = Faulty::of(10 << 30) else {
        return;
    };
    // Each in a page of the map file of its own. That takes more blocks than ext4 frees with a snapshot, for
    // which the device has space.
    let places = (0..160).map(|place| place * (64 << 20) / 512);
    let data = Rng::new(1).bytes(4096);
    for name in ["first", "second"] {
        let mut daemon = faulty.attach();
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        for sector in places.clone() {
            match name {
                "first" => queue.write(sector, &data).unwrap(),
                // So that nothing but the map is to be written when this is merged into the top.
                _ => queue.write_zeroes(&[(sector, 8, 0)]).unwrap(),
            }
        }
        queue.flush().unwrap();
        drop(frontend);
        assert!(daemon.terminate().success());
        let create = ["snapshot", "create", name, "--source", NAME];
        expect_success(&mut faulty.disk.command(&create));
    }
    let full = faulty.fs.fill_device();
    let delete = ["snapshot", "delete", "second", "--yes"];
    let deleted = expect_success(&mut faulty.disk.command(&delete));
    let note = String::from_utf8(deleted.stderr).unwrap();
    assert!(note.contains("cannot sync"), "{note}");
    drop(full);

    let claims = faulty.claims();
    assert!(claims.failed_sync.is_some(), "{note}");
    assert!(claims.job.is_some() && claims.layers.len() == 3);
    assert_eq!(faulty.show()["diskState"], "SyncFailed");
    let why = faulty.refused(&["disk", "flatten", NAME]);
    assert!(why.contains("disk check"), "{why}");
    let mut daemon = faulty.attach();
    faulty.flush_fails(&daemon);
    faulty.detach_is_not_clean(&mut daemon);

    faulty.json(&["disk", "check", NAME, "--repair"]);
    assert!(faulty.claims().failed_sync.is_none());
    // Now it goes on.
    let mut daemon = faulty.attach();
    let end = Instant::now() + Duration::from_secs(60);
    while faulty.claims().layers.len() > 2 {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut frontend = daemon.connect();
    for sector in places {
        let found = frontend.queues[0].read(sector, 4096).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    }
    drop(frontend);
    assert!(daemon.terminate().success());
}

/// What a resize is told by the kernel nobody else is: not even the data plane that serves the disk.
#[test]
fn a_resize_whose_sync_failed_is_known_to_everybody() {
    for attached in [false, true] {
        let disk = Disk::new(8 << 20);
        // Of whose syncs of the data none succeeds: who grows the files.
        let victim = Arc::new(AtomicU32::new(0));
        let resize = || {
            let of = victim.clone();
            let supervisor = supervise_this_thread(libc::SYS_fsync, move |arguments| {
                let pid = of.load(Ordering::Relaxed);
                let path = fs::read_link(format!("/proc/{pid}/fd/{}", arguments[0])).ok()?;
                (path.extension()? == "data").then_some(libc::EIO)
            });
            // Its processes are supervised as this thread is.
            let daemon = attached.then(|| disk.attach(&AttachOptions::default()));
            let pid = daemon.as_ref().map_or_else(std::process::id, Daemon::pid);
            victim.store(pid, Ordering::Relaxed);
            let installation = disk.installation();
            let changes = LayerChanges {
                installation: &installation,
                runtime_dir: disk.runtime(),
                cancel: &Cancel::default(),
                wait: false,
            };
            let files = Files::find(&installation, NAME).unwrap();
            let grow = LayerOp::Grow { size: 16 << 20 };
            let result = changes.change_layers(&files, &grow, &mut |_| {});
            (result.unwrap_err().to_string(), daemon, supervisor)
        };
        let (error, mut daemon, supervisor) =
            std::thread::scope(|scope| scope.spawn(resize).join().unwrap());
        assert!(error.contains("cannot sync"), "{error}");

        let show = || {
            let mut command = disk.command(&["disk", "show", NAME, "-o", "json"]);
            let stdout = expect_success(&mut command).stdout;
            serde_json::from_slice::<Value>(&stdout).unwrap()
        };
        assert_eq!(show()["failedSync"]["file"], "data");
        if let Some(daemon) = &mut daemon {
            assert_eq!(daemon.connect().queues[0].flush(), Err(Status::IoErr));
            assert!(!daemon.terminate().success());
        }
        supervisor.join();
        let mut resize = disk.command(&["disk", "resize", NAME, "--size", "16MiB"]);
        let refused = resize.output().unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("disk check"));
        let mut check = disk.command(&["disk", "check", NAME, "--repair"]);
        // The file is longer than the disk, which is for a later repair.
        assert_eq!(check.status().unwrap().code(), Some(3));
        expect_success(&mut resize);
        assert!(show()["failedSync"].is_null());
    }
}

/// Whoever is told by the kernel that a write was lost may be killed before it says so. A file that is opened after that
/// knows nothing; one that was open before does.
#[test]
fn what_somebody_else_was_told_of_is_known_to_a_witness() {
    let Some(fs) = Overcommitted::mount() else {
        return;
    };
    let path = fs.path().join("data");
    let mut file = fs::File::create(&path).unwrap();
    let witness = Witness::open(&path).unwrap();
    assert!(witness.lost_write().is_none());
    file.write_all(&[1; 1 << 20]).unwrap();
    let full = fs.fill_device();
    assert!(file.sync_all().is_err(), "the device has a place for it");
    drop(full);
    let later = fs::File::open(&path).unwrap();
    assert!(later.sync_all().is_ok(), "it is told once");
    assert!(Witness::open(&path).unwrap().lost_write().is_none());
    assert!(witness.lost_write().is_some());
    assert!(witness.lost_write().is_none(), "and that once too");
}

/// What the header says after a sync failed and the power went.
fn mark(installation: &Installation, files: &Files) {
    let header_file = files.header_file().unwrap();
    let mut lock = header_file.lock().unwrap();
    let (mut header, dek) = files.unlock(installation, lock.read().unwrap()).unwrap();
    header.session.as_mut().unwrap().boot = Uuid::new_v4();
    let layer = header.top().unwrap().id;
    let failed = installation::envelope::FailedSync::new(layer, None, "Input/output error");
    header.failed_sync = Some(failed);
    lock.write(&header, &dek).unwrap();
}
