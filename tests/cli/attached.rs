//! An attached disk, by the real command.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use test_support::{Host, text};

/// A runtime directory, which has to be on tmpfs.
pub fn runtime_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// An attached disk; its daemon is ended when this is dropped.
pub struct Attached(pub Child);

impl Attached {
    pub fn start(host: &Host, runtime: &TempDir, disk: &str) -> Self {
        Self::start_with(host, runtime, disk, &[])
    }

    pub fn start_with(host: &Host, runtime: &TempDir, disk: &str, more: &[&str]) -> Self {
        let socket = host.path("socket");
        Self::start_at(host, runtime.path(), disk, &socket, more)
    }

    pub fn start_at(
        host: &Host,
        runtime: &Path,
        disk: &str,
        socket: &Path,
        options: &[&str],
    ) -> Self {
        let attach = ["attach", disk, "--socket-path", text(socket)];
        let runtime = ["--runtime-dir", text(runtime)];
        let command = host.command(&[&attach[..], &runtime, options].concat());
        Self::spawn_at(socket, command)
    }

    pub fn spawn(host: &Host, command: Command) -> Self {
        Self::spawn_at(&host.path("socket"), command)
    }

    pub fn spawn_at(socket: &Path, command: Command) -> Self {
        Self::with_stderr(Stdio::piped(), socket, command)
    }

    /// One whose log is to be read.
    pub fn logging_to(log: &Path, socket: &Path, command: Command) -> Self {
        Self::with_stderr(fs::File::create(log).unwrap().into(), socket, command)
    }

    fn with_stderr(stderr: Stdio, socket: &Path, mut command: Command) -> Self {
        // One that was killed leaves it.
        let _ = fs::remove_file(socket);
        let child = command.stderr(stderr).spawn().unwrap();
        let mut attached = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(attached.0.try_wait().unwrap().is_none(), "attach ended");
            assert!(Instant::now() < deadline, "attach does not become ready");
            thread::sleep(Duration::from_millis(5));
        }
        attached
    }

    pub fn detach(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }

    /// Kills the process that was started; the data plane flushes and ends by itself then.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
