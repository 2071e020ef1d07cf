//! Programs that do not work, each at another step: the one that served goes on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use test_support::{AttachOptions, Daemon, Disk, PATIENCE, program, scratch};

use super::impostor::{Fault, Impostor, beside_the_program};
use super::{MIB_8, assert_goes_on, await_only_one, refusal, serving, upgrade};
use crate::supervise::is_qsd;
use crate::supervise::load::{DISK_BYTES, run, setup};

/// The program of the data plane.
fn program_of(daemon: &Daemon) -> std::path::PathBuf {
    fs::read_link(format!("/proc/{}/exe", daemon.data_plane())).unwrap()
}

/// Under load, the upgrade to a program with this fault is refused with that reason.
fn is_refused(fault: Fault, why: &str) {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&setup());
    let (impostor, before) = (Impostor::new(fault), daemon.data_plane());
    let done = run(&mut frontend, 1, || {
        std::thread::sleep(Duration::from_millis(100));
        let said = refusal(&disk, Some(impostor.path()));
        assert!(said.contains(why), "{fault:?}: {said}");
        // Who was found out before is never given the disk.
        let after = matches!(
            fault,
            Fault::EndsPrepared | Fault::EndsWithDisk | Fault::RefusesDisk | Fault::HangsWithDisk
        );
        if !after {
            assert_eq!(daemon.data_plane(), before);
        }
        assert_eq!(serving(&disk)["lastUpgrade"], serde_json::Value::Null);
    });
    assert!(done.requests > 0);
    eprintln!("{fault:?}: the longest request took {:?}", done.longest);
    assert_goes_on(&mut frontend, 2);
    await_only_one(&daemon);
    assert_eq!(program_of(&daemon), program().canonicalize().unwrap());
    // And a good one is taken.
    let upgraded = upgrade(&disk, None);
    assert!(upgraded["stallMs"].is_u64(), "{upgraded}");
    assert_goes_on(&mut frontend, 3);
    drop(frontend);
    daemon.stop();
}

#[test]
fn a_launcher_that_hangs_is_given_up() {
    is_refused(
        Fault::LauncherHangs,
        "cannot start the data plane: timed out",
    );
}

#[test]
fn a_program_that_cannot_go_on_as_the_attach_process_is_refused() {
    is_refused(Fault::ReadsNothing, "it does not say what it can read");
    is_refused(
        Fault::ReadsOther,
        "it reads version 7 of what an attach process tells",
    );
}

#[test]
fn a_program_that_ends_at_its_start_is_refused() {
    is_refused(Fault::Ends, "it has ended at once");
}

#[test]
fn a_program_that_is_not_ready_in_time_is_refused() {
    is_refused(Fault::Silent, "the data plane does not answer");
}

#[test]
fn a_program_that_speaks_no_protocol_is_refused() {
    is_refused(Fault::Babbles, "not a whole frame of the protocol");
}

#[test]
fn a_program_of_an_unknown_version_is_refused() {
    is_refused(Fault::Version, "the data plane speaks protocol 900 to 901");
}

#[test]
fn a_program_that_lacks_something_says_what() {
    is_refused(Fault::Unprepared, "it lacks what it needs");
}

#[test]
fn a_program_that_ends_when_it_is_prepared_is_replaced_by_the_old_one() {
    is_refused(Fault::EndsPrepared, "");
}

#[test]
fn a_program_that_ends_with_the_disk_is_replaced_by_the_old_one() {
    is_refused(Fault::EndsWithDisk, "the new program did not serve");
}

#[test]
fn a_program_that_refuses_the_disk_is_replaced_by_the_old_one() {
    is_refused(Fault::RefusesDisk, "it does not like the disk");
}

#[test]
fn a_program_that_hangs_with_the_disk_is_replaced_by_the_old_one() {
    is_refused(Fault::HangsWithDisk, "the new program did not serve");
}

/// What the known-answer test of the cipher expects, of 4096 bytes in one data unit.
const ANSWER: [u8; 16] = [
    0xd0, 0x81, 0x46, 0xf5, 0x53, 0xcd, 0x7b, 0xd7, 0x4b, 0x86, 0x41, 0xe5, 0x99, 0xb2, 0xd4, 0x11,
];

/// A copy of the program that takes its cipher for wrong.
fn with_another_answer(path: &Path) {
    let mut bytes = fs::read(program()).unwrap();
    let places: Vec<usize> = bytes
        .windows(ANSWER.len())
        .enumerate()
        .filter(|(_, some)| *some == ANSWER)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "the program has no known answer");
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::metadata(program()).unwrap().permissions()).unwrap();
}

#[test]
fn a_program_whose_cipher_is_wrong_is_refused() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let directory = beside_the_program();
    let path = directory.path().join("wrong");
    with_another_answer(&path);
    let before = daemon.data_plane();
    let end = Instant::now() + PATIENCE;
    let said = loop {
        let said = refusal(&disk, Some(&path));
        // Another test may have started a process while the file was being written.
        if !said.contains("busy") {
            break said;
        }
        assert!(Instant::now() < end, "{said}");
    };
    assert!(said.contains("does not give the known answer"), "{said}");
    assert_eq!(daemon.data_plane(), before);
    assert_goes_on(&mut frontend, 1);
}

/// What no program is, and what the attach process could have written itself.
#[test]
fn only_a_program_that_nobody_else_can_write_is_started() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let directory = beside_the_program();
    let path = directory.path().join("program");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    let said = refusal(&disk, Some(&path));
    assert!(said.contains("is no program"), "{said}");
    use std::os::unix::fs::PermissionsExt;
    for (mode, why) in [
        (0o777, "can be written to by others"),
        (0o755, "does not say what it can read"),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let said = refusal(&disk, Some(&path));
        assert!(said.contains(why), "{said}");
    }
    let inside = disk.state().join("program");
    fs::copy("/bin/true", &inside).unwrap();
    let said = refusal(&disk, Some(&inside));
    assert!(
        said.contains("where the attach process may write"),
        "{said}"
    );
    let said = refusal(&disk, Some(Path::new("/bin/true")));
    assert!(said.contains("does not say what it can read"), "{said}");
    // The attach process may start nothing from there.
    let elsewhere = TempDir::new_in(scratch()).unwrap();
    let elsewhere = elsewhere.path().join("sealdisk");
    fs::hard_link(program(), &elsewhere).unwrap();
    let said = refusal(&disk, Some(&elsewhere));
    assert!(
        said.contains("may start only what lies beside its own program"),
        "{said}"
    );
    assert_goes_on(&mut frontend, 1);
    await_only_one(&daemon);
}

/// A catalog of a newer program, as a downgrade finds it: the attach process could not open it when there is no way
/// back any more.
#[test]
fn a_program_that_cannot_use_the_installation_is_refused() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let before = daemon.data_plane();
    let catalog = rusqlite::Connection::open(disk.state().join("catalog.db")).unwrap();
    let version = |set: Option<i32>| {
        let now = catalog.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0));
        if let Some(set) = set {
            catalog.pragma_update(None, "user_version", set).unwrap();
        }
        now.unwrap()
    };
    let ours = version(Some(999));
    daemon.signal_all(&[daemon.pid()], Signal::HUP);
    let refused = "it cannot use the installation: ";
    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains(refused) {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_goes_on(&mut frontend, 1);
    assert_eq!(daemon.data_plane(), before);
    assert_eq!(version(Some(ours)), 999, "it was changed");
    let upgraded = upgrade(&disk, None);
    assert!(upgraded["attachKept"].is_null(), "{upgraded}");
    assert_goes_on(&mut frontend, 2);
}
