//! Disks that leave an installation: as images, and as they are.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, MARKER, allocated, holds, one_line, qemu_img, text};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

/// What QEMU reads in an image.
fn as_raw(host: &Host, image: &Path, format: &str) -> Vec<u8> {
    let raw = host.path("back.raw");
    let _ = fs::remove_file(&raw);
    qemu_img(&[
        "convert",
        "-f",
        format,
        "-O",
        "raw",
        text(image),
        text(&raw),
    ]);
    fs::read(&raw).unwrap()
}

#[test]
fn images_of_all_formats_have_the_disk_and_its_holes() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    // Commas and colons mean something to QEMU's tools.
    let out = host.path("out,a=b:c");
    fs::create_dir(&out).unwrap();
    let content = fs::read(&raw).unwrap();
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    for (format, qemu) in [("raw", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")] {
        let file = out.join(format!("disk.{format}"));
        let export = [
            "disk",
            "export",
            "d",
            "--file",
            text(&file),
            "--format",
            format,
        ];
        host.ok(&export);
        assert_eq!(
            fs::metadata(&file).unwrap().mode() & 0o777,
            0o600,
            "{format}"
        );
        assert!(allocated(&file) < 8 << 20, "{format}: {}", allocated(&file));
        let plain = host.path("plain");
        fs::rename(&file, &plain).unwrap();
        assert!(as_raw(&host, &plain, qemu) == content, "{format}");
        fs::rename(&plain, &file).unwrap();
        host.refused_with("Conflict", &export);
        assert_eq!(
            fs::read_dir(&out).unwrap().count(),
            1,
            "nothing else is left"
        );
        fs::remove_file(&file).unwrap();
    }
    // Azure takes a fixed VHD: the disk's bytes and a footer.
    let vhd = host.path("fixed.vhd");
    host.ok(&[
        "disk",
        "export",
        "d",
        "--file",
        text(&vhd),
        "--format",
        "vhd",
    ]);
    assert_eq!(
        fs::metadata(&vhd).unwrap().len(),
        content.len() as u64 + 512
    );
}

#[test]
fn an_export_that_fails_or_is_interrupted_leaves_no_plaintext() {
    let host = Host::new();
    let raw = host.path("large.raw");
    let file = fs::File::create(&raw).unwrap();
    file.set_len(600 << 20).unwrap();
    let mut noise = vec![0; 300 << 20];
    test_support::noise(&mut noise);
    noise[..MARKER.len()].copy_from_slice(MARKER);
    file.write_all_at(&noise, 0).unwrap();
    drop(noise);
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    fs::remove_file(&raw).unwrap();
    let out = host.path("out");
    fs::create_dir(&out).unwrap();
    for format in ["raw", "qcow2", "vhd"] {
        let image = out.join("image");
        let export = [
            "disk",
            "export",
            "d",
            "--file",
            text(&image),
            "--format",
            format,
        ];
        let mut child = host
            .command(&export)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds_something(&out) {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{format} was too fast");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("interrupted"), "{format}: {error}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{format}");
    }
    let nowhere = host.path("no/such/dir/image");
    for format in ["raw", "qcow2"] {
        host.refused(&[
            "disk",
            "export",
            "d",
            "--file",
            text(&nowhere),
            "--format",
            format,
        ]);
    }
    // Without QEMU's tools.
    let image = out.join("image");
    let export = [
        "disk",
        "export",
        "d",
        "--file",
        text(&image),
        "--format",
        "vhd",
    ];
    let output = host
        .command(&export)
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert!(one_line(&output).contains("qemu-utils"));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    host.refused(&[
        "disk",
        "export",
        "d",
        "--file",
        text(&image),
        "--format",
        "vmdk",
    ]);
    // A key that is not granted.
    host.encryption_set("set1", ALL);
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    let set = host.installation().catalog().des("set1").unwrap();
    host.grant(set.record.principal_id, &[]);
    host.refused_with("Forbidden", &export);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

/// Whether a file of some size is anywhere below.
fn holds_something(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().flatten().any(|entry| {
        let Ok(metadata) = entry.metadata() else {
            return false;
        };
        match metadata.is_dir() {
            true => holds_something(&entry.path()),
            false => metadata.blocks() > 2048,
        }
    })
}

/// Another installation that has the same vaults and sets, as one with access to a common vault has.
fn second(host: &Host) -> Host {
    let other = Host::new();
    let copied = Command::new("cp")
        .args(["-a", text(&host.state()), text(&other.state())])
        .status();
    assert!(copied.unwrap().success());
    other
}

#[test]
fn a_copy_opens_in_another_installation_that_has_the_key() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let other = second(&host);
    let raw = host.raw_image("disk.raw");
    let set = ["--disk-encryption-set", "set1"];
    host.ok(&[&["disk", "create", "d", "--source", text(&raw)], &set[..]].concat());
    let copy = host.path("copy");
    host.ok(&["disk", "copy", "d", "--to", text(&copy)]);
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 3);
    assert!(!holds(&copy, MARKER), "plaintext in a copy");
    assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o777, 0o700);
    let data = fs::read_dir(&copy)
        .unwrap()
        .flatten()
        .find(|e| e.path().extension().is_some_and(|e| e == "data"));
    assert!(allocated(&data.unwrap().path()) < 8 << 20);
    host.refused_with("Conflict", &["disk", "copy", "d", "--to", text(&copy)]);

    // The same disk twice in one installation, or a name twice.
    let register = ["disk", "register", "--dir", text(&copy)];
    let error = host.refused_with("Conflict", &register);
    assert!(error.contains("known here as d"), "{error}");
    other.ok(&["disk", "create", "d", "--size", "1MiB"]);
    other.refused_with("Conflict", &register);

    let shown = other.json(&[&register[..], &["--name", "moved"]].concat());
    assert_eq!(shown["diskState"], "Unattached");
    assert_eq!(shown["encryption"]["diskEncryptionSetId"], "set1");
    assert!(other.ok(&["disk", "decrypt", "moved"]) == fs::read(&raw).unwrap());
    // It can do all that a disk can.
    other.ok(&["disk", "resize", "moved", "--size", "30MiB"]);
    other.ok(&["disk", "update", "moved", "--platform-managed"]);
    let decrypted = other.ok(&["disk", "decrypt", "moved"]);
    assert!(decrypted.len() == 30 << 20 && decrypted.starts_with(&fs::read(&raw).unwrap()));
    // The original is what it was.
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
    other.ok(&["disk", "delete", "moved", "--yes"]);
    assert!(!copy.exists());
}

#[test]
fn what_is_no_copy_or_has_no_key_here_is_not_registered() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let other = second(&host);
    host.ok(&["disk", "create", "own", "--size", "1MiB"]);
    host.ok(&[
        "disk",
        "create",
        "d",
        "--size",
        "1MiB",
        "--disk-encryption-set",
        "set1",
    ]);
    let (own, copy) = (host.path("own"), host.path("copy"));
    host.ok(&["disk", "copy", "own", "--to", text(&own)]);
    host.ok(&["disk", "copy", "d", "--to", text(&copy)]);
    let register = |dir: &Path| other.refused(&["disk", "register", "--dir", text(dir)]);

    // The platform-managed key of another installation is not here.
    let error = register(&own);
    assert!(error.contains("key"), "{error}");
    let error = register(&host.path("nothing"));
    assert!(error.contains("cannot find"), "{error}");
    let error = register(&host.state());
    assert!(error.contains("header"), "{error}");
    let principal = other.installation().catalog().des("set1").unwrap();
    other.grant(principal.record.principal_id, &["get"]);
    let error = register(&copy);
    assert!(error.contains("unwrapKey"), "{error}");
    other.grant(principal.record.principal_id, ALL);
    let unknown = ["--disk-encryption-set", "none"];
    other.refused_with(
        "ResourceNotFound",
        &[&["disk", "register", "--dir", text(&copy)], &unknown[..]].concat(),
    );

    // A copy that is not whole.
    let data = fs::read_dir(&copy)
        .unwrap()
        .flatten()
        .find(|e| e.path().extension().is_some_and(|e| e == "data"));
    let data = data.unwrap().path();
    let len = fs::metadata(&data).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    file.set_len(len - 4096).unwrap();
    let error = register(&copy);
    assert!(error.contains("truncated"), "{error}");
    file.set_len(len).unwrap();
    assert!(other.installation().catalog().disks().unwrap().is_empty());
    other.ok(&["disk", "register", "--dir", text(&copy)]);
    assert_eq!(other.json(&["disk", "show", "d"])["name"], "d");
}

#[test]
fn a_forgotten_disk_keeps_its_files_and_can_be_registered_again() {
    let host = Host::new();
    host.encryption_set("set1", ALL);
    let raw = host.raw_image("disk.raw");
    let set = ["--disk-encryption-set", "set1"];
    host.ok(&[&["disk", "create", "d", "--source", text(&raw)], &set[..]].concat());
    let files = host.files("d");
    let header = fs::read(&files.header).unwrap();
    let unregister = ["disk", "unregister", "d"];
    let output = host.run(&unregister);
    assert!(output.status.success() && output.stdout.is_empty());
    let directory = files.header.parent().unwrap();
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains(text(directory)), "{note}");
    assert_eq!(fs::read(&files.header).unwrap(), header);
    host.refused_with("ResourceNotFound", &["disk", "show", "d"]);
    host.refused_with("ResourceNotFound", &unregister);
    // Its place is not free, its name is.
    host.refused_with("Conflict", &["disk", "create", "d", "--size", "1MiB"]);

    let register = ["disk", "register", "--dir", text(directory), "--name", "e"];
    host.ok(&register);
    assert!(host.ok(&["disk", "decrypt", "e"]) == fs::read(&raw).unwrap());

    // A directory that is gone cannot be looked at, but be forgotten.
    let away = host.path("away");
    fs::rename(directory, &away).unwrap();
    host.ok(&["disk", "unregister", "e"]);
    assert!(host.installation().catalog().disks().unwrap().is_empty());
    host.ok(&["disk", "register", "--dir", text(&away)]);
    // One that is there and has no header is kept.
    fs::remove_file(away.join("header")).unwrap();
    host.refused(&["disk", "unregister", "e"]);
    assert_eq!(host.installation().catalog().disks().unwrap().len(), 1);
}

#[test]
fn a_disk_in_use_is_neither_copied_nor_exported_nor_forgotten() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let data = host.files("d").data;
    let file = fs::File::open(&data).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let to = host.path("copy");
    host.refused_with(
        "OperationNotAllowed",
        &["disk", "copy", "d", "--to", text(&to)],
    );
    let export = [
        "disk",
        "export",
        "d",
        "--file",
        text(&to),
        "--format",
        "raw",
    ];
    host.refused_with("OperationNotAllowed", &export);
    assert!(!to.exists());
    host.refused_with("OperationNotAllowed", &["disk", "unregister", "d"]);
    assert_eq!(host.json(&["disk", "show", "d"])["name"], "d");
}

#[test]
fn an_incremental_export_lies_on_a_full_one_of_the_snapshot() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let base = fs::read(&raw).unwrap();
    let create = ["disk", "create", "d", "--source", text(&raw)];
    host.ok(&[&create[..], &["--sector-size", "512"]].concat());
    host.ok(&["snapshot", "create", "monday", "--source", "d"]);
    host.write("d", (5 << 20) + 4096, &[1; 512]);
    host.ok(&["snapshot", "create", "later", "--source", "d"]);
    // In two layers: a part of a block, zeros over data, and the end of the disk.
    host.write("d", (6 << 20) + 8192, &[0; 128 << 10]);
    host.ok(&["disk", "resize", "d", "--size", "24577KiB"]);
    host.write("d", 24 << 20, &[2; 1024]);
    let mut content = base.clone();
    content.resize((24 << 20) + 1024, 2);
    content[(5 << 20) + 4096..][..512].fill(1);
    content[(6 << 20) + 8192..][..128 << 10].fill(0);
    assert!(host.ok(&["disk", "decrypt", "d"]) == content);
    assert!(host.ok(&["disk", "decrypt", "snapshot:monday"]) == base);

    let export = |source: &str, file: &str, more: &[&str]| {
        let file = host.path(file);
        let arguments = ["disk", "export", source, "--file", text(&file)];
        host.run(&[&arguments[..], more].concat())
    };
    let qcow2 = ["--format", "qcow2"];
    let since = ["--format", "qcow2", "--incremental", "--base", "monday"];
    for backing in ["monday.qcow2", "monday.raw"] {
        let format = backing.split_once('.').unwrap().1;
        let full = export("snapshot:monday", backing, &["--format", format]);
        assert!(full.status.success(), "{full:?}");
        let overlay = format!("d-{format}.qcow2");
        let given = ["--backing", backing];
        // The first name is the one that is taken when none is given.
        let given = if format == "raw" { &given[..] } else { &[] };
        let changes = export("d", &overlay, &[&since[..], given].concat());
        assert!(changes.status.success(), "{changes:?}");
        let overlay = host.path(&overlay);
        assert!(allocated(&overlay) < 1 << 20, "{}", allocated(&overlay));
        assert!(as_raw(&host, &overlay, "qcow2") == content, "{format}");
    }

    let of_snapshot = export("snapshot:later", "later.qcow2", &since);
    assert!(of_snapshot.status.success(), "{of_snapshot:?}");
    let mut later = base;
    later[(5 << 20) + 4096..][..512].fill(1);
    assert!(as_raw(&host, &host.path("later.qcow2"), "qcow2") == later);

    for format in ["raw", "vhd"] {
        let refused = export("d", "no", &[&since[..1], &[format], &since[2..]].concat());
        let why = one_line(&refused);
        assert!(why.contains("cannot lie on another"), "{why}");
    }
    assert!(
        !export("d", "no", &["--format", "qcow2", "--incremental"])
            .status
            .success()
    );
    host.ok(&["disk", "flatten", "d"]);
    let why = one_line(&export("d", "no", &since));
    assert!(why.contains("the snapshot monday any more"), "{why}");
    assert!(!host.path("no").exists());
    let full = export("d", "full.qcow2", &qcow2);
    assert!(full.status.success(), "{full:?}");
    assert!(as_raw(&host, &host.path("full.qcow2"), "qcow2") == content);
}

#[test]
fn a_snapshot_is_read_by_several_at_once_and_not_deleted_meanwhile() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    host.ok(&["image", "create", "i", "--source", "snapshot:s"]);
    let layer = host.layers(installation::envelope::ResourceKind::Snapshot, "s")[0];
    let reader = fs::File::open(host.disks().join(format!("d/{layer}.data"))).unwrap();
    rustix::fs::flock(&reader, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    let content = fs::read(&raw).unwrap();
    for source in ["snapshot:s", "image:i", "d"] {
        assert!(host.ok(&["disk", "decrypt", source]) == content, "{source}");
    }
    let delete = ["snapshot", "delete", "s", "--yes"];
    host.refused_with("OperationNotAllowed", &delete);
    drop(reader);
    host.ok(&delete);
    host.refused_with("ResourceNotFound", &["disk", "decrypt", "snapshot:s"]);
    assert!(host.ok(&["disk", "decrypt", "image:i"]) == content);
}
