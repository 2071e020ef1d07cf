//! What is measured: this daemon and qemu-storage-daemon, each a process on one CPU.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::{PATIENCE, expect_success, kill, with_descendants};

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// This daemon.
    Sealdisk,
    /// This daemon, of an older program.
    #[value(name = "sealdisk-before")]
    Before,
    /// This daemon, a disk of eight layers: reads only.
    #[value(name = "sealdisk-8-layers")]
    Layers8,
    /// qemu-storage-daemon on a raw file, nothing encrypted.
    QsdRaw,
    /// qemu-storage-daemon with its own LUKS driver.
    QsdLuks,
    /// The back-end of [`crate::reference`], nothing encrypted.
    Reference,
    /// fio on the file of `qsd-raw`, without any daemon.
    Fio,
    /// This daemon's cipher, without any daemon.
    Cipher,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sealdisk => "sealdisk",
            Self::Before => "sealdisk-before",
            Self::Layers8 => "sealdisk-8-layers",
            Self::QsdRaw => "qsd-raw",
            Self::QsdLuks => "qsd-luks",
            Self::Reference => "reference",
            Self::Fio => "fio",
            Self::Cipher => "cipher",
        }
    }

    /// Whether a frontend can use it.
    pub fn is_served(self) -> bool {
        !matches!(self, Self::Fio | Self::Cipher)
    }
}

/// Where the backends' files go, and which program is measured.
pub struct Place<'a> {
    pub dir: &'a Path,
    /// A directory on tmpfs.
    pub runtime: &'a Path,
    pub sealdisk: &'a Path,
    /// The program of `sealdisk-before`.
    pub before: Option<&'a Path>,
    /// Bytes of each disk.
    pub size: u64,
}

/// A backend that runs, and the frontend that it serves.
pub struct Backend {
    pub frontend: Frontend,
    child: Child,
}

impl Backend {
    /// Makes a disk named `name` and serves it on `cpu`, with one queue.
    pub fn start(kind: Kind, place: &Place, name: &str, cpu: usize) -> Self {
        Self::start_with(kind, place, name, cpu, (1, feature::EVENT_IDX))
    }

    /// As [`Backend::start`] with so many queues, of which only this daemon takes more than one, and
    /// with these features besides the usual ones.
    pub fn start_with(
        kind: Kind,
        place: &Place,
        name: &str,
        cpu: usize,
        (queues, features): (u32, u64),
    ) -> Self {
        let socket = place.runtime.join(format!("{name}.sock"));
        let served = match kind {
            Kind::Sealdisk | Kind::Before | Kind::Layers8 => {
                sealdisk(kind, place, name, &socket, queues)
            }
            Kind::QsdRaw => qsd_raw(place, &socket),
            Kind::QsdLuks => qsd_luks(place, &socket),
            Kind::Reference => reference(place, &socket),
            Kind::Fio | Kind::Cipher => unreachable!("{kind:?} serves nothing"),
        };
        let mut command = on_cpu(&served, cpu);
        let log = place.runtime.join(format!("{name}.log"));
        command
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let mut child = command.spawn().expect("taskset starts");
        let setup = Setup {
            queues,
            indirect: true,
            ..Setup::default()
        };
        let setup = setup.with(features);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(frontend) = Frontend::try_open(&socket, &setup) {
                return Self { frontend, child };
            }
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > end {
                let _ = child.kill();
                let log = fs::read_to_string(&log).unwrap_or_default();
                panic!("{command:?} does not serve: {ended:?}\n{log}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The processes of it: the one that was started, and all that this has started.
    pub fn processes(&self) -> Vec<u32> {
        with_descendants(self.child.id())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid);
        }
        let _ = self.child.wait();
    }
}

/// The same command on one CPU: threads and child processes stay on the one that they start on.
pub fn on_cpu(command: &Command, cpu: usize) -> Command {
    let mut pinned = Command::new("taskset");
    pinned
        .args(["-c", &cpu.to_string()])
        .arg(command.get_program());
    pinned.args(command.get_args());
    for (key, value) in command.get_envs() {
        pinned.env(key, value.unwrap_or_default());
    }
    pinned
}

fn sealdisk(kind: Kind, place: &Place, name: &str, socket: &Path, queues: u32) -> Command {
    // Programs of two versions may have different files.
    let (program, state) = match kind {
        Kind::Before => (place.before.expect("--before is given"), "before"),
        _ => (place.sealdisk, "state"),
    };
    let command = || {
        let mut command = Command::new(program);
        command.env("SEALDISK_STATE_DIR", place.dir.join(state));
        command.env("SEALDISK_RUNTIME_DIR", place.runtime);
        command
    };
    let size = place.size.to_string();
    expect_success(command().args(["disk", "create", name, "--size", &size]));
    let mut attach = command();
    attach
        .args(["attach", name, "--num-queues", &queues.to_string()])
        .arg("--socket-path")
        .arg(socket);
    attach
}

/// The file of `qsd-raw` and of fio.
pub fn raw_file(place: &Place) -> PathBuf {
    place.dir.join("raw")
}

fn qsd_raw(place: &Place, socket: &Path) -> Command {
    let file = raw_file(place);
    File::create(&file).unwrap().set_len(place.size).unwrap();
    qsd(
        &file,
        &[
            "--blockdev",
            "driver=raw,node-name=disk,file=file,discard=unmap",
        ],
        socket,
    )
}

fn qsd_luks(place: &Place, socket: &Path) -> Command {
    // It protects what is measured and deleted again.
    let secret = "secret,id=passphrase,data=benchmark";
    let file = place.dir.join("luks");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "luks", "--object", secret]);
    // Time for the passphrase matters as little; a slow hash because qemu-img times a fixed number
    // of rounds of it, and refuses where that takes no measurable time.
    create.args(["-o", "key-secret=passphrase,iter-time=10,hash-alg=sha512"]);
    expect_success(create.arg(&file).arg(place.size.to_string()));
    let luks = "driver=luks,node-name=disk,file=file,key-secret=passphrase";
    qsd(&file, &["--object", secret, "--blockdev", luks], socket)
}

fn reference(place: &Place, socket: &Path) -> Command {
    let file = place.dir.join("reference");
    File::create(&file).unwrap().set_len(place.size).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.arg("reference").arg(file).arg(socket);
    command
}

/// `format` are the arguments that make the node `disk` of the node `file`.
fn qsd(file: &Path, format: &[&str], socket: &Path) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    let (file, socket) = (file.display(), socket.display());
    command.arg("--blockdev").arg(format!(
        "driver=file,node-name=file,filename={file},cache.direct=on,aio=io_uring,discard=unmap"
    ));
    command.args(format);
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,\
         addr.type=unix,addr.path={socket}"
    ));
    command
}
