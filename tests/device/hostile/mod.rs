//! A hostile guest and a hostile VMM: nothing that they write makes the daemon end, hang, leak, or
//! stop serving those who behave.

#[cfg(target_arch = "x86_64")]
mod captured;
mod chains;
mod confinement;
mod fuzz;
mod inflight;
mod messages;
mod requests;
mod rings;
mod setup;

use test_support::frontend::device::{Frontend, Setup};
use test_support::rng::Rng;
use test_support::{AttachOptions, Daemon, Disk};

use super::MIB;

/// A disk with content that nobody may change, the daemon that serves it, and what it had open.
struct Victim {
    daemon: Daemon,
    // Goes after its daemon.
    disk: Disk,
    pid: u32,
    data_plane: u32,
    fds: usize,
    content: Vec<u8>,
}

/// Sectors from 0 on that hold content to be kept; the tests write above.
const KEPT: u64 = 1024;

impl Victim {
    fn new() -> Self {
        Self::of(Disk::new(16 * MIB), &AttachOptions::default())
    }

    fn of(disk: Disk, options: &AttachOptions) -> Self {
        let daemon = disk.attach(options);
        let content = Rng::new(99).bytes(KEPT as usize * 512);
        // More queues than the tests use: what a queue keeps open after its first use is no leak.
        let mut frontend = daemon.connect_with(&Setup {
            queues: 4,
            ..Default::default()
        });
        frontend.queues[0].write(0, &content).unwrap();
        drop(frontend);
        // Without connection.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let (pid, data_plane) = (daemon.pid(), daemon.data_plane());
        let fds = daemon.open_fds();
        Self {
            daemon,
            disk,
            pid,
            data_plane,
            fds,
            content,
        }
    }

    /// A frontend to be hostile with.
    fn connect(&self) -> Frontend {
        self.daemon.connect()
    }

    fn connect_with(&self, setup: &Setup) -> Frontend {
        self.daemon.connect_with(setup)
    }

    /// As `assert_unharmed`, once this frontend is gone.
    fn assert_unharmed_after(&self, hostile: Frontend, after: &str) {
        drop(hostile);
        self.assert_unharmed(after);
    }

    /// The same processes serve a well-behaved frontend, with what was on the disk before, and
    /// have kept no file descriptor of the hostile one, which is gone.
    fn assert_unharmed(&self, after: &str) {
        self.assert_serving(after);
        let kept = self.daemon.connect().queues[0].read(0, self.content.len());
        assert!(
            kept.as_ref() == Ok(&self.content),
            "the disk's content has changed after: {after}"
        );
    }

    /// As `assert_unharmed`, when the hostile frontend may have written anywhere on its disk.
    fn assert_serving(&self, after: &str) {
        eprintln!("survived? {after}");
        let mut frontend = self.daemon.connect();
        for (queue, seed) in frontend.queues.iter_mut().zip(1..) {
            queue.assert_serves(KEPT + 64, seed);
        }
        drop(frontend);
        assert_eq!(
            self.daemon.data_plane(),
            self.data_plane,
            "another process serves: {after}"
        );
        assert_eq!(self.daemon.pid(), self.pid);
        self.daemon.assert_fds_within(self.fds);
    }
}
