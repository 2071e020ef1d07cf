//! A Ceph cluster of a test's own: a monitor, a manager and an OSD on this host, on the loopback device alone.
//!
//! It takes some 20 s to start and 500 MB of memory, so the tests of a process share it, each with images and objects
//! of its own, or a namespace. It goes with the test's process, whatever ends that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// What a cluster is made of. All of it is in Debian's packages ceph-mon, ceph-mgr, ceph-osd and ceph-common.
const PROGRAMS: [&str; 7] = [
    "ceph",
    "ceph-authtool",
    "ceph-mgr",
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "rbd",
];

/// A cluster, with the pool `rbd`.
pub struct CephCluster {
    directory: PathBuf,
    /// Ends the cluster and removes the directory when its standard input ends, as it does with this process.
    _janitor: Option<Child>,
}

impl CephCluster {
    /// The cluster that the tests of a process share; `None` where Ceph is not installed. `SEALDISK_TEST_CEPH` may name
    /// the directory of one that is there already, as `ceph.sh` beside this file has made it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<CephCluster>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        if let Some(directory) = std::env::var_os("SEALDISK_TEST_CEPH") {
            return Some(Self {
                directory: directory.into(),
                _janitor: None,
            });
        }
        if let Some(missing) = PROGRAMS.iter().find(|program| !is_there(program)) {
            eprintln!("skipped on Ceph, which is not installed: there is no {missing}");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("sealdisk-ceph-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let this = Self {
            _janitor: Some(janitor(&directory)),
            directory,
        };
        let started = Command::new("bash")
            .args(["-c", include_str!("ceph.sh"), "ceph.sh"])
            .arg(&this.directory)
            .arg(free_port().to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&started.stderr);
        assert!(started.status.success(), "no Ceph cluster: {said}");
        Some(this)
    }

    /// Its configuration, as `--ceph-conf` takes it. The keyring that it names has `client.admin`.
    pub fn conf(&self) -> PathBuf {
        self.directory.join("ceph.conf")
    }

    /// A file in its directory, for keyrings of other users.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs `ceph` or `rbd`, which has to succeed; what it said.
    ///
    /// # Panics
    /// When it does not.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("CEPH_CONF", self.conf())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (said, error) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        said
    }

    /// The process of its OSD.
    ///
    /// # Panics
    /// When there is none.
    pub fn osd(&self) -> u32 {
        let pid = fs::read_to_string(self.directory.join("osd.pid")).unwrap();
        pid.trim().parse().unwrap()
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Two ports that nobody listens to, one after the other: the first of them.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The next one is as good as free, too: both are from the range for clients.
    port.min(u16::MAX - 1)
}

fn janitor(directory: &Path) -> Child {
    let work = r#"
        read -r _
        for signal in TERM KILL; do
            kill -$signal $(cat "$0/pids")
            for try in 1 2 3 4 5 6 7 8 9 10; do
                kill -0 $(cat "$0/pids") || break 2
                sleep 0.2
            done
        done
        rm -rf "$0"
    "#;
    let started = std::os::unix::process::CommandExt::process_group(
        Command::new("sh")
            .args(["-c", work])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
        0,
    )
    .spawn();
    started.unwrap()
}
