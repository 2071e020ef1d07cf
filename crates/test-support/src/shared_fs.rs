//! A directory as several hosts of a cluster have it mounted.
//!
//! Each host has a file system of its own in user space (`shared_fs.py`), so that the kernel shares nothing between
//! them: what holds between two hosts here holds by what goes over the "network".

use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Backend, PATIENCE, scratch};

/// What serves a host.
const SERVER: &str = include_str!("shared_fs.py");

/// A directory that several hosts have mounted, until this is dropped.
pub struct SharedFs {
    dir: TempDir,
    servers: Vec<Child>,
}

impl SharedFs {
    /// `None`, with a word on stderr, where this cannot be mounted.
    pub fn mount(hosts: usize) -> Option<Self> {
        Self::mount_with(hosts, &[])
    }

    /// The same with options of `shared_fs.py`.
    pub fn mount_with(hosts: usize, options: &[&str]) -> Option<Self> {
        if Backend::chosen() == Backend::Qsd {
            return None;
        }
        let dir = TempDir::new_in(scratch()).unwrap();
        let mut private = DirBuilder::new();
        private
            .mode(0o700)
            .create(dir.path().join("backing"))
            .unwrap();
        fs::write(dir.path().join("server.py"), SERVER).unwrap();
        let mut this = Self {
            dir,
            servers: Vec::new(),
        };
        for host in 0..hosts {
            if !this.mount_one(host, options) {
                eprintln!("skipped: no file system in user space can be mounted here");
                return None;
            }
        }
        Some(this)
    }

    fn mount_one(&mut self, host: usize, options: &[&str]) -> bool {
        let point = self.path(host);
        fs::create_dir(&point).unwrap();
        let mut command = Command::new("python3");
        command
            .arg(self.dir.path().join("server.py"))
            .arg(self.backing())
            .arg(&point)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let Ok(mut server) = command.spawn() else {
            return false;
        };
        let said = server.stdout.take().unwrap();
        self.servers.push(server);
        let mut line = String::new();
        let heard = BufReader::new(said).read_line(&mut line);
        heard.is_ok() && line == "mounted\n"
    }

    /// Where a host has it mounted, of those that are counted from 0.
    pub fn path(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("host{host}"))
    }

    /// The storage evicts a host: it gives up its locks, and refuses all that the host asks for from then on.
    pub fn evict(&self, host: usize) {
        self.take_locks_by(host, Signal::USR1);
    }

    /// The storage gives up a host's locks, as after a time in which it has not answered, and refuses nothing.
    pub fn take_locks(&self, host: usize) {
        self.take_locks_by(host, Signal::USR2);
    }

    fn take_locks_by(&self, host: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.servers[host]), signal).unwrap();
        let mut done = self.path(host).into_os_string();
        done.push(".evicted");
        let (done, end) = (PathBuf::from(done), Instant::now() + PATIENCE);
        while !done.exists() {
            assert!(Instant::now() < end, "the host is not evicted");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What is there, whoever has it mounted.
    pub fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }
}

impl Drop for SharedFs {
    fn drop(&mut self) {
        for host in 0..self.servers.len() {
            // The last one may not be mounted.
            let _ = Command::new("umount")
                .args(["-q", "-l"])
                .arg(self.path(host))
                .status();
        }
        for server in &mut self.servers {
            // A daemon that was killed may keep it busy for a while, for which the next test need not wait.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
