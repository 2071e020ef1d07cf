//! A disk on storage whose syncs or reads fail.

use std::fs;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use test_support::frontend::client::Status;
use test_support::rng::Rng;
use test_support::small_fs::FailingFs;
use test_support::{AttachOptions, Backend, Disk, PATIENCE, expect_success, seccomp};
use volume::{FailedSync, RuntimeMap};

use super::MIB;

/// The runtime map of the only disk.
fn runtime_map(disk: &Disk) -> Option<fs::File> {
    let mut files = fs::read_dir(disk.runtime()).unwrap().flatten();
    let map = files.find(|file| file.path().extension().is_some_and(|e| e == "map"))?;
    Some(fs::File::open(map.path()).unwrap())
}

#[test]
fn after_a_failed_sync_no_flush_succeeds_and_the_end_is_not_clean() {
    let Some(storage) = FailingFs::mount() else {
        return;
    };
    let disk = storage.disk(16 * MIB);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let [first, second, ..] = &mut frontend.queues[..] else {
        panic!("two queues")
    };
    let data = Rng::new(1).bytes(MIB as usize);
    first.write(0, &data).unwrap();
    first.flush().unwrap();
    // Nothing of the map is to be written any more.
    first.flush().unwrap();
    first.write(0, &data).unwrap();

    let ballast = storage.fail();
    for queue in [&mut *first, &mut *second] {
        for _ in 0..3 {
            assert_eq!(queue.flush(), Err(Status::IoErr));
        }
    }
    // There is space again, which brings nothing back.
    drop(ballast);
    assert_eq!(second.flush(), Err(Status::IoErr));
    assert!(first.read(0, MIB as usize).unwrap() == data);

    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains("SyncFailed") {
        assert!(Instant::now() < end, "nobody says so:\n{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(frontend);
    let status = daemon.terminate();
    assert!(!status.success(), "the end was clean:\n{}", daemon.log());
    let map = RuntimeMap::from_file(runtime_map(&disk).expect("the runtime map is gone"));
    assert_eq!(map.failed_sync().unwrap(), Some(FailedSync::Data));
}

/// What a daemon had completed and nobody flushed is on storage whose path is down for a moment: a repair
/// leaves it, and what was written is there when the path is back.
#[test]
fn unflushed_data_that_cannot_be_read_stay_until_they_are_given_up() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    // No other file of the disk is as long.
    const PLACE: u64 = 4 << 20;
    let disk = Disk::new(8 * MIB);
    let data = Rng::new(1).bytes(4096);
    let check = |arguments: &[&str], fails: bool| -> (ExitStatus, serde_json::Value) {
        let arguments = [&["disk", "check", "disk", "-o", "json"], arguments].concat();
        let mut command = disk.command(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let answer =
            move |arguments: &[u64; 6]| (fails && arguments[3] == PLACE).then_some(libc::EIO);
        let (child, supervisor) =
            seccomp::spawn_supervised(&mut command, libc::SYS_pread64, answer).unwrap();
        let output = child.wait_with_output().unwrap();
        supervisor.join();
        let report = serde_json::from_slice(&output.stdout).unwrap();
        (output.status, report)
    };
    let decrypt = || expect_success(&mut disk.command(&["disk", "decrypt", "disk"])).stdout;
    let ranges = serde_json::json!([{"offset": PLACE, "length": 4096}]);
    for gives_up in [false, true] {
        let mut daemon = disk.attach(&AttachOptions::default());
        let queue = &mut daemon.connect().queues[0];
        queue.write(PLACE / 512, &data).unwrap();
        if gives_up {
            queue.flush().unwrap();
            queue.write_zeroes(&[(PLACE / 512, 8, 0)]).unwrap();
            queue.flush().unwrap();
            queue.write(PLACE / 512, &data).unwrap();
        }
        daemon.kill();

        let (status, report) = check(&["--repair"], true);
        assert_eq!(status.code(), Some(2), "{report}");
        assert_eq!(report["unreadableRanges"], ranges, "{report}");
        let problem = &report["problems"][0];
        assert_eq!(problem["repaired"], false, "{report}");
        let message = problem["message"].as_str().unwrap();
        assert!(message.contains("--discard-unflushed"), "{message}");
        assert!(runtime_map(&disk).is_some());

        let mut expected = vec![0; 4096];
        if gives_up {
            let (status, report) = check(&["--repair", "--discard-unflushed"], true);
            assert!(status.success(), "{report}");
            assert_eq!(report["unreadableRanges"], ranges, "{report}");
        } else {
            let (status, report) = check(&["--repair"], false);
            assert!(status.success(), "{report}");
            assert!(report["unreadableRanges"].is_null(), "{report}");
            expected = data.clone();
        }
        let place = PLACE as usize;
        assert!(decrypt()[place..place + 4096] == expected);
    }
}

/// The header that an attach wrote may be on storage though its sync failed: the runtime map that it names
/// stays, so that the disk is attached again.
#[test]
fn an_attach_whose_header_is_not_synced_leaves_a_disk_that_opens() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(8 * MIB);
    let socket = disk.runtime().join("socket");
    let mut command = disk.command(&["attach", "disk", "--socket-path", socket.to_str().unwrap()]);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let (tell, pid) = sync_channel(1);
    let (mut process, mut syncs) = (None, 0);
    let answer = move |arguments: &[u64; 6]| {
        let process = *process.get_or_insert_with(|| pid.recv().unwrap());
        let path = fs::read_link(format!("/proc/{process}/fd/{}", arguments[0])).ok()?;
        let is_header = path.file_name()? == "header";
        syncs += u32::from(is_header);
        // The first one is of the header as it was.
        (is_header && syncs > 1).then_some(libc::EIO)
    };
    let (child, supervisor) =
        seccomp::spawn_supervised(&mut command, libc::SYS_fsync, answer).unwrap();
    tell.send(child.id()).unwrap();
    let output = child.wait_with_output().unwrap();
    supervisor.join();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("cannot sync"),
        "{stderr}"
    );

    let mut daemon = disk.attach(&AttachOptions::default());
    daemon.connect().queues[0].flush().unwrap();
    assert!(daemon.terminate().success());
}
