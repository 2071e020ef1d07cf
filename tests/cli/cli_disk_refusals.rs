//! `sealdisk disk` with bad input: one line on stderr, a status that is not 0, nothing left behind
//! and nothing lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use installation::catalog::{DiskRecord, DiskState};
use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, KEY, VAULT, allocated, noise, one_line, qemu_img, text};
use time::OffsetDateTime;
use vault::AttributeChange;

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

#[test]
fn images_that_cannot_be_imported_leave_no_disk() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let (garbage, top) = (host.path("garbage.qcow2"), host.path("top.qcow2"));
    let base = host.path("base.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&base)]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&base),
        "-F",
        "qcow2",
        text(&top),
    ]);
    let content = fs::read(&base).unwrap();
    fs::write(&garbage, &content[..200]).unwrap();
    let missing = host.path("missing.raw");
    let empty = host.path("empty.raw");
    File::create(&empty).unwrap();
    for (image, wanted) in [
        (missing.as_path(), "No such file"),
        (&garbage, "it is truncated"),
        (&top, "backing file"),
        (&empty, "is empty"),
        (Path::new("/"), "neither a regular file"),
        (Path::new("/dev/null"), "neither a regular file"),
    ] {
        let create = ["disk", "create", "d", "--source", text(image)];
        let refusal = host.refused_with("UnusableImage", &create);
        assert!(refusal.contains(wanted), "{refusal}");
        host.assert_no_disks();
    }
    let create = [
        "disk",
        "create",
        "d",
        "--source",
        text(&raw),
        "--source-format",
        "qcow2",
    ];
    host.refused_with("UnusableImage", &create);
    host.assert_no_disks();
}

#[test]
fn without_qemu_nbd_the_package_is_named() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let image = host.path("disk.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&image)]);
    let mut command = host.command(&["disk", "create", "d", "--source", text(&image)]);
    let line = one_line(&command.env("PATH", host.path("")).output().unwrap());
    assert!(line.contains("qemu-utils"), "{line}");
    host.assert_no_disks();
}

#[test]
fn arguments_that_make_no_sense_leave_no_disk() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    for (arguments, wanted) in [
        (
            &["d", "--size", "1000"][..],
            "not a multiple of the sector size",
        ),
        (
            &["d", "--size", "512"],
            "not a multiple of the sector size, 4096",
        ),
        (&["d", "--size", "0"], "not possible"),
        (&["d", "--size", "65TiB"], "not possible"),
        (&["d", "--size", "10GB"], "is no size"),
        (
            &["d", "--size", "1M", "--sector-size", "520"],
            "use 512 or 4096",
        ),
        (&["../d", "--size", "1M"], "is not acceptable"),
        (&[".d", "--size", "1M"], "is not acceptable"),
        (&["d", "--source", text(&raw), "--size", "1M"], "less than"),
        (
            &["d", "--source", text(&raw), "--source-format", "dmg"],
            "no image format",
        ),
        (
            &["d", "--size", "1M", "--disk-encryption-set", "none"],
            "no disk encryption set",
        ),
    ] {
        let refusal = host.run(&[&["disk", "create"], arguments].concat());
        let stderr = String::from_utf8(refusal.stderr).unwrap();
        assert!(!refusal.status.success(), "{arguments:?}");
        assert!(stderr.contains(wanted), "{stderr}");
        host.assert_no_disks();
    }
}

#[test]
fn a_name_or_place_that_is_taken_is_refused() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let before = fs::read(host.files("d").header).unwrap();
    let refusal = host.refused_with("Conflict", &["disk", "create", "d", "--size", "2M"]);
    assert!(refusal.contains("exists already"), "{refusal}");
    assert_eq!(fs::read(host.files("d").header).unwrap(), before);
    fs::create_dir(host.disks().join("other")).unwrap();
    host.refused_with("Conflict", &["disk", "create", "other", "--size", "2M"]);
    assert_eq!(fs::read_dir(host.disks().join("other")).unwrap().count(), 0);
    host.refused_with("ResourceNotFound", &["disk", "show", "nobody"]);
    host.refused_with("ResourceNotFound", &["disk", "delete", "nobody", "--yes"]);
    host.refused_with("ConfirmationRequired", &["disk", "delete", "d"]);
    host.ok(&["disk", "show", "d"]);
}

#[test]
fn a_missing_permission_is_named_with_the_command_that_grants_it() {
    let host = Host::new();
    let identity = host.encryption_set("set1", &[]);
    let create = [
        "disk",
        "create",
        "d",
        "--size",
        "1M",
        "--disk-encryption-set",
        "set1",
    ];
    for (granted, missing) in [
        (&[][..], "get"),
        (&["get"], "wrapKey"),
        (&["get", "wrapKey"], "unwrapKey"),
        (&["get", "unwrapKey"], "wrapKey"),
        (&["wrapKey", "unwrapKey"], "get"),
    ] {
        host.grant(identity, granted);
        let refusal = host.refused_with("Forbidden", &create);
        assert!(refusal.contains(missing), "{refusal}");
        let command = format!("sealdisk keyvault set-policy {VAULT} --object-id {identity}");
        assert!(refusal.contains(&command), "{refusal}");
        host.assert_no_disks();
    }
    host.grant(identity, ALL);
    host.ok(&create);
    host.grant(identity, &["get"]);
    let file = host.path("plain");
    let decrypt = ["disk", "decrypt", "d", "--output-file", text(&file)];
    let refusal = host.refused_with("Forbidden", &decrypt);
    assert!(refusal.contains("unwrapKey"), "{refusal}");
    assert!(!file.exists());
    let entries = fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(entries.count(), 1, "only the state directory");
}

#[test]
fn a_key_that_may_not_be_used_makes_and_opens_no_disk() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let create = |name| {
        [
            "disk",
            "create",
            name,
            "--size",
            "1M",
            "--disk-encryption-set",
            "set1",
        ]
    };
    host.ok(&create("before"));
    let now = OffsetDateTime::now_utc();
    let hour = time::Duration::hours(1);
    for (code, change, undo) in [
        (
            "KeyDisabled",
            AttributeChange {
                enabled: Some(false),
                ..AttributeChange::default()
            },
            AttributeChange {
                enabled: Some(true),
                ..AttributeChange::default()
            },
        ),
        (
            "KeyNotYetValid",
            AttributeChange {
                not_before: Some(Some(now + hour)),
                ..AttributeChange::default()
            },
            AttributeChange {
                not_before: Some(Some(now - hour * 2)),
                ..AttributeChange::default()
            },
        ),
        (
            "KeyExpired",
            AttributeChange {
                expires: Some(Some(now - hour)),
                ..AttributeChange::default()
            },
            AttributeChange {
                expires: Some(Some(now + hour)),
                ..AttributeChange::default()
            },
        ),
    ] {
        host.set_key(&change);
        let refusal = host.refused_with(code, &create("d"));
        assert!(refusal.contains(KEY), "{refusal}");
        assert!(!host.disks().join("d").exists());
        let entries = fs::read_dir(host.disks()).unwrap();
        assert_eq!(entries.count(), 1, "only the first disk");
        let header = fs::read(host.files("before").header).unwrap();
        for command in [
            &["disk", "update", "before", "--platform-managed"][..],
            &["disk", "decrypt", "before"],
        ] {
            host.refused_with(code, command);
        }
        assert_eq!(fs::read(host.files("before").header).unwrap(), header);
        host.set_key(&undo);
        host.ok(&["disk", "decrypt", "before"]);
    }
}

/// There is no command yet that deletes a key, so its row is taken out of the vault's database.
#[test]
fn a_key_that_is_gone_opens_no_disk() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let set = ["--disk-encryption-set", "set1"];
    host.ok(&["disk", "create", "d", "--size", "1M", set[0], set[1]]);
    let header = fs::read(host.files("d").header).unwrap();
    for vault in fs::read_dir(host.state().join("vaults")).unwrap() {
        let database = vault.unwrap().path().join("vault.db");
        if !database.exists() {
            continue;
        }
        let database = rusqlite::Connection::open(database).unwrap();
        database.execute("DELETE FROM key_versions", []).unwrap();
    }
    let socket = host.path("socket");
    for command in [
        &["disk", "decrypt", "d"][..],
        &["disk", "update", "d", "--platform-managed"],
        &["disk", "create", "e", "--size", "1M", set[0], set[1]],
        &["attach", "d", "--socket-path", text(&socket)],
    ] {
        host.refused_with("KeyNotFound", command);
    }
    assert!(!socket.exists() && !host.disks().join("e").exists());
    assert_eq!(fs::read(host.files("d").header).unwrap(), header);
}

#[test]
fn damaged_headers_are_refused_and_left_as_they_are() {
    const FIRST: usize = 64 << 10;
    const SECOND: usize = 128 << 10;
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    host.ok(&["disk", "create", "other", "--size", "1M"]);
    let path = host.files("d").header;
    let good = fs::read(&path).unwrap();
    let flipped = |at: &[usize]| {
        let mut bytes = good.clone();
        at.iter().for_each(|&at| bytes[at] ^= 0x40);
        bytes
    };
    let cases = [
        (good[..20_000].to_vec(), "truncated"),
        (Vec::new(), "truncated"),
        (vec![b'x'; good.len()], "not a Sealdisk header"),
        (vec![0; good.len()], "is erased"),
        (flipped(&[FIRST + 600, SECOND + 600]), "both header copies"),
        (flipped(&[FIRST + 16, SECOND + 513]), "both header copies"),
        (
            fs::read(host.files("other").header).unwrap(),
            "is that of disk",
        ),
    ];
    let file = host.path("plain");
    for (bytes, wanted) in cases {
        fs::write(&path, &bytes).unwrap();
        for command in [
            &["disk", "decrypt", "d", "--output-file", text(&file)][..],
            &["disk", "update", "d", "--platform-managed"],
        ] {
            let refusal = host.refused_with("UnusableHeader", command);
            assert!(refusal.contains(wanted), "{wanted}: {refusal}");
        }
        assert!(
            fs::read(&path).unwrap() == bytes,
            "{wanted}: the header was changed"
        );
        assert!(!file.exists());
        if wanted != "is that of disk" {
            assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Damaged");
        }
    }
    // One copy is enough.
    for at in [FIRST + 600, SECOND + 600] {
        fs::write(&path, flipped(&[at])).unwrap();
        host.ok(&["disk", "decrypt", "d"]);
    }
    // And what cannot be opened can still be deleted.
    fs::write(&path, &good[..20_000]).unwrap();
    host.ok(&["disk", "delete", "d", "--yes"]);
    host.ok(&["disk", "delete", "other", "--yes"]);
    host.assert_no_disks();
}

#[test]
fn damaged_data_and_maps_are_refused_and_leave_no_plaintext() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    let files = host.files("d");
    let file = host.path("plain");
    let decrypt = ["disk", "decrypt", "d", "--output-file", text(&file)];
    let map = fs::read(&files.map).unwrap();
    let mut flipped = map.clone();
    flipped[4096 + 10] ^= 1;
    for bytes in [&map[..4096], &flipped, &vec![7; map.len()]] {
        fs::write(&files.map, bytes).unwrap();
        host.refused_with("DiskData", &decrypt);
        assert!(fs::read(&files.map).unwrap() == *bytes);
    }
    fs::write(&files.map, &map).unwrap();
    let data = File::options().write(true).open(&files.data).unwrap();
    data.set_len(1 << 20).unwrap();
    host.refused_with("DiskData", &decrypt);
    let left: Vec<_> = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 2, "the state directory and the image: {left:?}");
}

#[test]
fn a_re_wrap_that_is_refused_leaves_the_old_wrapping() {
    let host = Host::new();
    host.encryption_set("good", ALL);
    host.encryption_set("bad", &["get", "wrapKey"]);
    let create = [
        "disk",
        "create",
        "d",
        "--size",
        "1M",
        "--disk-encryption-set",
        "good",
    ];
    host.ok(&create);
    let header = fs::read(host.files("d").header).unwrap();
    let update = ["disk", "update", "d", "--disk-encryption-set", "bad"];
    host.refused_with("Forbidden", &update);
    assert_eq!(fs::read(host.files("d").header).unwrap(), header);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["encryption"]["diskEncryptionSetId"], "good");
    host.ok(&["disk", "decrypt", "d"]);
}

/// A small tmpfs, unmounted when dropped.
struct SmallFs(PathBuf);

impl SmallFs {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "sealdisk-test"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(
            mounted.success(),
            "this test mounts a tmpfs: it has to be root"
        );
        Self(path)
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_file_system_leaves_no_disk_and_no_plaintext() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let small = SmallFs::mount(host.path("small"), "2m");
    let create = ["disk", "create", "d", "--source", text(&raw)];
    let options = ["--source-format", "raw", "--data-dir", text(&small.0)];
    let refusal = host.refused_with("DiskData", &[&create[..], &options].concat());
    assert!(refusal.contains("No space left on device"), "{refusal}");
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
    host.assert_no_disks();

    host.ok(&create);
    let file = small.0.join("plain");
    let decrypt = ["disk", "decrypt", "d", "--output-file", text(&file)];
    let refusal = host.refused_with("FileSystem", &decrypt);
    assert!(refusal.contains("No space left on device"), "{refusal}");
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
}

/// Starts the import of a large image and waits until some of it is written.
fn half_imported(host: &Host, format: &str) -> Child {
    let image = host.path("large.raw");
    let mut block = vec![0; 4 << 20];
    noise(&mut block);
    let file = File::create(&image).unwrap();
    for n in 0..128u64 {
        file.write_all_at(&block, n * block.len() as u64).unwrap();
    }
    let source = host.path("large.img");
    match format {
        "raw" => fs::rename(&image, &source).unwrap(),
        _ => {
            qemu_img(&["convert", "-O", format, text(&image), text(&source)]);
            fs::remove_file(&image).unwrap();
        }
    }
    let create = ["disk", "create", "d", "--source", text(&source)];
    let child = host
        .command(&[&create[..], &["--source-format", format]].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let written = || {
        let directories = fs::read_dir(host.disks()).into_iter().flatten().flatten();
        directories
            .flat_map(|d| fs::read_dir(d.path()).into_iter().flatten().flatten())
            .any(|f| f.path().extension().is_some_and(|e| e == "data") && allocated(&f.path()) > 0)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !written() {
        assert!(Instant::now() < deadline, "the import does not begin");
        thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Whether a process reads the test's large image.
fn is_read(host: &Host) -> bool {
    let image = host.path("large.img");
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|arguments| String::from_utf8_lossy(&arguments).contains(text(&image)))
    })
}

fn gone_soon(host: &Host) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_read(host) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn an_import_that_a_signal_cuts_off_leaves_nothing() {
    for (format, signal) in [("raw", Signal::INT), ("qcow2", Signal::TERM)] {
        let host = Host::new();
        let child = half_imported(&host, format);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let line = one_line(&child.wait_with_output().unwrap());
        assert!(line.contains("interrupted"), "{line}");
        assert!(!is_read(&host), "qemu-nbd is left");
        assert_eq!(fs::read_dir(host.disks()).unwrap().count(), 0);
        host.assert_no_disks();
    }
}

#[test]
fn an_import_that_is_killed_is_cleaned_up_by_the_next_command() {
    let host = Host::new();
    let mut child = half_imported(&host, "qcow2");
    // While its maker lives, nobody else takes it for left over.
    let list = host.json(&["disk", "list"]);
    assert_eq!(list[0]["diskState"], "Creating", "{list}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gone_soon(&host), "qemu-nbd outlives its reader");
    let left: Vec<_> = fs::read_dir(host.disks()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        left[0]
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".d.creating-")
    );
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let names: Vec<_> = fs::read_dir(host.disks()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    host.ok(&["disk", "decrypt", "d"]);
}

#[test]
fn a_creation_that_died_after_the_rename_is_completed() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let installation = host.installation();
    let catalog = installation.catalog();
    let row = catalog.disk("d").unwrap();
    let staging = host.disks().join(format!(".d.creating-{}", row.record.id));
    let record = DiskRecord {
        directory: staging,
        state: DiskState::Creating,
        ..row.record.clone()
    };
    catalog.update_disk(row.rev, &record).unwrap();
    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Unattached");
    assert_eq!(catalog.disk("d").unwrap().record, row.record);
}

#[test]
fn a_deletion_that_died_is_completed() {
    for header_is_left in [true, false] {
        let host = Host::new();
        host.ok(&["disk", "create", "d", "--size", "1M"]);
        let installation = host.installation();
        let row = installation.catalog().disk("d").unwrap();
        let record = DiskRecord {
            state: DiskState::Deleting,
            ..row.record.clone()
        };
        installation
            .catalog()
            .update_disk(row.rev, &record)
            .unwrap();
        if !header_is_left {
            fs::remove_file(host.files("d").header).unwrap();
        }
        host.refused_with("Conflict", &["disk", "decrypt", "d"]);
        assert_eq!(host.json(&["disk", "list"]), serde_json::json!([]));
        host.assert_no_disks();
    }
}

#[test]
fn what_cannot_be_cleaned_up_is_left_and_stops_no_other_command() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let own = host.disks().join("d/notes.txt");
    fs::write(&own, "not sealdisk's").unwrap();
    let output = host.run(&["disk", "delete", "d", "--yes"]);
    assert!(one_line(&output).contains("files that are not a disk's"));
    assert_eq!(fs::read(&own).unwrap(), b"not sealdisk's");
    assert_eq!(fs::read_dir(host.disks().join("d")).unwrap().count(), 1);
    host.ok(&["disk", "create", "other", "--size", "1M"]);
    let list = host.json(&["disk", "list"]);
    assert_eq!(list[0]["diskState"], "Deleting", "{list}");
    fs::remove_file(&own).unwrap();
    assert_eq!(host.json(&["disk", "list"]).as_array().unwrap().len(), 1);
    // A disk whose files are gone can be forgotten, and that no key was erased is said.
    fs::remove_dir_all(host.disks().join("other")).unwrap();
    let output = host.run(&["disk", "delete", "other", "--yes"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains("no key was erased"),
        "{stderr}"
    );
    host.assert_no_disks();
}

#[test]
fn many_at_once_make_each_disk_once() {
    let host = Host::new();
    host.ok(&["disk", "create", "first", "--size", "1M"]);
    let children: Vec<_> = ["a", "b", "c", "same", "same", "same"]
        .iter()
        .map(|name| {
            let mut command = host.command(&["disk", "create", name, "--size", "1M"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for _ in 0..20 {
        host.ok(&["disk", "list"]);
    }
    let outputs = children.into_iter().map(|c| c.wait_with_output().unwrap());
    let (made, refused): (Vec<_>, Vec<_>) = outputs.partition(|o| o.status.success());
    assert_eq!(made.len(), 4, "{refused:?}");
    for output in &refused {
        assert!(one_line(output).contains("exists already"));
    }
    assert_eq!(host.json(&["disk", "list"]).as_array().unwrap().len(), 5);
    let names = fs::read_dir(host.disks()).unwrap();
    assert_eq!(names.count(), 5);
}
