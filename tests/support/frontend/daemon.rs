//! The daemon under test: `sealdisk attach` on a disk in a temporary state directory.
//!
//! With `SEALDISK_TEST_BACKEND=qsd` it is qemu-storage-daemon instead, to tell a fault of the
//! frontend from one of the daemon: the protocol tests that speak of virtio-blk alone pass there.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::device::{Frontend, Setup};
use super::message::{Connection, request};

/// How a disk is attached.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// Another disk of the same installation, a clone say, instead of the one that was made first.
    pub disk: Option<&'static str>,
    pub read_only: bool,
    /// Queues offered, else the daemon's default.
    pub queues: Option<u32>,
    pub serial: Option<String>,
    /// Further arguments of `sealdisk attach`.
    pub arguments: &'static [&'static str],
}

/// A disk of its own, with state and runtime directories of its own that go with it.
pub struct Disk {
    state: TempDir,
    runtime: TempDir,
    env: Vec<(&'static str, String)>,
    /// Bytes.
    pub size: u64,
}

/// Which program serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    Sealdisk,
    Qsd,
}

impl Backend {
    /// The one that the environment names.
    pub fn chosen() -> Self {
        match std::env::var("SEALDISK_TEST_BACKEND").as_deref() {
            Ok("qsd") => Self::Qsd,
            _ => Self::Sealdisk,
        }
    }
}

const DISK: &str = "disk";

impl Disk {
    /// A new disk of `size` bytes, as `sealdisk disk create` makes it by default.
    pub fn new(size: u64) -> Self {
        Self::with(size, &[])
    }

    /// A new disk with more arguments to `disk create`.
    pub fn with(size: u64, arguments: &[&str]) -> Self {
        let state = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let runtime = TempDir::new_in("/dev/shm").unwrap();
        let disk = Self {
            state,
            runtime,
            env: Vec::new(),
            size,
        };
        match Backend::chosen() {
            Backend::Sealdisk => {
                copy_dir(template(), disk.state.path());
                let size = size.to_string();
                let mut command = disk.command(&["disk", "create", DISK, "--size", &size]);
                expect_success(command.args(arguments));
            }
            Backend::Qsd => {
                fs::File::create(disk.raw()).unwrap().set_len(size).unwrap();
            }
        }
        disk
    }

    /// `sealdisk` with this disk's directories.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = sealdisk(self.state.path());
        command
            .env("SEALDISK_RUNTIME_DIR", self.runtime.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(arguments);
        command
    }

    /// Sets a variable in the environment of each command from now on.
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.env.push((name, value.to_owned()));
    }

    /// Where its vaults, keys and ciphertext are.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Where its control socket is.
    pub fn runtime_dir(&self) -> &Path {
        self.runtime.path()
    }

    fn raw(&self) -> PathBuf {
        self.state.path().join("raw")
    }

    fn socket(&self) -> PathBuf {
        self.runtime.path().join("socket")
    }

    /// Attaches it and waits until the socket accepts.
    pub fn attach(&self, options: &AttachOptions) -> Daemon {
        let mut command = match Backend::chosen() {
            Backend::Sealdisk => self.sealdisk_attach(options),
            Backend::Qsd => self.qsd(options),
        };
        let _ = fs::remove_file(self.socket());
        let log = self.runtime.path().join("stderr");
        command
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        let mut daemon = Daemon {
            child,
            socket: self.socket(),
            log,
        };
        daemon.wait_ready();
        daemon
    }

    fn sealdisk_attach(&self, options: &AttachOptions) -> Command {
        let mut command = self.command(&["attach", options.disk.unwrap_or(DISK), "--socket-path"]);
        command.arg(self.socket());
        if options.read_only {
            command.arg("--read-only");
        }
        if let Some(queues) = options.queues {
            command.args(["--num-queues", &queues.to_string()]);
        }
        if let Some(serial) = &options.serial {
            command.args(["--serial", serial]);
        }
        command.args(options.arguments);
        command
    }

    fn qsd(&self, options: &AttachOptions) -> Command {
        let mut command = Command::new("qemu-storage-daemon");
        let (raw, socket) = (self.raw(), self.socket());
        let writable = if options.read_only { "off" } else { "on" };
        command
            .arg("--blockdev")
            .arg(format!(
                "file,node-name=disk,discard=unmap,filename={}",
                raw.display()
            ))
            .arg("--export")
            .arg(format!(
                "vhost-user-blk,id=disk,node-name=disk,writable={writable},num-queues={},\
                 addr.type=unix,addr.path={}",
                options.queues.unwrap_or(4),
                socket.display()
            ));
        command
    }
}

/// `sealdisk` on a state directory.
fn sealdisk(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealdisk"));
    command
        .env("SEALDISK_STATE_DIR", state)
        .env_remove("RUST_LOG");
    command
}

/// A state directory in which the platform-managed key exists already, made once per build: an
/// RSA-3072 key takes its time. It is one of the few things that stay in target/tmp.
///
/// Test runners may start a process for each test, so it appears whole, by a rename; who comes
/// second takes what is there.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = fs::metadata(env!("CARGO_BIN_EXE_sealdisk")).unwrap();
        let built = program.modified().unwrap();
        let built = built.duration_since(std::time::UNIX_EPOCH).unwrap();
        let path = tmp.join(format!("template-{}", built.as_nanos()));
        if !path.exists() {
            let making = TempDir::new_in(tmp).unwrap();
            let state = making.path();
            expect_success(sealdisk(state).args(["disk", "create", "first", "--size", "1MiB"]));
            expect_success(sealdisk(state).args(["disk", "delete", "first", "--yes"]));
            if let Err(error) = fs::rename(state, &path) {
                assert!(path.exists(), "{}: {error}", path.display());
            }
        }
        path
    })
}

/// Runs a command that has to succeed.
pub fn expect_success(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            let mode = entry.metadata().unwrap().permissions();
            copy_dir(&entry.path(), &target);
            fs::set_permissions(&target, mode).unwrap();
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// A daemon that runs.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn wait_ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        while !self.answers() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the daemon ended early: {ended:?}\n{}",
                self.log()
            );
            assert!(
                Instant::now() < end,
                "the daemon's socket never accepts\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
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

    /// The process that serves the queues: the child of the one that was started, if it has one.
    pub fn data_plane(&self) -> u32 {
        children(self.pid()).first().copied().unwrap_or(self.pid())
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
        count(self.pid()) + children(self.pid()).into_iter().map(count).sum::<usize>()
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

    /// Kills all of its processes at once, as `kill -9` does, and waits for the first.
    pub fn kill(&mut self) {
        let children = children(self.pid());
        self.child.kill().unwrap();
        for child in children {
            kill(child);
        }
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
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
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// The same, and waits for its end.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal_end();
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let children = children(self.pid());
            let _ = self.child.kill();
            let _ = self.child.wait();
            // The disk is free for another attach when all of them are gone.
            let end = Instant::now() + PATIENCE;
            for child in children {
                kill(child);
                while alive(child) && Instant::now() < end {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        if thread::panicking() {
            eprintln!("the daemon's stderr:\n{}", self.log());
        }
    }
}

/// Sends SIGKILL to a process that may be gone already.
pub fn kill(pid: u32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// True while any thread of a process runs. The first thread can be a zombie while others still
/// hold the process's files.
pub fn alive(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let states = threads.filter_map(|thread| {
        let thread = thread.ok()?.file_name().into_string().ok()?;
        fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).ok()
    });
    states
        .filter_map(|stat| stat_fields(&stat))
        .any(|fields| fields[0] != "Z" && fields[0] != "X")
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = pid.to_string();
    pids.filter(|&child| stat(child).is_some_and(|fields| fields[1] == parent))
        .collect()
}

/// The fields of /proc/PID/stat after the command's name: state, parent, …
pub fn stat(pid: u32) -> Option<Vec<String>> {
    stat_fields(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn stat_fields(text: &str) -> Option<Vec<String>> {
    let rest = text.rsplit_once(") ")?.1;
    Some(rest.split(' ').map(str::to_owned).collect())
}
