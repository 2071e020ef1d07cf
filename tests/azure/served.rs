//! A running `keyvault serve` on an installation of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const SEALDISK: &str = env!("CARGO_BIN_EXE_sealdisk");

/// An installation.
pub struct Host {
    dir: TempDir,
}

/// Somebody who asks a vault.
pub struct User {
    pub object_id: String,
    pub client_id: String,
    pub secret: String,
}

impl Host {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// With the vault `myvault`, in which `alice` may do everything.
    pub fn with_vault() -> (Self, User) {
        let host = Self::new();
        host.ok("keyvault create myvault");
        let alice = host.user("alice");
        host.grant("myvault", &alice, "all");
        (host, alice)
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(SEALDISK);
        command.args(line.split_whitespace());
        self.environment(&mut command);
        command
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("SEALDISK_STATE_DIR", self.state())
            .env_remove("CREDENTIALS_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// The JSON that a command prints that is to succeed.
    pub fn ok(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} -o json"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    pub fn user(&self, name: &str) -> User {
        let identity = self.ok(&format!("identity create {name}"));
        let text = |field: &str| identity[field].as_str().unwrap().to_owned();
        User {
            object_id: text("principalId"),
            client_id: text("clientId"),
            secret: text("secret"),
        }
    }

    pub fn grant(&self, vault: &str, user: &User, permissions: &str) {
        let id = &user.object_id;
        self.ok(&format!(
            "keyvault set-policy {vault} --object-id {id} --key-permissions {permissions}"
        ));
    }

    pub fn serve(&self, options: &str) -> Served {
        let line = format!("keyvault serve --listen 127.0.0.1:0 {options} -o json");
        self.start(self.command(&line))
    }

    /// A server that can write no file beyond so many blocks of 512 bytes, as on a full disk.
    pub fn serve_with_full_disk(&self, blocks: u64) -> Served {
        let mut command = Command::new("sh");
        let line = format!(
            "trap '' XFSZ; ulimit -f {blocks}; \
             exec {SEALDISK} keyvault serve --listen 127.0.0.1:0 -o json"
        );
        command.args(["-c", &line]);
        self.environment(&mut command);
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Served {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("the server is not ready: {e} in '{line}'"));
        let listen = ready["listen"].as_str().unwrap();
        Served {
            port: listen.rsplit_once(':').unwrap().1.parse().unwrap(),
            ca_file: PathBuf::from(ready["caFile"].as_str().unwrap_or_default()),
            ready,
            process,
        }
    }
}

/// A server, which ends with the value.
pub struct Served {
    pub port: u16,
    pub ca_file: PathBuf,
    /// What it printed when it was ready.
    pub ready: Value,
    process: Child,
}

impl Served {
    pub fn host_of(&self, vault: &str) -> String {
        format!("{vault}.vault.localhost:{}", self.port)
    }

    pub fn resource(&self) -> String {
        format!("https://vault.localhost:{}", self.port)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    pub fn wait(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
