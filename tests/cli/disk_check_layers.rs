//! `disk check` of disks of several layers, each of which may be damaged.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disks::{Disk, LayerOp, SnapshotRequest, Unattached};
use installation::envelope::ResourceKind;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use test_support::{Host, allocated, text};
use uuid::Uuid;

const CLEAN: i32 = 0;
const DAMAGED: i32 = 2;
const LEAKING: i32 = 3;

/// A disk whose content is in the layer beneath its top one, which a snapshot has too.
struct Layered {
    host: Host,
    content: Vec<u8>,
    lower: Uuid,
    top: Uuid,
}

impl Layered {
    fn new() -> Self {
        let host = Host::new();
        let raw = host.raw_image("disk.raw");
        host.ok(&["disk", "create", "d", "--source", text(&raw)]);
        let installation = host.installation();
        let disk = Disk::find(&installation, "d").unwrap();
        let claim = disk.claim().unwrap();
        let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: "s".into(),
            incremental: false,
            data_dir: None,
        });
        let nowhere = Path::new("/dev/shm/there-is-no-such-directory");
        let mut nobody = Unattached::settled(&installation, &disk, claim, nowhere).unwrap();
        snapshot.apply(&installation, &disk, &mut nobody).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let layers: Vec<_> = header.claims().layers.iter().map(|l| l.id).collect();
        let [lower, top] = layers[..] else {
            panic!("{layers:?}");
        };
        let content = fs::read(&raw).unwrap();
        Self {
            host,
            content,
            lower,
            top,
        }
    }

    fn file(&self, layer: Uuid, extension: &str) -> PathBuf {
        let directory = self.host.disks().join("d");
        directory.join(format!("{layer}.{extension}"))
    }

    fn check(&self, repair: bool) -> (i32, Value) {
        let repair: &[&str] = if repair { &["--repair"] } else { &[] };
        let arguments = [&["disk", "check", "d", "-o", "json"], repair].concat();
        let output = self.host.run(&arguments);
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code().unwrap(), report)
    }

    fn is_clean(&self) {
        self.host.is_clean("d");
        assert!(self.host.ok(&["disk", "decrypt", "d"]) == self.content);
    }

    /// Puts something in the place of a file of the lower layer and looks at the only problem.
    fn damaged(&self, extension: &str, damage: impl Fn(&Path), part: &str, why: &str) {
        let path = self.file(self.lower, extension);
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        let copied = std::process::Command::new("cp")
            .args(["--sparse=always", text(&aside), text(&path)])
            .status();
        assert!(copied.unwrap().success());
        // The check must not see it.
        let away = self.host.path("aside");
        fs::rename(&aside, &away).unwrap();
        damage(&path);
        for repair in [false, true] {
            let (status, report) = self.check(repair);
            assert_eq!(status, DAMAGED, "{report}");
            let problem = &report["problems"][0];
            assert_eq!(
                (&problem["kind"], &problem["part"]),
                (&"Damage".into(), &part.into())
            );
            let message = problem["message"].as_str().unwrap();
            assert!(message.contains(why), "{why}: {message}");
            assert!(message.contains(&self.lower.to_string()), "{message}");
        }
        fs::rename(&away, &path).unwrap();
        self.is_clean();
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).unwrap()
}

#[test]
fn damage_beneath_the_top_layer_is_told_with_its_layer() {
    let disk = Layered::new();
    disk.is_clean();
    let (_, report) = disk.check(true);
    assert_eq!(report["dataBytes"], (3 << 20) + 2 * 4096);
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    disk.damaged("data", remove, "data", "cannot open");
    disk.damaged("map", remove, "map", "cannot open");
    let cut_off = |path: &Path| open(path).set_len(20 << 20).unwrap();
    disk.damaged("data", cut_off, "data", "truncated");
    let others = disk.file(disk.top, "map");
    let exchange = |path: &Path| {
        fs::copy(&others, path).unwrap();
    };
    disk.damaged("map", exchange, "map", "layer");
    let flip = |path: &Path| open(path).write_all_at(&[0xff; 8], 4096 + 100).unwrap();
    disk.damaged("map", flip, "map", "damaged");
}

#[test]
fn space_in_a_shared_layer_is_given_back_unless_somebody_uses_it() {
    let disk = Layered::new();
    let data = disk.file(disk.lower, "data");
    let before = allocated(&data);
    open(&data).write_all_at(&[7; 1 << 20], 10 << 20).unwrap();
    let (status, report) = disk.check(false);
    assert_eq!(status, LEAKING, "{report}");
    let user = File::open(&data).unwrap();
    flock(&user, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = disk
        .host
        .refused_with("OperationNotAllowed", &["disk", "check", "d", "--repair"]);
    assert!(refused.contains(text(&data)), "{refused}");
    drop(user);
    let (status, report) = disk.check(true);
    assert_eq!(status, CLEAN, "{report}");
    assert!(allocated(&data) <= before);
    disk.is_clean();
}

#[test]
fn layers_that_the_header_does_not_name_are_removed_if_it_is_proven_to_count() {
    let disk = Layered::new();
    let host = &disk.host;
    let principal = host.encryption_set("set1", &["get", "wrapKey", "unwrapKey"]);
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    let gone = Uuid::new_v4();
    let files = ["data", "map"].map(|extension| disk.file(gone, extension));
    for file in &files {
        // As an interrupted push leaves them.
        fs::write(file, [0; 8192]).unwrap();
    }
    host.grant(principal, &[]);
    let leaks = |repair| {
        let (status, report) = disk.check(repair);
        assert_eq!(status, LEAKING, "{report}");
        let message = report["problems"][0]["message"].as_str().unwrap();
        assert!(message.contains(&gone.to_string()), "{message}");
        assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    };
    leaks(true);
    host.grant(principal, &["get", "wrapKey", "unwrapKey"]);
    leaks(false);
    assert!(files.iter().all(|file| file.exists()));
    let (status, report) = disk.check(true);
    assert_eq!(status, CLEAN, "{report}");
    assert!(!files.iter().any(|file| file.exists()));
    disk.is_clean();
}

#[test]
fn layers_of_a_newer_header_are_left_when_an_older_one_was_put_back() {
    let disk = Layered::new();
    let host = &disk.host;
    let header = host.disks().join("d/header");
    // What it holds already, so that its top layer is not empty.
    host.write("d", 5 << 20, &disk.content[5 << 20..][..4096]);
    let older = fs::read(&header).unwrap();
    host.ok(&["snapshot", "create", "s2", "--source", "d"]);
    let newest = host.layers(ResourceKind::Disk, "d")[2];
    host.write("d", 8 << 20, &[7; 4096]);
    let newer = fs::read(&header).unwrap();
    fs::write(&header, &older).unwrap();
    // Beside it, one that an interrupted push left: perhaps the newer header names it too.
    let empty = disk.file(Uuid::new_v4(), "data");
    fs::write(&empty, [0; 4096]).unwrap();
    let (status, report) = disk.check(true);
    assert_eq!(status, LEAKING, "{report}");
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{report}");
    let told = |problem: &&Value| {
        let message = problem["message"].as_str().unwrap();
        message.contains(&newest.to_string()) && message.contains("older header")
    };
    assert_eq!(problems.iter().filter(told).count(), 1, "{report}");
    assert!(empty.exists());
    fs::write(&header, &newer).unwrap();
    let (status, report) = disk.check(true);
    assert_eq!(status, CLEAN, "{report}");
    assert!(!empty.exists());
    let mut content = disk.content.clone();
    content[8 << 20..][..4096].fill(7);
    assert!(host.ok(&["disk", "decrypt", "d"]) == content);
}

#[test]
fn layers_that_were_dropped_are_removed_after_a_crash_that_left_their_files() {
    let disk = Layered::new();
    let files = ["data", "map"].map(|extension| disk.file(disk.lower, extension));
    let aside = ["data", "map"].map(|extension| disk.host.path(extension));
    for (file, aside) in files.iter().zip(&aside) {
        fs::hard_link(file, aside).unwrap();
    }
    disk.host.ok(&["disk", "flatten", "d"]);
    for (file, aside) in files.iter().zip(&aside) {
        fs::rename(aside, file).unwrap();
    }
    // The next attach removes them.
    let (status, report) = disk.check(false);
    assert_eq!(status, CLEAN, "{report}");
    assert_eq!(report["problems"][0]["kind"], "Note", "{report}");
    let (status, report) = disk.check(true);
    assert_eq!(status, CLEAN, "{report}");
    assert!(!files.iter().any(|file| file.exists()));
    disk.is_clean();
    let snapshot = disk.host.ok(&["disk", "decrypt", "snapshot:s"]);
    assert!(snapshot == disk.content);
}
