//! A PostgreSQL server of a test's own.
//!
//! Its data and its socket are in a directory of its own, which goes with the test's process, whatever ends that. It runs
//! as `nobody` where the tests run as root, as PostgreSQL does not.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// `nobody`, on Debian and elsewhere.
const NOBODY: u32 = 65534;

/// A server.
pub struct PostgresServer {
    dir: PathBuf,
    programs: PathBuf,
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
    /// Ends the server and removes the directory when its standard input ends, as it does with this process.
    _janitor: Child,
}

impl PostgresServer {
    /// The server that the tests of a process share, in whose schemas each has tables of its own; `None` where no
    /// PostgreSQL is installed.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<PostgresServer>> = OnceLock::new();
        // A vault has three connections, a test several vaults, and tests run side by side.
        let settings = ["fsync=off", "max_connections=400"];
        SHARED.get_or_init(|| Self::start(&settings)).as_ref()
    }

    /// Starts a server with settings besides; `None` where no PostgreSQL is installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(settings: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Some(programs) = programs() else {
            eprintln!("skipped on PostgreSQL, which is not installed: scripts/setup test");
            return None;
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sealdisk-postgres-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        if is_root() {
            chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let server = Self {
            _janitor: janitor(&dir),
            dir,
            programs,
            settings: settings.iter().map(|setting| (*setting).into()).collect(),
            process: Mutex::new(None),
        };
        // Texts are ordered as people do unless a statement or a column says otherwise, as in many installations.
        let made = server
            .command("initdb")
            .args([
                "-D",
                "data",
                "-U",
                "sealdisk",
                "-E",
                "UTF8",
                "--auth-local=trust",
            ])
            .args(["--auth-host=scram-sha-256", "--no-sync", "--locale=C.UTF-8"])
            .args(["--locale-provider=icu", "--icu-locale=en-US"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {said}");
        server.run();
        Some(server)
    }

    /// Starts it again after [`PostgresServer::kill`] or [`PostgresServer::stop`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(&self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"));
        let log = log.unwrap();
        let mut command = self.command("postgres");
        command.args(["-D", "data", "-k"]).arg(&self.dir);
        let own = [
            "listen_addresses=",
            "unix_socket_permissions=0777",
            "shared_buffers=16MB",
        ];
        for setting in own
            .into_iter()
            .chain(self.settings.iter().map(String::as_str))
        {
            command.args(["-c", setting]);
        }
        let started = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn();
        let mut process = started.unwrap();
        let end = Instant::now() + PATIENCE;
        // The last line of the file says so.
        while !self.pid_file().trim_end().ends_with("\nready") {
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let ended = process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < end,
                "postgres: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        *self.process.lock().unwrap() = Some(process);
    }

    /// Ends it with all its processes by SIGKILL.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap().take().unwrap();
        // It starts none meanwhile.
        signal(process.id(), libc::SIGSTOP);
        let children = children_of(process.id());
        for pid in children.iter().copied().chain([process.id()]) {
            signal(pid, libc::SIGKILL);
        }
        process.wait().unwrap();
        // The next server refuses to share their memory.
        let end = Instant::now() + PATIENCE;
        while children.iter().any(|child| is_alive(*child)) {
            assert!(Instant::now() < end, "processes of PostgreSQL do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = fs::remove_file(self.dir.join("data/postmaster.pid"));
    }

    /// Ends it as an operator does who does not wait for clients.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop(&self) {
        let mut process = self.process.lock().unwrap().take().unwrap();
        signal(process.id(), libc::SIGINT);
        process.wait().unwrap();
    }

    /// The URL of an empty schema of its own.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new_schema(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE SCHEMA {name}"));
        format!("{}&options=-csearch_path%3D{name}", self.url())
    }

    /// The URL of its database, by its socket.
    pub fn url(&self) -> String {
        let (dir, port) = (self.dir.display(), self.port());
        format!("postgres://sealdisk@/postgres?host={dir}&port={port}")
    }

    /// Writes a file that it alone can read into its directory; the file's path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        path
    }

    /// Its directory, which its user can read.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn port(&self) -> &str {
        let mut settings = self.settings.iter();
        let port = settings.find_map(|setting| setting.strip_prefix("port="));
        port.unwrap_or("5432")
    }

    /// What statements say by `psql`.
    ///
    /// # Panics
    /// When one fails.
    pub fn sql(&self, statements: &str) -> String {
        let mut psql = self
            .command("psql")
            .args([
                "-U",
                "sealdisk",
                "-d",
                "postgres",
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-p",
                self.port(),
                "-h",
            ])
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin
            .take()
            .unwrap()
            .write_all(statements.as_bytes())
            .unwrap();
        let output = psql.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "psql: {said}: {statements}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    }

    fn pid_file(&self) -> String {
        fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.dir).env("LC_ALL", "C.UTF-8");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

/// The programs of the newest PostgreSQL that Debian has installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let numbered = versions.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path().join("bin")))
    });
    let with_server = numbered.filter(|(_, programs)| programs.join("postgres").exists());
    with_server.max().map(|(_, programs)| programs)
}

fn janitor(dir: &Path) -> Child {
    let work = r#"
        read -r _
        pid=$(head -n 1 "$0/data/postmaster.pid") && kill -QUIT "$pid"
        while kill -0 "$pid"; do sleep 0.05; done
        rm -rf "$0"
    "#;
    let started = Command::new("sh")
        .args(["-c", work])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    started.unwrap()
}

fn is_root() -> bool {
    // SAFETY: it only tells a number.
    unsafe { libc::geteuid() == 0 }
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: the process is a child that was not waited for, or a child of that.
    unsafe { libc::kill(pid as i32, signal) };
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| stat(*pid).is_some_and(|(_, of)| of == parent.to_string());
    pids.filter(is_child).collect()
}

/// One that nobody waits for stays as a zombie.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// The state of a process, and its parent.
fn stat(pid: u32) -> Option<(String, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // They are behind the name of the program.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}
