//! Commands on disks that a signal or a kill cuts off, or that meet: the next command cleans up.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use installation::catalog::{DiskRecord, DiskState};
use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, allocated, noise, one_line, qemu_img, text};

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
