//! `sealdisk disk` with bad input: one line on stderr, a status that is not 0, nothing left behind
//! and nothing lost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::{Host, KEY, VAULT, one_line, qemu_img, text};
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
