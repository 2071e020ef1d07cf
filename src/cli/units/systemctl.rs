//! systemctl(1): what has units enabled, started and stopped.

use std::io;
use std::process::Command;

use super::files::Root;
use crate::cli::CliError;

/// systemctl, for the units of a tree.
pub(super) struct Systemctl {
    root: Option<Root>,
}

impl Systemctl {
    /// For this host, or for a tree that is not running.
    pub(super) fn new(root: Option<Root>) -> Self {
        Self { root }
    }

    /// Whether systemd runs here and has the units that are meant.
    pub(super) fn is_running(&self) -> bool {
        self.root.is_none() && sd_notify::booted().unwrap_or(false)
    }

    /// Has systemd read its units again, if it runs.
    ///
    /// # Errors
    /// What it says.
    pub(super) fn reload(&self) -> Result<(), CliError> {
        match self.is_running() {
            true => self.run(&["daemon-reload"], &[]),
            false => Ok(()),
        }
    }

    /// Runs a command for units.
    ///
    /// # Errors
    /// What it says, in one line.
    pub(super) fn run(&self, command: &[&str], units: &[&str]) -> Result<(), CliError> {
        let output = self.command(command, units).output().map_err(cannot_run)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<_> = said
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let what = [command, units].concat().join(" ");
        Err(CliError::new(
            "Systemctl",
            format!("systemctl {what} failed: {}", said.join("; ")),
        ))
    }

    /// Whether a unit is active.
    pub(super) fn is_active(&self, unit: &str) -> bool {
        let asked = self.is_running().then(|| {
            let mut command = self.command(&["is-active", "--quiet"], &[unit]);
            command.status().is_ok_and(|status| status.success())
        });
        asked.unwrap_or(false)
    }

    fn command(&self, command: &[&str], units: &[&str]) -> Command {
        let mut systemctl = Command::new("systemctl");
        if let Some(root) = &self.root {
            systemctl.arg("--root").arg(root.path());
        }
        systemctl.args(["--quiet", "--no-ask-password"]);
        systemctl.args(command).arg("--").args(units);
        systemctl
    }
}

fn cannot_run(error: io::Error) -> CliError {
    CliError::new(
        "Systemctl",
        format!(
            "systemctl cannot be run ({error}): this host has no systemd; start `sealdisk attach` by what it has"
        ),
    )
}
