//! A running attach.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::frontend::device::{Frontend, Setup};
use crate::frontend::message::{Connection, request};
use crate::processes::{await_end, data_plane_of, signal, stop_or_gone, with_descendants};
use crate::{Host, PATIENCE, alive, kill, text};

/// How a disk is attached.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// Another disk of the same installation, a clone say, instead of the one that was made first.
    pub disk: Option<&'static str>,
    /// The guest may not write.
    pub read_only: bool,
    /// Queues offered, else the daemon's default.
    pub queues: Option<u32>,
    /// The serial that the guest sees, else the daemon's default.
    pub serial: Option<String>,
    /// Further arguments of `sealdisk attach`.
    pub arguments: &'static [&'static str],
}

/// `sealdisk attach` with its data plane. It is ended when the test lets go of it.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    own: Option<Own>,
}

/// What a daemon has for itself.
struct Own {
    disk: String,
    dir: TempDir,
}

impl Host {
    /// Attaches a disk and waits until its supervisor is told that it is ready. Its socket and its log are in a
    /// directory of the daemon's own.
    pub fn attach(&self, disk: &str) -> Daemon {
        self.attach_with(disk, &[])
    }

    /// The same with further options.
    pub fn attach_with(&self, disk: &str, options: &[&str]) -> Daemon {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        attach_notifying(self, disk, dir, options)
    }

    /// Attaches again, at the same socket path, a disk whose daemon was killed.
    pub fn reattach(&self, killed: Daemon) -> Daemon {
        self.reattach_with(killed, &[])
    }

    /// The same with further options.
    pub fn reattach_with(&self, killed: Daemon, options: &[&str]) -> Daemon {
        let (disk, dir) = killed.into_disk_and_dir();
        attach_notifying(self, &disk, dir, options)
    }
}

fn attach_notifying(host: &Host, disk: &str, dir: TempDir, options: &[&str]) -> Daemon {
    let path = |name: &str| dir.path().join(name);
    let (socket, log, notify) = (path("disk.sock"), path("log"), path("notify"));
    let _ = fs::remove_file(&notify);
    let notified = UnixDatagram::bind(&notify).unwrap();
    let often = Some(Duration::from_millis(100));
    notified.set_read_timeout(often).unwrap();
    let mut open = fs::OpenOptions::new();
    let output = open.create(true).append(true).open(&log).unwrap();
    let mut command = host.command(&["attach", disk, "--socket-path", text(&socket), "-vv"]);
    let child = command
        .args(options)
        .env("NOTIFY_SOCKET", &notify)
        .current_dir(dir.path())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let own = Own {
        disk: disk.to_owned(),
        dir,
    };
    let mut daemon = Daemon {
        child,
        socket,
        log,
        own: Some(own),
    };
    daemon.wait_until(|_| {
        let mut message = [0; 4096];
        let told = notified.recv(&mut message);
        told.is_ok_and(|len| String::from_utf8_lossy(&message[..len]).contains("READY=1"))
    });
    daemon
}

impl Daemon {
    /// Starts what serves a socket, with its stderr in `log`, and waits until it answers there.
    pub fn start(mut command: Command, socket: PathBuf, log: PathBuf) -> Self {
        let stderr = fs::File::create(&log).unwrap();
        let child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        let mut daemon = Self {
            child,
            socket,
            log,
            own: None,
        };
        daemon.wait_until(|daemon| {
            let answers = daemon.answers();
            if !answers {
                thread::sleep(Duration::from_millis(5));
            }
            answers
        });
        daemon
    }

    fn wait_until(&mut self, mut ready: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !ready(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "the daemon did not become ready: {ended:?}\n{}",
                self.log()
            );
        }
    }

    /// Whether it takes a connection and answers on it: the socket may be there a moment earlier
    /// than the process that serves it, and then the connection waits.
    fn answers(&self) -> bool {
        let features = Connection::open(&self.socket)
            .and_then(|conn| conn.call(request::GET_FEATURES, &[], &[]));
        features.is_ok()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves the queues; the one that was started, if that does it itself.
    pub fn data_plane(&self) -> u32 {
        data_plane_of(self.pid()).unwrap_or(self.pid())
    }

    /// A frontend with the usual features.
    pub fn connect(&self) -> Frontend {
        self.connect_with(&Setup::default())
    }

    /// A frontend that is set up as told.
    pub fn connect_with(&self, setup: &Setup) -> Frontend {
        match Frontend::try_open(&self.socket, setup) {
            Ok(frontend) => frontend,
            Err(error) => panic!("the daemon doesn't serve: {error}\n{}", self.log()),
        }
    }

    /// Closes one frontend, whatever state it is in, and opens another.
    pub fn connect_after(&self, before: Frontend) -> Frontend {
        drop(before);
        self.connect()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let _ = fs::File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text));
        text
    }

    /// Open file descriptors of its processes.
    pub fn open_fds(&self) -> usize {
        let count = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.processes().into_iter().map(count).sum()
    }

    /// Waits until it has no more file descriptors open than `limit`.
    ///
    /// # Panics
    /// When it keeps more: a leak.
    pub fn assert_fds_within(&self, limit: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.open_fds() > limit {
            let open = self.open_fds();
            assert!(
                Instant::now() < end,
                "{open} file descriptors open, {limit} before: a leak"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The directory of its own, in which it runs: a core dump would be left there.
    ///
    /// # Panics
    /// When it has none: [`Host::attach`] makes one.
    pub fn dir(&self) -> &Path {
        let own = self.own.as_ref();
        own.expect("the daemon has a directory of its own")
            .dir
            .path()
    }

    fn into_disk_and_dir(mut self) -> (String, TempDir) {
        let own = self.own.take();
        let own = own.expect("the daemon has a directory of its own");
        (own.disk, own.dir)
    }

    /// Its process and all descendants, itself first.
    pub fn processes(&self) -> Vec<u32> {
        with_descendants(self.pid())
    }

    /// Signals processes of this daemon.
    pub fn signal_all(&self, processes: &[u32], what: Signal) {
        for process in processes {
            signal(*process, what);
        }
    }

    /// Kills all of its processes at once, as `kill -9` does, and waits until none of them has a file open.
    pub fn kill(&mut self) {
        // They are stopped first, from the top: one that runs on could tidy up after another, or start a new data
        // plane that nobody knows to kill.
        let mut stopped: Vec<u32> = Vec::new();
        while let Some(next) = self.processes().into_iter().find(|p| !stopped.contains(p)) {
            stop_or_gone(next);
            stopped.push(next);
        }
        self.signal_all(&stopped, Signal::KILL);
        self.child.wait().unwrap();
        for process in stopped {
            await_end(process);
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "the daemon doesn't end\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells it to end as a supervisor does, by SIGTERM.
    pub fn signal_end(&self) {
        signal(self.pid(), Signal::TERM);
    }

    /// The same, and waits for its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal_end();
        self.wait()
    }

    /// The same; the end must be clean and the socket gone.
    pub fn stop(mut self) {
        let status = self.terminate();
        assert!(
            status.success(),
            "after SIGTERM, attach ended with {status}\n{}",
            self.log()
        );
        assert!(!self.socket.exists(), "the socket was left behind");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let processes = self.processes();
            let _ = self.child.kill();
            let _ = self.child.wait();
            // The disk is free for another attach when all of them are gone.
            let end = Instant::now() + PATIENCE;
            for &process in &processes[1..] {
                kill(process);
                while alive(process) && Instant::now() < end {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}
