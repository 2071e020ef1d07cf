//! A running `keyvault serve`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Host;

/// A server of an installation's vaults, which ends with the value.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate of its authority.
    pub ca_file: PathBuf,
    /// What it printed when it was ready.
    pub ready: Value,
    process: Child,
}

impl Host {
    /// Serves the vaults at a port of 127.0.0.1 that is free, with further options.
    pub fn serve(&self, options: &str) -> Server {
        self.serve_at(SocketAddr::from(([127, 0, 0, 1], 0)), options)
    }

    /// The same at an address.
    pub fn serve_at(&self, address: SocketAddr, options: &str) -> Server {
        Server::start(self.command(&format!(
            "keyvault serve --listen {address} {options} -o json"
        )))
    }
}

impl Server {
    /// Starts a command that serves, and waits until it is ready.
    pub fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("the server is not ready: {e} in '{line}'"));
        Self {
            address: ready["listen"].as_str().unwrap().parse().unwrap(),
            ca_file: PathBuf::from(ready["caFile"].as_str().unwrap_or_default()),
            ready,
            process,
        }
    }

    /// The name and port of a vault.
    pub fn host_of(&self, vault: &str) -> String {
        format!("{vault}.vault.localhost:{}", self.address.port())
    }

    /// What tokens for its vaults are for.
    pub fn resource(&self) -> String {
        format!("https://vault.localhost:{}", self.address.port())
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
