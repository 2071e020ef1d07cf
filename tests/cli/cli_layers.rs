//! `sealdisk snapshot`, `image`, and what `disk` does with layers, as their users see it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aes::Aes256;
use aes::cipher::KeyInit;
use disks::Disk;
use installation::envelope::ResourceKind;
use rustix::fs::{FallocateFlags, fallocate};
use test_support::{Host, holds, text};
use xts_mode::{Xts128, get_tweak_default};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];
const BLOCK: usize = 4096;

/// A disk that has been written to, and what it holds.
struct Written {
    host: Host,
    content: Vec<u8>,
}

impl Written {
    fn new(options: &[&str]) -> Self {
        let host = Host::new();
        let raw = host.raw_image("disk.raw");
        let create = ["disk", "create", "d", "--source", text(&raw)];
        host.ok(&[&create[..], options].concat());
        let content = fs::read(&raw).unwrap();
        Self { host, content }
    }

    fn write(&mut self, block: usize, byte: u8) {
        self.host.write("d", (block * BLOCK) as u64, &[byte; BLOCK]);
        self.content[block * BLOCK..][..BLOCK].fill(byte);
    }

    fn snapshot(&self, name: &str) {
        let create = ["snapshot", "create", name, "--source", "d"];
        self.host.ok(&create);
    }

    fn holds(&self, source: &str, content: &[u8]) {
        assert!(
            self.host.ok(&["disk", "decrypt", source]) == content,
            "{source}"
        );
    }

    fn is_clean(&self, disk: &str) {
        self.host.is_clean(disk);
    }
}

#[test]
fn what_was_frozen_stays_what_it_was() {
    let mut disk = Written::new(&[]);
    let first = disk.content.clone();
    disk.snapshot("s1");
    disk.write(3, 1);
    let second = disk.content.clone();
    disk.snapshot("s2");
    disk.write(3, 2);
    disk.write(5000, 2);
    let host = &disk.host;
    host.ok(&["disk", "create", "c1", "--source", "s1"]);
    host.ok(&["image", "create", "i2", "--source", "snapshot:s2"]);
    host.ok(&["image", "create", "i3", "--source", "d"]);
    host.ok(&["disk", "create", "c2", "--source", "i2", "--size", "32MiB"]);
    host.write("c1", 0, &[9; BLOCK]);
    let mut of_clone = first.clone();
    of_clone[..BLOCK].fill(9);
    let mut larger = second.clone();
    larger.resize(32 << 20, 0);
    let all = || {
        for (source, content) in [
            ("snapshot:s1", &first),
            ("snapshot:s2", &second),
            ("image:i2", &second),
            ("image:i3", &disk.content),
            ("c1", &of_clone),
            ("c2", &larger),
        ] {
            disk.holds(source, content);
        }
    };
    all();
    disk.holds("d", &disk.content);
    for name in ["c1", "c2"] {
        assert!(!host.json(&["disk", "show", name])["source"].is_null());
        host.ok(&["disk", "flatten", name]);
        assert!(host.json(&["disk", "show", name])["source"].is_null());
        assert_eq!(host.layers(ResourceKind::Disk, name).len(), 1);
        disk.is_clean(name);
    }
    all();
    host.ok(&["disk", "rotate-dek", "d"]);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!((&show["generation"], &show["job"]), (&2.into(), &().into()));
    assert_eq!(host.layers(ResourceKind::Disk, "d").len(), 1);
    all();
    disk.holds("d", &disk.content);
    host.ok(&["disk", "revert", "d", "--snapshot", "s2", "--yes"]);
    disk.holds("d", &second);
    host.ok(&["disk", "revert", "d", "--snapshot", "s1", "--yes"]);
    disk.holds("d", &first);
    disk.is_clean("d");
    all();
}

#[test]
fn what_is_in_use_is_not_deleted_and_a_size_does_not_shrink() {
    let disk = Written::new(&[]);
    let host = &disk.host;
    disk.snapshot("s");
    host.ok(&["image", "create", "i", "--source", "snapshot:s"]);
    let shrunk = ["disk", "create", "no", "--source", "i", "--size", "8MiB"];
    let why = host.refused(&shrunk);
    assert!(why.contains("the size"), "{why}");
    for (kind, name, clone) in [("snapshot", "s", "of-s"), ("image", "i", "of-i")] {
        let source = format!("{kind}:{name}");
        host.ok(&["disk", "create", clone, "--source", &source]);
        let delete = [kind, "delete", name, "--yes"];
        let why = host.refused_with("OperationNotAllowed", &delete);
        assert!(why.contains(clone), "{why}");
        host.ok(&["disk", "flatten", clone]);
        host.ok(&delete);
        disk.holds(clone, &disk.content);
    }
    disk.holds("d", &disk.content);
}

#[test]
fn a_parent_that_is_missing_or_another_one_is_told() {
    let disk = Written::new(&[]);
    let host = &disk.host;
    host.ok(&["image", "create", "i", "--source", "d"]);
    host.ok(&["disk", "create", "c", "--source", "i"]);
    let layers = host.layers(ResourceKind::Disk, "c");
    let file = |layer: usize, extension: &str| {
        host.disks()
            .join(format!("c/{}.{extension}", layers[layer]))
    };
    let aside = host.path("aside");
    for extension in ["data", "map"] {
        fs::rename(file(0, extension), &aside).unwrap();
        let why = host.refused(&["disk", "decrypt", "c"]);
        assert!(why.contains(text(&file(0, extension))), "{why}");
        host.refused(&["disk", "flatten", "c"]);
        fs::rename(&aside, file(0, extension)).unwrap();
        host.ok(&["disk", "flatten", "c", "--abort"]);
    }
    fs::rename(file(0, "map"), &aside).unwrap();
    fs::copy(file(1, "map"), file(0, "map")).unwrap();
    let why = host.refused(&["disk", "decrypt", "c"]);
    assert!(why.contains("layer"), "{why}");
    fs::rename(&aside, file(0, "map")).unwrap();
    disk.holds("c", &disk.content);
}

#[test]
fn a_chain_has_32_layers_at_most() {
    let mut disk = Written::new(&[]);
    for number in 1..32 {
        disk.write(number, number as u8);
        disk.snapshot(&format!("s{number}"));
    }
    disk.write(32, 32);
    let host = &disk.host;
    assert_eq!(host.layers(ResourceKind::Disk, "d").len(), 32);
    let refused = ["snapshot", "create", "s32", "--source", "d"];
    let why = host.refused(&refused);
    assert!(why.contains("32 layers"), "{why}");
    let why = host.refused(&["disk", "rotate-dek", "d"]);
    assert!(why.contains("32 layers"), "{why}");
    assert_eq!(
        host.json(&["snapshot", "list"]).as_array().unwrap().len(),
        31
    );
    disk.holds("d", &disk.content);
    disk.is_clean("d");
    host.ok(&["disk", "flatten", "d"]);
    disk.is_clean("d");
    host.ok(&refused);
    disk.holds("d", &disk.content);
}

#[test]
fn snapshots_and_copies_of_what_did_not_change_take_no_layer() {
    let mut disk = Written::new(&[]);
    let first = disk.content.clone();
    for number in 0..34 {
        disk.snapshot(&format!("s{number}"));
    }
    let copy = |disk: &Written, name: &str| {
        let create = ["disk", "create", name, "--source", "disk:d"];
        disk.host.ok(&create);
    };
    for name in ["c1", "c2"] {
        copy(&disk, name);
    }
    disk.host.ok(&["image", "create", "i", "--source", "d"]);
    let layers = |disk: &Written, kind, name| disk.host.layers(kind, name).len();
    assert_eq!(layers(&disk, ResourceKind::Disk, "d"), 2);
    assert_eq!(layers(&disk, ResourceKind::Disk, "c2"), 2);
    assert_eq!(layers(&disk, ResourceKind::Snapshot, "s33"), 1);
    // A write takes one, and so does a discard, and another size.
    disk.write(3, 1);
    let second = disk.content.clone();
    disk.snapshot("written");
    disk.host.discard("d", 0, BLOCK as u64);
    disk.content[..BLOCK].fill(0);
    disk.snapshot("discarded");
    let third = disk.content.clone();
    disk.host.ok(&["disk", "resize", "d", "--size", "64MiB"]);
    disk.content.resize(64 << 20, 0);
    disk.snapshot("grown");
    copy(&disk, "c3");
    assert_eq!(layers(&disk, ResourceKind::Disk, "d"), 5);
    let holds = |disk: &Written| {
        for (source, content) in [
            ("snapshot:s33", &first),
            ("image:i", &first),
            ("c2", &first),
            ("snapshot:written", &second),
            ("snapshot:discarded", &third),
            ("snapshot:grown", &disk.content),
            ("c3", &disk.content),
            ("d", &disk.content),
        ] {
            disk.holds(source, content);
        }
    };
    holds(&disk);
    // Those that share a layer go one by one, and what is left keeps it.
    for number in 0..33 {
        let name = format!("s{number}");
        disk.host.ok(&["snapshot", "delete", &name, "--yes"]);
    }
    disk.host.ok(&["disk", "delete", "c1", "--yes"]);
    holds(&disk);
    for name in ["d", "c2", "c3"] {
        disk.is_clean(name);
    }
    let revert = ["disk", "revert", "d", "--snapshot", "s33", "--yes"];
    disk.host.ok(&revert);
    let mut reverted = first.clone();
    reverted.resize(64 << 20, 0);
    disk.holds("d", &reverted);
    disk.is_clean("d");
}

#[test]
fn a_clone_does_without_its_parents_key_once_it_is_flat() {
    let mut disk = Written::new(&[]);
    let owner = disk.host.encryption_set("golden", ALL);
    disk.host.encryption_set("mine", ALL);
    disk.write(9, 9);
    let host = &disk.host;
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "golden"]);
    host.ok(&["image", "create", "i", "--source", "d"]);
    let create = ["disk", "create", "c", "--source", "i"];
    host.ok(&[&create[..], &["--disk-encryption-set", "mine"]].concat());
    let layer = host.layers(ResourceKind::Disk, "c")[0].to_string();
    host.grant(owner, &[]);
    let refusals: [&[&str]; 3] = [
        &["disk", "decrypt", "c"],
        &["disk", "flatten", "c"],
        &["attach", "c", "--socket-path", "/dev/shm/there-is-no-such"],
    ];
    for refused in refusals {
        let why = host.refused_with("Forbidden", refused);
        assert!(why.contains(&layer), "{refused:?}: {why}");
    }
    host.grant(owner, ALL);
    // It was begun, since that takes the clone's own key only.
    host.ok(&["disk", "flatten", "c", "--resume"]);
    host.grant(owner, &[]);
    disk.holds("c", &disk.content);
}

/// What the data file of the topmost layer has in a block.
fn ciphertext(host: &Host, kind: ResourceKind, name: &str, block: usize) -> Vec<u8> {
    let disk = Disk::of_kind(&host.installation(), kind, name).unwrap();
    let layer = *host.layers(kind, name).last().unwrap();
    let data = File::open(disk.directory().join(format!("{layer}.data"))).unwrap();
    let mut found = vec![0; BLOCK];
    data.read_exact_at(&mut found, (block * BLOCK) as u64)
        .unwrap();
    assert!(found.iter().any(|byte| *byte != 0));
    found
}

#[test]
fn the_same_plaintext_is_other_ciphertext_in_each_snapshot() {
    let mut disk = Written::new(&[]);
    let mut found = Vec::new();
    for name in ["a", "b"] {
        disk.write(2000, 7);
        disk.snapshot(name);
        found.push(ciphertext(&disk.host, ResourceKind::Snapshot, name, 2000));
        disk.holds(&format!("snapshot:{name}"), &disk.content);
    }
    assert!(found[0] != found[1]);
}

#[test]
fn nothing_is_left_under_the_dek_from_which_a_disk_was_rotated() {
    let disk = Written::new(&[]);
    let host = &disk.host;
    let installation = host.installation();
    let of_disk = Disk::find(&installation, "d").unwrap();
    let header = of_disk.header_file().unwrap().read().unwrap();
    let (header, old) = of_disk.unlock(&installation, header).unwrap();
    let wrapped = header.layers[0].envelope.wrapped.clone();
    let dek = old.expose();
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).unwrap();
    let xts = Xts128::new(cipher(&dek[..32]), cipher(&dek[32..]));
    // Blocks that decrypt under the old DEK to what the disk holds.
    let under_old = || {
        let mut found = 0;
        for entry in fs::read_dir(of_disk.directory()).unwrap().flatten() {
            let bytes = fs::read(entry.path()).unwrap();
            for (number, block) in bytes.chunks_exact(BLOCK).enumerate() {
                let Some(plaintext) = disk.content.get(number * BLOCK..(number + 1) * BLOCK) else {
                    break;
                };
                let mut block = block.to_vec();
                // A tweak counts sectors of 512 bytes, whatever the data unit is.
                xts.decrypt_sector(&mut block, get_tweak_default(number as u128 * 8));
                found += usize::from(block == plaintext);
            }
        }
        found
    };
    assert_eq!(under_old(), ((3 << 20) + 2 * BLOCK) / BLOCK);
    host.ok(&["disk", "rotate-dek", "d"]);
    assert_eq!(under_old(), 0);
    assert!(!holds(&host.state(), dek));
    let (again, new) = of_disk
        .unlock(
            &installation,
            of_disk.header_file().unwrap().read().unwrap(),
        )
        .unwrap();
    assert!(new.expose() != dek && again.layers[0].envelope.wrapped != wrapped);
    disk.is_clean("d");
    disk.holds("d", &disk.content);
}

#[test]
fn deleting_snapshots_merges_their_layers_into_those_above() {
    let mut disk = Written::new(&[]);
    let mut contents = Vec::new();
    for (number, name) in ["a", "b", "c", "e"].into_iter().enumerate() {
        disk.write(100, number as u8 + 1);
        disk.write(200 + number, 77);
        disk.snapshot(name);
        contents.push((name, disk.content.clone()));
    }
    disk.write(300, 5);
    disk.host
        .ok(&["disk", "create", "clone", "--source", "snapshot:e"]);
    let of_clone = disk.content_of(&contents, "e");
    let layers = |name| disk.host.layers(ResourceKind::Disk, name).len();
    assert_eq!((layers("d"), layers("clone")), (5, 5));
    // One in the middle, the oldest, and one more.
    for (left, gone) in ["b", "a", "c"].into_iter().enumerate() {
        disk.host.ok(&["snapshot", "delete", gone, "--yes"]);
        contents.retain(|(name, _)| *name != gone);
        assert_eq!(
            (layers("d"), layers("clone")),
            (4 - left, 4 - left),
            "{gone}"
        );
        for (name, content) in &contents {
            disk.holds(&format!("snapshot:{name}"), content);
        }
        disk.holds("d", &disk.content);
        disk.holds("clone", &of_clone);
        disk.is_clean("d");
        disk.is_clean("clone");
    }
    disk.host.ok(&["disk", "flatten", "clone"]);
    disk.host.ok(&["snapshot", "delete", "e", "--yes"]);
    assert_eq!((layers("d"), layers("clone")), (1, 1));
    disk.holds("d", &disk.content);
    disk.holds("clone", &of_clone);
    disk.is_clean("d");
    disk.is_clean("clone");
}

impl Written {
    fn content_of(&self, contents: &[(&str, Vec<u8>)], name: &str) -> Vec<u8> {
        let found = contents.iter().find(|(of, _)| *of == name);
        found.unwrap().1.clone()
    }
}

/// A file system of 32 MiB.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let this = Self(tempfile::tempdir().unwrap());
        let options = ["-t", "tmpfs", "-o", "size=32m,mode=0700", "sealdisk-test"];
        let mounted = Command::new("mount")
            .args(options)
            .arg(this.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no tmpfs can be mounted here");
            return None;
        }
        Some(this)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space but `left` bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.path().join("ballast");
        let file = File::create(&path).unwrap();
        let (mut at, mut step) = (0, 1 << 20);
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(_) => step /= 2,
            }
        }
        file.set_len(at - left).unwrap();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // It is not mounted when the test is skipped.
        let _ = Command::new("umount")
            .args(["-q", "-l"])
            .arg(self.path())
            .status();
    }
}

#[test]
fn a_full_file_system_loses_nothing_and_what_was_begun_goes_on_with_space() {
    let Some(small) = Small::mount() else {
        return;
    };
    let disk = Written::new(&["--data-dir", text(small.path())]);
    let host = &disk.host;
    let create = ["snapshot", "create", "s", "--source", "d"];
    let ballast = small.fill(0);
    host.refused(&create);
    assert_eq!(host.json(&["snapshot", "list"]), serde_json::json!([]));
    assert_eq!(host.layers(ResourceKind::Disk, "d").len(), 1);
    disk.holds("d", &disk.content);
    fs::remove_file(&ballast).unwrap();
    disk.is_clean("d");
    host.ok(&create);
    for (command, generation) in [("flatten", 1), ("rotate-dek", 2)] {
        let ballast = small.fill(1 << 20);
        let why = host.refused(&["disk", command, "d"]);
        assert!(why.to_lowercase().contains("space"), "{why}");
        disk.holds("d", &disk.content);
        disk.holds("snapshot:s", &disk.content);
        fs::remove_file(&ballast).unwrap();
        assert!(
            !host.json(&["disk", "show", "d"])["job"].is_null(),
            "{command}"
        );
        host.ok(&["disk", command, "d", "--resume"]);
        let show = host.json(&["disk", "show", "d"]);
        assert_eq!(
            (&show["generation"], &show["job"]),
            (&generation.into(), &().into())
        );
        assert_eq!(host.layers(ResourceKind::Disk, "d").len(), 1);
        disk.holds("d", &disk.content);
        disk.holds("snapshot:s", &disk.content);
        disk.is_clean("d");
    }
}

#[test]
fn a_disk_is_cloned_at_once() {
    let mut disk = Written::new(&[]);
    let first = disk.content.clone();
    let host = &disk.host;
    // The name of a disk is one of what a source may be, as long as nothing else has it.
    host.ok(&["disk", "create", "c1", "--source", "d"]);
    let clone = [
        "disk", "create", "c2", "--source", "disk:d", "--size", "32MiB",
    ];
    let shown = host.json(&clone);
    assert_eq!(
        (&shown["source"]["kind"], &shown["source"]["name"]),
        (&"disk".into(), &"d".into())
    );
    host.ok(&["snapshot", "create", "d", "--source", "d"]);
    let why = host.refused(&["disk", "create", "c3", "--source", "d"]);
    assert!(why.contains("snapshot:d") && why.contains("disk:"), "{why}");
    host.ok(&["snapshot", "delete", "d", "--yes"]);
    disk.write(3, 1);
    disk.holds("d", &disk.content);
    disk.holds("c1", &first);
    let mut larger = first.clone();
    larger.resize(32 << 20, 0);
    disk.holds("c2", &larger);

    let host = &disk.host;
    host.ok(&["disk", "flatten", "c2"]);
    assert!(host.json(&["disk", "show", "c2"])["source"].is_null());
    disk.holds("c2", &larger);
    host.ok(&["disk", "delete", "d", "--yes"]);
    disk.holds("c1", &first);
    // Nobody else needs the layers by themselves any more.
    assert_eq!(host.layers(ResourceKind::Disk, "c1").len(), 1);
    for name in ["c1", "c2"] {
        disk.is_clean(name);
    }
}

/// Somebody who copies a disk each night and deletes the copy of the night before can do so for ever.
#[test]
fn clones_that_go_leave_no_layers() {
    let disk = Written::new(&[]);
    for round in 0..34 {
        let name = format!("c{round}");
        disk.host
            .ok(&["disk", "create", &name, "--source", "disk:d"]);
        disk.host.ok(&["disk", "delete", &name, "--yes"]);
    }
    assert_eq!(disk.host.layers(ResourceKind::Disk, "d").len(), 1);
    disk.holds("d", &disk.content);
    disk.is_clean("d");
}
