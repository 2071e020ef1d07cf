//! Commands that are begun while another one pushes a layer onto an attached disk. The attach lets go of the layer
//! that was the top one then, for whose lock they may wait.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use test_support::frontend::device::Frontend;
use test_support::rng::Rng;
use test_support::{AttachOptions, Daemon, Disk, text};

use super::MIB;
use crate::supervise::is_qsd;

const LEN: usize = 64 << 10;
/// Moments at which the other command is begun, in ms: it looks at the disk a tenth of a second later, and so does the
/// first one, which asks the attach after two more.
const MOMENTS: u64 = 6;
const FIRST: u64 = 20;
const STEP: u64 = 35;

/// An attached disk, of which snapshots are made.
struct Snapshots {
    disk: Disk,
    daemon: Daemon,
    frontend: Frontend,
    /// What the disk held at each.
    contents: Vec<(String, Vec<u8>)>,
}

impl Snapshots {
    fn new() -> Self {
        let disk = Disk::new(4 * MIB);
        let daemon = disk.attach(&AttachOptions::default());
        let frontend = daemon.connect();
        Self {
            disk,
            daemon,
            frontend,
            contents: Vec::new(),
        }
    }

    /// Makes a snapshot, for which the disk needs another layer, and calls `beside` in the midst of that.
    fn make(&mut self, round: u64, beside: impl FnOnce(&Disk)) {
        let content = Rng::new(round).bytes(LEN);
        self.frontend.queues[0].write(0, &content).unwrap();
        let name = format!("s{round}");
        let command = format!("snapshot create {name} --source disk");
        let mut snapshot = self.disk.command(&command);
        let mut snapshot = snapshot.stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(FIRST + round % MOMENTS * STEP));
        beside(&self.disk);
        assert!(snapshot.wait().unwrap().success(), "{name}");
        let read = self.frontend.queues[0].read(0, LEN).unwrap();
        assert!(read == content, "the guest reads something else: {name}");
        self.contents.push((name, content));
    }

    /// The guest goes on writing, and what was frozen stays what it was.
    fn end(mut self) {
        let last = Rng::new(99).bytes(LEN);
        self.frontend.queues[0].write(0, &last).unwrap();
        self.frontend.queues[0].flush().unwrap();
        drop(self.frontend);
        self.daemon.stop();
        self.disk.is_clean("disk");
        assert!(self.disk.read("disk", 0, LEN) == last, "writes are lost");
        for (name, content) in &self.contents {
            let clone = format!("of-{name}");
            self.disk
                .ok(&format!("disk create {clone} --source {name}"));
            let read = self.disk.read(&clone, 0, LEN);
            assert!(read == *content, "{name} holds something else");
        }
    }
}

#[test]
fn no_command_takes_a_disk_over_that_gets_another_layer() {
    if is_qsd() {
        return;
    }
    let mut snapshots = Snapshots::new();
    let (copy, image) = (snapshots.disk.path("copy"), snapshots.disk.path("image"));
    let export = ["disk", "export", "disk", "--format", "raw", "--file"];
    let export = [&export[..], &[text(&image)]].concat();
    let commands: [&[&str]; 4] = [
        &["disk", "copy", "disk", "--to", text(&copy)],
        &export,
        &["disk", "unregister", "disk"],
        &["disk", "delete", "disk", "--yes"],
    ];
    // A disk has 32 layers at most.
    for round in 0..4 * MOMENTS {
        let command = commands[(round / MOMENTS) as usize];
        snapshots.make(round, |disk| {
            disk.refused_with("OperationNotAllowed", command);
        });
    }
    assert!(!copy.exists() && !image.exists());
    snapshots.end();
}

#[test]
fn two_changes_of_layers_at_once_are_both_made_by_the_attach() {
    if is_qsd() {
        return;
    }
    let mut snapshots = Snapshots::new();
    for round in 0..2 * MOMENTS {
        snapshots.make(round, |disk| {
            disk.ok(&format!("snapshot create t{round} --source disk"));
        });
        let (_, content) = snapshots.contents.last().unwrap();
        let same = (format!("t{round}"), content.clone());
        snapshots.contents.push(same);
    }
    snapshots.end();
}
