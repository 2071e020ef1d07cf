//! `sealdisk disk` on a disk that is attached, or whose daemon died.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use disks::Disk;
use installation::envelope::{Header, ResourceKind};
use installation::runtime_map;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use test_support::{Host, holds, text};
use uuid::Uuid;
use volume::pipeline::DiskIo;
use volume::{RuntimeMap, Volume};

use super::attached::{Attached, runtime_dir};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

#[test]
fn an_attached_disk_is_re_wrapped_and_nothing_else_is_done_to_it() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.encryption_set("set1", ALL);
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    let attached = Attached::start(&host, &runtime, "d");

    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Attached");
    host.refused_with("OperationNotAllowed", &["disk", "delete", "d", "--yes"]);
    host.refused_with("OperationNotAllowed", &["disk", "decrypt", "d"]);
    host.ok(&["disk", "update", "d", "--disk-encryption-set", "set1"]);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["encryption"]["diskEncryptionSetId"], "set1");

    attached.detach();
    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Unattached");
    // The header that the re-wrap wrote is the one that counts from now on.
    Attached::start(&host, &runtime, "d").detach();
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
    host.ok(&["disk", "delete", "d", "--yes"]);
    host.assert_no_disks();
}

/// What a daemon does up to the moment when it is killed: the disk is stamped with a new attach,
/// and `plaintext` is written to `offset`, completed and not flushed.
fn die_after_a_write(host: &Host, runtime: &TempDir, disk: &str, offset: u64, plaintext: &[u8]) {
    let installation = host.installation();
    let disk = Disk::find(&installation, disk).unwrap();
    let file = disk.header_file().unwrap();
    let claim = disk.claim().unwrap();
    let (header, dek) = disk.unlock(&installation, file.read().unwrap()).unwrap();
    let top = header.top().unwrap();
    let geometry = disks::geometry(&header, top).unwrap();
    let files = disks::open_files(claim, &header, |layer| disk.layer_paths(layer)).unwrap();
    let layer = disks::layer_map(&header, top, &disk.layer_paths(top)).unwrap();

    let path = runtime_map(runtime.path(), header.disk);
    let next = Uuid::new_v4();
    let (map, _) = RuntimeMap::open(&path, &geometry, header.attach, next).unwrap();
    let mut stamped: Header = header.clone();
    stamped.attach = next;
    stamped.session = Some(disks::begun(runtime.path(), header.disk).unwrap());
    file.lock().unwrap().write(&stamped, &dek).unwrap();
    let volume = Volume::open_runtime(layer, vec![], &map).unwrap();
    let mut io = DiskIo::open(Arc::new(volume), files, &dek.into()).unwrap();
    io.write_at(offset, plaintext).unwrap();
    drop(io);
}

#[test]
fn what_a_killed_daemon_had_completed_is_decrypted() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let mut expected = vec![0; 1 << 20];
    for (offset, byte) in [(8192, 1), (65_536, 2)] {
        die_after_a_write(&host, &runtime, "d", offset, &[byte; 4096]);
        let offset = usize::try_from(offset).unwrap();
        expected[offset..offset + 4096].fill(byte);
        // The map on disk does not know of it, the one that outlived the daemon does.
        let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
        assert!(decrypted == expected);
    }
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 1);
    assert!(!holds(runtime.path(), &[1; 64]), "plaintext on tmpfs");

    // A check takes them into account, and a repair makes them durable.
    let check = ["disk", "check", "d", "--runtime-dir", text(runtime.path())];
    let report = host.json(&check);
    assert_eq!(report["dataBytes"], 8192);
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(
        (&show["dataBytes"], &show["diskState"]),
        (&0.into(), &"Dirty".into())
    );
    host.ok(&[&check[..], &["--repair"]].concat());
    assert_eq!(host.json(&["disk", "show", "d"])["dataBytes"], 8192);
    die_after_a_write(&host, &runtime, "d", 131_072, &[3; 4096]);
    expected[131_072..131_072 + 4096].fill(3);

    // A copy has it too.
    let copy = host.path("copy");
    host.ok(&[&["disk", "copy", "d", "--to", text(&copy)], &options[..]].concat());
    let elsewhere = runtime_dir();
    let options = ["--runtime-dir", text(elsewhere.path())];
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected, "it is durable since");

    // And a disk that is forgotten, which gets another attach id when it is registered.
    die_after_a_write(&host, &runtime, "d", 262_144, &[4; 4096]);
    expected[262_144..262_144 + 4096].fill(4);
    let forget = ["disk", "unregister", "d", "--runtime-dir"];
    host.ok(&[&forget[..], &[text(runtime.path())]].concat());
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
    let directory = host.disks().join("d");
    host.ok(&["disk", "register", "--dir", text(&directory)]);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
}

/// Has the header of a disk say something else.
fn change_header(host: &Host, disk: &str, change: impl FnOnce(&mut Header)) {
    let installation = host.installation();
    let disk = Disk::find(&installation, disk).unwrap();
    let file = disk.header_file().unwrap();
    let mut lock = file.lock().unwrap();
    let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
    change(&mut header);
    lock.write(&header, &dek).unwrap();
}

#[test]
fn what_a_daemon_had_completed_goes_with_the_power() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    // As after a loss of power: the map is gone, and the kernel was booted anew.
    let elsewhere = runtime_dir();
    change_header(&host, "d", |header| {
        header.session.as_mut().unwrap().boot = Uuid::new_v4();
    });
    let options = ["--runtime-dir", text(elsewhere.path())];
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted.iter().all(|&b| b == 0));
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["session"]["state"], "OtherBoot");
    assert_eq!(show["diskState"], "Unattached");
    Attached::start(&host, &elsewhere, "d").detach();
    assert!(host.json(&["disk", "show", "d"])["session"].is_null());

    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    // It tells where its map is.
    let options = ["--yes", "--runtime-dir", text(elsewhere.path())];
    host.ok(&[&["disk", "delete", "d"], &options[..]].concat());
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
}

#[test]
fn completed_writes_are_not_lost_with_another_runtime_directory() {
    let host = Host::new();
    let (runtime, elsewhere) = (runtime_dir(), runtime_dir());
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    let mut expected = fs::read(&raw).unwrap();
    expected[8192..8192 + 4096].fill(1);
    let (to, image, socket) = (host.path("copy"), host.path("image"), host.path("socket"));
    let commands: [&[&str]; 12] = [
        &["attach", "d", "--socket-path", text(&socket)],
        &["disk", "decrypt", "d"],
        &[
            "disk",
            "export",
            "d",
            "--file",
            text(&image),
            "--format",
            "raw",
        ],
        &["disk", "check", "d"],
        &["disk", "check", "d", "--repair"],
        &["disk", "resize", "d", "--size", "40MiB"],
        &["disk", "copy", "d", "--to", text(&to)],
        &["disk", "flatten", "d"],
        &["disk", "rotate-dek", "d"],
        &["disk", "revert", "d", "--snapshot", "s", "--yes"],
        &["snapshot", "create", "s2", "--source", "d"],
        &["disk", "unregister", "d"],
    ];
    // Also to give them up takes more than a wrong directory.
    let there = ["--runtime-dir", text(elsewhere.path())];
    let insist: [&[&str]; 2] = [
        &[
            "attach",
            "d",
            "--discard-unflushed",
            "--socket-path",
            text(&socket),
        ],
        &["disk", "check", "d", "--repair", "--discard-unflushed"],
    ];
    let before = fs::read(host.disks().join("d/header")).unwrap();
    for command in commands.into_iter().chain(insist) {
        let why = host.refused_with("UnflushedWrites", &[command, &there].concat());
        let right = format!("--runtime-dir {}", text(runtime.path()));
        assert!(why.contains(&right), "{command:?}: {why}");
    }
    // Or than another name for this host.
    let renamed = ["--host-name", "renamed"];
    for command in insist {
        let words = [command, &there, &renamed].concat();
        let why = host.refused_with("UnflushedWrites", &words);
        let right = format!("--runtime-dir {}", text(runtime.path()));
        assert!(why.contains(&right), "{command:?}: {why}");
    }
    let show = host.json(&[&["disk", "show", "d"], &renamed[..]].concat());
    assert_eq!(show["session"]["state"], "Dirty");
    let (name, id) = (&show["session"]["host"], &show["session"]["hostId"]);
    assert!(!name.as_str().unwrap().contains('/'), "{name}");
    assert_eq!(id.as_str().unwrap().len(), 16);
    let mut unnamed = host.command(&["disk", "show", "d"]);
    assert!(
        unnamed
            .env("SEALDISK_HOST", "")
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(fs::read(host.disks().join("d/header")).unwrap() == before);
    assert!(!to.exists() && !image.exists() && !socket.exists());
    let here = ["--runtime-dir", text(runtime.path())];
    assert!(host.ok(&[&["disk", "decrypt", "d"], &here[..]].concat()) == expected);

    // The map is lost, or is not the disk's.
    let map = fs::read_dir(runtime.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let kept = fs::read(&map).unwrap();
    let mut damaged = kept.clone();
    damaged[60] ^= 1;
    for bytes in [
        None,
        Some(&kept[..100]),
        Some(&damaged[..]),
        Some(&kept[..1 << 20]),
    ] {
        match bytes {
            Some(bytes) => fs::write(&map, bytes).unwrap(),
            None => fs::remove_file(&map).unwrap(),
        }
        for command in commands {
            if command[1] == "check" {
                let output = host.run(&[command, &here].concat());
                assert_eq!(output.status.code(), Some(2), "{output:?}");
                continue;
            }
            let why = host.refused_with("UnflushedWrites", &[command, &here].concat());
            assert!(why.contains(text(&map)), "{command:?}: {why}");
            assert!(why.contains("--discard-unflushed"), "{command:?}: {why}");
        }
    }
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["diskState"], "Dirty");
    assert_eq!(show["session"]["runtimeMap"], text(&map));

    // Put back, and nothing is lost.
    fs::write(&map, &kept).unwrap();
    assert!(host.ok(&[&["disk", "decrypt", "d"], &here[..]].concat()) == expected);
    Attached::start(&host, &runtime, "d").detach();
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
    assert!(host.ok(&[&["disk", "decrypt", "d"], &there[..]].concat()) == expected);
}

#[test]
fn lost_writes_are_given_up_when_somebody_says_so() {
    let host = Host::new();
    let (runtime, elsewhere) = (runtime_dir(), runtime_dir());
    let there = ["--runtime-dir", text(elsewhere.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let lose = || {
        die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
        let map = fs::read_dir(runtime.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        fs::remove_file(map.path()).unwrap();
        host.refused_with(
            "UnflushedWrites",
            &[&["disk", "decrypt", "d"], &there[..]].concat(),
        );
    };
    let is_empty = || {
        let decrypted = host.ok(&[&["disk", "decrypt", "d"], &there[..]].concat());
        assert!(decrypted.iter().all(|&b| b == 0));
    };
    lose();
    let repair = ["disk", "check", "d", "--repair", "--discard-unflushed"];
    let report = host.json(&[&repair[..], &there].concat());
    let problems = report["problems"].as_array().unwrap();
    let lost = problems.iter().find(|p| p["part"] == "session").unwrap();
    assert_eq!(lost["repaired"], true);
    is_empty();
    lose();
    Attached::start_with(&host, &elsewhere, "d", &["--discard-unflushed"]).detach();
    assert_eq!(host.json(&["disk", "show", "d"])["diskState"], "Unattached");
    is_empty();
}

/// The top layer of a disk, and a file of it.
fn top_layer(host: &Host, disk: &str, extension: &str) -> PathBuf {
    let top = *host.layers(ResourceKind::Disk, disk).last().unwrap();
    host.disks().join(disk).join(format!("{top}.{extension}"))
}

/// Rotates the DEK of an attached disk until its header says that it is done.
fn rotate(host: &Host, options: &[&str], disk: &str) {
    host.ok(&[&["disk", "rotate-dek", disk], options].concat());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !host.json(&["disk", "show", disk])["job"].is_null() {
        assert!(Instant::now() < deadline, "the job is not done");
    }
}

/// A detach as soon as the header says that the rotation is done, while the file of the layer that was
/// only the disk's takes three seconds to be removed.
#[test]
fn a_detach_waits_until_dropped_layers_are_removed() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    let (socket, slow) = (host.path("socket"), top_layer(&host, "d", "data"));
    let attach = ["attach", "d", "--socket-path", text(&socket)];
    let attach = host.command(&[&attach[..], &options].concat());
    let mut strace = Command::new("strace");
    host.prepare(&mut strace);
    strace
        .args(["-f", "-o", text(&host.path("trace")), "-P", text(&slow)])
        .args(["-e", "inject=unlink,unlinkat:delay_enter=3000000"])
        .arg(attach.get_program())
        .args(attach.get_args());
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace");
        return;
    }
    let mut traced = Attached::spawn(&host, strace);
    rotate(&host, &options, "d");
    let children = format!("/proc/{0}/task/{0}/children", traced.0.id());
    let children = fs::read_to_string(children).unwrap();
    let attached: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(attached).unwrap(), Signal::TERM).unwrap();
    assert!(traced.0.wait().unwrap().success());
    let trace = fs::read_to_string(host.path("trace")).unwrap();
    assert!(trace.contains("DELAYED"), "{trace}");
    host.is_clean("d");
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&raw).unwrap());
}

#[test]
fn what_a_crash_left_of_dropped_layers_goes_with_the_next_attach() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    let files = ["data", "map"].map(|extension| top_layer(&host, "d", extension));
    let aside = ["data", "map"].map(|extension| host.path(extension));
    for (file, aside) in files.iter().zip(&aside) {
        fs::copy(file, aside).unwrap();
    }
    let attached = Attached::start(&host, &runtime, "d");
    rotate(&host, &options, "d");
    attached.detach();
    host.is_clean("d");
    for (file, aside) in files.iter().zip(&aside) {
        fs::copy(aside, file).unwrap();
    }
    let report = host.json(&["disk", "check", "d"]);
    assert_eq!(report["problems"][0]["kind"], "Note", "{report}");
    Attached::start(&host, &runtime, "d").detach();
    host.is_clean("d");
}

#[test]
fn an_attach_that_cannot_begin_leaves_a_disk_that_is_attached_elsewhere() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    // Too long a path for the control socket.
    let long = runtime.path().join("x".repeat(100));
    let socket = host.path("socket");
    let attach = ["attach", "d", "--socket-path", text(&socket)];
    let why = host.refused(&[&attach[..], &["--runtime-dir", text(&long)]].concat());
    assert!(why.contains(".control"), "{why}");
    assert!(host.json(&["disk", "show", "d"])["session"].is_null());
    Attached::start(&host, &runtime, "d").detach();
}

#[test]
fn a_disk_whose_key_is_revoked_is_detached_in_order() {
    let host = Host::new();
    let runtime = runtime_dir();
    let identity = host.encryption_set("set1", ALL);
    let create = [
        "disk",
        "create",
        "d",
        "--size",
        "1MiB",
        "--disk-encryption-set",
        "set1",
    ];
    host.ok(&create);
    let attached = Attached::start(&host, &runtime, "d");
    let show = host.json(&["disk", "show", "d"]);
    assert_eq!(show["session"]["state"], "Attached");
    host.grant(identity, &[]);
    attached.detach();
    let show = host.json(&["disk", "show", "d"]);
    assert!(show["session"].is_null(), "{show}");
    assert_eq!(fs::read_dir(runtime.path()).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_lost_its_supervisor_leaves_a_disk_that_needs_its_map() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    Attached::start(&host, &runtime, "d").kill();
    let deadline = Instant::now() + Duration::from_secs(30);
    while host.json(&["disk", "show", "d"])["diskState"] == "Attached" {
        assert!(Instant::now() < deadline, "the data plane does not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(
        host.json(&["disk", "show", "d"])["session"]["state"],
        "Dirty"
    );
    Attached::start(&host, &runtime, "d").detach();
    assert!(host.json(&["disk", "show", "d"])["session"].is_null());
}

#[test]
fn a_disk_whose_daemon_died_grows_and_keeps_what_was_completed() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    die_after_a_write(&host, &runtime, "d", 8192, &[1; 4096]);
    let resize = ["disk", "resize", "d", "--size", "40MiB"];
    host.ok(&[&resize[..], &options].concat());
    assert_eq!(host.json(&["disk", "show", "d"])["diskSizeBytes"], 40 << 20);
    // The map that outlived the daemon is of the old size.
    let mut expected = vec![0; 40 << 20];
    expected[8192..8192 + 4096].fill(1);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
    die_after_a_write(&host, &runtime, "d", 39 << 20, &[2; 4096]);
    expected[39 << 20..(39 << 20) + 4096].fill(2);
    let decrypted = host.ok(&[&["disk", "decrypt", "d"], &options[..]].concat());
    assert!(decrypted == expected);
}

/// What is refused has the same code whoever has the disk.
#[test]
fn changes_of_layers_are_refused_alike_with_a_guest_and_without_one() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let snapshot = ["snapshot", "create", "s", "--source", "d"];
    host.ok(&[&snapshot[..], &options].concat());
    let refused = |code: &str, arguments: &[&str]| {
        host.refused_with(code, &[arguments, &options].concat());
    };
    let both = || {
        refused(
            "InvalidArgument",
            &["disk", "resize", "d", "--size", "512KiB"],
        );
        refused("Conflict", &snapshot);
        refused("NotFound", &["disk", "flatten", "d", "--abort"]);
    };
    both();
    let attached = Attached::start(&host, &runtime, "d");
    both();
    let revert = ["disk", "revert", "d", "--snapshot", "s", "--yes"];
    refused("OperationNotAllowed", &revert);
    attached.detach();
    host.ok(&[&revert[..], &options].concat());
}

/// A command of an older version asks what this one does not know any more.
#[test]
fn a_request_of_another_version_is_refused_in_a_sentence() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let attached = Attached::start(&host, &runtime, "d");
    let id = Disk::find(&host.installation(), "d").unwrap().id();
    let mut socket = UnixStream::connect(runtime.path().join(format!("{id}.control"))).unwrap();
    socket.write_all(b"\"resize\"\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("{\"error\":\"it is attached by sealdisk "),
        "{answer}"
    );
    assert!(answer.contains("attach it again"), "{answer}");
    attached.detach();
}

#[test]
fn a_disk_that_another_command_uses_does_not_grow() {
    let host = Host::new();
    let runtime = runtime_dir();
    let options = ["--runtime-dir", text(runtime.path())];
    host.ok(&["disk", "create", "d", "--size", "1MiB"]);
    let installation = host.installation();
    let disk = Disk::find(&installation, "d").unwrap();
    let claim = disk.claim().unwrap();
    let resize = ["disk", "resize", "d", "--size", "40MiB"];
    host.refused_with("OperationNotAllowed", &[&resize[..], &options].concat());
    drop(claim);
    assert_eq!(host.json(&["disk", "show", "d"])["diskSizeBytes"], 1 << 20);
}
