//! A disk of its own, to attach.
//!
//! With `SEALDISK_TEST_BACKEND=qsd` it is qemu-storage-daemon that serves, to tell a fault of the
//! frontend from one of the daemon: the protocol tests that speak of virtio-blk alone pass there.

use std::fs::{self, DirBuilder};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{AttachOptions, Daemon, Host, expect_success, program, scratch};

/// A host with one disk of the name `disk`. What a [`Host`] can do it can too.
pub struct Disk {
    host: Host,
    /// Bytes.
    pub size: u64,
}

impl Deref for Disk {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Which program serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// The one under test.
    Sealdisk,
    /// qemu-storage-daemon.
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
        let host = Host::that_attaches();
        let disk = Self { host, size };
        DirBuilder::new().mode(0o700).create(disk.state()).unwrap();
        match Backend::chosen() {
            Backend::Sealdisk => {
                copy_dir(template(), &disk.state());
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

    /// As [`Host::set_env`].
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.host.set_env(name, value);
    }

    /// As [`Host::give_to`].
    pub fn give_to(&mut self, user: u32) {
        self.host.give_to(user);
    }

    fn raw(&self) -> PathBuf {
        self.state().join("raw")
    }

    fn socket(&self) -> PathBuf {
        self.runtime().join("socket")
    }

    /// Attaches it and waits until the socket accepts.
    pub fn attach(&self, options: &AttachOptions) -> Daemon {
        let command = match Backend::chosen() {
            Backend::Sealdisk => self.sealdisk_attach(options),
            Backend::Qsd => self.qsd(options),
        };
        let _ = fs::remove_file(self.socket());
        let log = self.runtime().join("stderr");
        Daemon::start(command, self.socket(), log)
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

/// A state directory in which the platform-managed key exists already, made once per build: an
/// RSA-3072 key takes its time. It is one of the few things that stay in target/tmp.
///
/// Test runners may start a process for each test, so it appears whole, by a rename; who comes
/// second takes what is there.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let tmp = scratch();
        let built = fs::metadata(program()).unwrap().modified().unwrap();
        let built = built.duration_since(std::time::UNIX_EPOCH).unwrap();
        let path = tmp.join(format!("template-{}", built.as_nanos()));
        if !path.exists() {
            let making = TempDir::new_in(tmp).unwrap();
            let sealdisk = |arguments: &[&str]| {
                let mut command = Command::new(program());
                command.env("SEALDISK_STATE_DIR", making.path());
                expect_success(command.env_remove("RUST_LOG").args(arguments));
            };
            sealdisk(&["disk", "create", "first", "--size", "1MiB"]);
            sealdisk(&["disk", "delete", "first", "--yes"]);
            if let Err(error) = fs::rename(making.path(), &path) {
                assert!(path.exists(), "{}: {error}", path.display());
            }
        }
        path
    })
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
