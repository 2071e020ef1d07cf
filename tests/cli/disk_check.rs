//! `sealdisk disk check` on disks of which something is damaged, one thing at a time.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use installation::envelope::ResourceKind;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use serde_json::Value;
use test_support::{Host, allocated, text};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];
/// The image's data: two blocks, and 3 MiB between them.
const DATA_BYTES: u64 = (3 << 20) + 2 * 4096;

const CLEAN: i32 = 0;
const DAMAGED: i32 = 2;
const LEAKING: i32 = 3;

/// Bytes of a header copy; the two are behind as many zeros.
const SLOT: u64 = 64 << 10;

/// A host with a disk that has data, and what is in it.
fn host() -> (Host, Vec<u8>) {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    let content = fs::read(&raw).unwrap();
    (host, content)
}

/// Checks: the exit status and the report.
fn check(host: &Host, repair: bool) -> (i32, Value) {
    let repair: &[&str] = if repair { &["--repair"] } else { &[] };
    let output = host.run(&[&["disk", "check", "d", "-o", "json"], repair].concat());
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code().unwrap(), report)
}

/// The one problem that is found.
fn problem(report: &Value) -> (&str, &str, &str) {
    let problems = report["problems"].as_array().unwrap();
    let [problem] = problems.as_slice() else {
        panic!("{report}");
    };
    let text = |field: &str| problem[field].as_str().unwrap();
    (text("kind"), text("part"), text("message"))
}

/// Damage that is told, and that a repair leaves as it is.
fn stays_damaged(host: &Host, part: &str, why: &str) {
    for repair in [false, true] {
        let (status, report) = check(host, repair);
        assert_eq!(status, DAMAGED, "{report}");
        let (kind, found, message) = problem(&report);
        assert_eq!((kind, found), ("Damage", part), "{report}");
        assert!(message.contains(why), "{why}: {message}");
    }
}

/// A problem of that status, which a repair ends; then the disk is what it was.
fn is_repaired(host: &Host, content: &[u8], status: i32, part: &str, why: &str) {
    let (found, report) = check(host, false);
    assert_eq!(found, status, "{report}");
    let (_, where_, message) = problem(&report);
    assert!(where_ == part && message.contains(why), "{why}: {message}");
    let (found, report) = check(host, true);
    assert_eq!(found, CLEAN, "{report}");
    assert_eq!(report["problems"][0]["repaired"], true);
    is_clean(host, content);
}

fn is_clean(host: &Host, content: &[u8]) {
    let (status, report) = check(host, false);
    assert_eq!(status, CLEAN, "{report}");
    assert_eq!(report["problems"], serde_json::json!([]));
    assert!(host.ok(&["disk", "decrypt", "d"]) == content);
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn flip(path: &Path, at: u64) {
    let (file, mut byte) = (open(path), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Does something to a file, looks, and puts the file back as it was.
fn while_damaged(path: &Path, damage: impl FnOnce(&Path), look: impl FnOnce()) {
    let kept = path.with_extension("kept");
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always", text(path), "/dev/shm/"])
        .status();
    assert!(copied.unwrap().success());
    let aside = Path::new("/dev/shm").join(path.file_name().unwrap());
    damage(path);
    look();
    let back = std::process::Command::new("cp")
        .args(["-a", "--sparse=always", text(&aside), text(&kept)])
        .status();
    assert!(back.unwrap().success());
    fs::rename(&kept, path).unwrap();
    fs::remove_file(&aside).unwrap();
}

#[test]
fn a_whole_disk_is_clean_and_told_what_it_holds() {
    let (host, content) = host();
    is_clean(&host, &content);
    let (_, report) = check(&host, true);
    assert_eq!(report["dataBytes"], DATA_BYTES);
    assert_eq!(report["headerAuthenticated"], true);
    let shown = host.json(&["disk", "show", "d"]);
    assert_eq!(shown["dataBytes"], DATA_BYTES);
    assert!(shown["usedBytes"].as_u64().unwrap() >= DATA_BYTES);
    assert_eq!(shown["diskSizeBytes"], 24 << 20);
    assert_eq!(host.json(&["disk", "list"])[0]["dataBytes"], DATA_BYTES);
    // Somebody uses it.
    let data = File::open(host.files("d").data).unwrap();
    flock(&data, FlockOperation::NonBlockingLockExclusive).unwrap();
    host.refused_with("OperationNotAllowed", &["disk", "check", "d"]);
}

#[test]
fn a_torn_header_copy_is_written_anew_from_the_other() {
    let (host, content) = host();
    let header = host.files("d").header;
    for (at, bytes) in [
        (SLOT + 700, &[0xff; 300][..]),
        (2 * SLOT + 700, &[0xff; 300]),
        (SLOT, &[0; SLOT as usize]),
    ] {
        open(&header).write_all_at(bytes, at).unwrap();
        is_repaired(&host, &content, DAMAGED, "header", "the other one is used");
    }
    let file = fs::read(&header).unwrap();
    let copies: Vec<_> = file.chunks(SLOT as usize).collect();
    assert!(copies[1] == copies[2], "both say the same");
    host.ok(&["disk", "resize", "d", "--size", "24MiB"]);
    while_damaged(
        &header,
        |path| {
            [SLOT + 100, 2 * SLOT + 100]
                .iter()
                .for_each(|at| flip(path, *at))
        },
        || stays_damaged(&host, "header", "damaged"),
    );
    while_damaged(
        &header,
        |path| open(path).set_len(20_000).unwrap(),
        || stays_damaged(&host, "header", "20000 bytes"),
    );
    is_clean(&host, &content);
}

#[test]
fn a_header_that_was_altered_repairs_nothing() {
    let (host, content) = host();
    let files = host.files("d");
    let alter = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        for copy in bytes.chunks_mut(SLOT as usize).skip(1) {
            let text = String::from_utf8_lossy(&copy[512..]).into_owned();
            // The disk's size and its layer's.
            for (found, _) in text.match_indices("\"size\": 25165824") {
                let at = 512 + found + 8;
                copy[at..at + 8].copy_from_slice(b"25161728");
            }
            copy[56..60].fill(0);
            let sum = crc32c::crc32c(copy);
            copy[56..60].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(path, bytes).unwrap();
    };
    while_damaged(&files.header, alter, || {
        let before = fs::read(&files.data).unwrap();
        let (status, report) = check(&host, true);
        assert_eq!(status, DAMAGED);
        let message = report["problems"][0]["message"].as_str().unwrap();
        assert!(message.contains("fails authentication"), "{message}");
        assert_eq!(report["headerAuthenticated"], false);
        assert!(fs::read(&files.data).unwrap() == before);
    });
    is_clean(&host, &content);
}

#[test]
fn a_map_that_is_damaged_is_told_and_left() {
    let (host, content) = host();
    let map = host.files("d").map;
    let stays = |damage: &dyn Fn(&Path), why: &str| {
        while_damaged(&map, damage, || stays_damaged(&host, "map", why));
    };
    stays(&|path| flip(path, 3), "signature");
    stays(&|path| flip(path, 20), "belongs to layer");
    stays(
        &|path| flip(path, 4096 + 7),
        "1 sectors of the map are damaged",
    );
    stays(&|path| open(path).set_len(4096 + 512).unwrap(), "truncated");
    stays(&|path| open(path).set_len(100).unwrap(), "truncated");
    stays(&|path| fs::remove_file(path).unwrap(), "cannot open");
    let behind = fs::metadata(&map).unwrap().len();
    stays(
        &|path| open(path).write_all_at(&[1; 512], behind + 8192).unwrap(),
        "behind the end",
    );
    open(&map).set_len(behind + (1 << 20)).unwrap();
    is_repaired(&host, &content, LEAKING, "map", "longer than the disk");
    assert_eq!(fs::metadata(&map).unwrap().len(), behind);
}

#[test]
fn a_data_file_that_is_not_as_the_map_says_is_told_and_left() {
    let (host, content) = host();
    let data = host.files("d").data;
    let len = 24 << 20;
    let stays = |damage: &dyn Fn(&Path), why: &str| {
        while_damaged(&data, damage, || stays_damaged(&host, "data", why));
    };
    stays(&|path| fs::remove_file(path).unwrap(), "cannot open");
    stays(
        &|path| {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(open(path), mode, 6 << 20, 8192).unwrap();
        },
        "8192 bytes that the map calls data are holes, the first at byte 6291456",
    );
    stays(
        &|path| open(path).write_all_at(&[1; 4096], len + 8192).unwrap(),
        "behind the end",
    );
    while_damaged(
        &data,
        |path| open(path).set_len(len - 4096).unwrap(),
        || {
            let (status, report) = check(&host, true);
            assert_eq!(status, DAMAGED);
            let message = report["problems"][0]["message"].as_str().unwrap();
            assert!(message.contains("truncated"), "{message}");
        },
    );
    open(&data).set_len(len + (1 << 20)).unwrap();
    is_repaired(&host, &content, LEAKING, "data", "longer than the disk");
    assert_eq!(fs::metadata(&data).unwrap().len(), len);
}

#[test]
fn space_that_nobody_needs_is_given_back() {
    let (host, content) = host();
    let files = host.files("d");
    let before = allocated(&files.data);
    let file = open(&files.data);
    file.write_all_at(&[7; 1 << 20], 10 << 20).unwrap();
    file.write_all_at(&[7; 4096], 4096).unwrap();
    file.sync_all().unwrap();
    drop(file);
    is_repaired(&host, &content, CLEAN, "data", "1052672 bytes of space");
    // Some blocks more: the file system's own list of a file's extents may have become longer.
    let after = allocated(&files.data);
    assert!(after < before + (64 << 10), "{before} {after}");
    // What is somebody else's is for somebody else to remove.
    let left = files.data.with_file_name("notes.txt");
    fs::write(&left, "x").unwrap();
    for repair in [false, true] {
        let (status, report) = check(&host, repair);
        assert_eq!(status, LEAKING);
        assert!(problem(&report).2.contains("notes.txt"));
    }
    assert!(left.exists());
}

/// What lies where a map has holes is found too, and the holes are passed over.
#[test]
fn space_far_inside_a_large_disk_is_given_back() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "15TiB"]);
    for snapshot in ["one", "two"] {
        host.ok(&["snapshot", "create", snapshot, "--source", "d"]);
    }
    let at = (9 << 40) + 4096;
    // Of the top layer the next attach would give it back.
    let bottom = host.layers(ResourceKind::Disk, "d")[0];
    let data = host.disks().join("d").join(format!("{bottom}.data"));
    open(&data).write_all_at(&[7; 8192], at).unwrap();
    let (status, report) = check(&host, false);
    assert_eq!(status, LEAKING, "{report}");
    assert!(
        problem(&report).2.contains("8192 bytes of space"),
        "{report}"
    );
    assert_eq!(check(&host, true).0, CLEAN);
    let (status, report) = check(&host, false);
    assert_eq!(
        (status, report["problems"].as_array().unwrap().len()),
        (CLEAN, 0)
    );
    assert_eq!(report["dataBytes"], 0);
}

#[test]
fn a_disk_whose_key_is_not_granted_is_checked_as_far_as_possible() {
    let (host, _) = host();
    let principal = host.encryption_set("set1", ALL);
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    host.grant(principal, &[]);
    let (status, report) = check(&host, false);
    assert_eq!(status, CLEAN);
    assert_eq!(report["headerAuthenticated"], false);
    let why = report["notAuthenticatedBecause"].as_str().unwrap();
    assert!(why.contains("unwrapKey"), "{why}");
}

/// Clones have their lower layers in common, which keeps nobody from looking at two of them at once.
#[test]
fn clones_are_checked_side_by_side() {
    let (host, _) = host();
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    host.ok(&["disk", "create", "e", "--source", "s"]);
    let bottom = host.layers(ResourceKind::Disk, "d")[0];
    let data = host.disks().join("d").join(format!("{bottom}.data"));
    let shared = File::open(data).unwrap();
    flock(&shared, FlockOperation::LockShared).unwrap();
    for disk in ["d", "e"] {
        host.ok(&["disk", "check", disk]);
    }
    let refused = host.refused(&["disk", "check", "e", "--repair"]);
    assert!(refused.contains("in use"), "{refused}");
}
