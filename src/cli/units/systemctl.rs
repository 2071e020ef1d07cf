//! systemctl(1): what has units enabled, started and stopped.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::files::Root;
use crate::cli::CliError;

/// systemctl, for the units of a tree.
pub(super) struct Systemctl {
    program: PathBuf,
    root: Option<Root>,
    runs: bool,
}

impl Systemctl {
    /// For this host, or for a tree that is not running.
    pub(super) fn new(root: Option<Root>) -> Self {
        Self {
            program: "systemctl".into(),
            runs: root.is_none() && sd_notify::booted().unwrap_or(false),
            root,
        }
    }

    /// Another program, as if systemd ran.
    #[cfg(test)]
    pub(super) fn of_program(program: &std::path::Path) -> Self {
        Self {
            program: program.into(),
            root: None,
            runs: true,
        }
    }

    /// Whether systemd runs here and has the units that are meant.
    pub(super) fn is_running(&self) -> bool {
        self.runs
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
        self.state(unit) == "active"
    }

    /// Whether a unit is active, or on the way to it again and again.
    pub(super) fn is_at_work(&self, unit: &str) -> bool {
        ["active", "reloading", "activating"].contains(&self.state(unit).as_str())
    }

    /// The state of a unit; nothing where systemd does not run.
    fn state(&self, unit: &str) -> String {
        if !self.is_running() {
            return String::new();
        }
        // It has an exit status of its own for what is not active.
        let said = Command::new(&self.program)
            .args(["is-active", "--", unit])
            .output();
        let said = said.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// Whether a unit is enabled.
    pub(super) fn is_enabled(&self, unit: &str) -> bool {
        let mut command = self.command(&["is-enabled"], &[unit]);
        let output = command.output();
        output.is_ok_and(|output| output.status.success())
    }

    fn command(&self, command: &[&str], units: &[&str]) -> Command {
        let mut systemctl = Command::new(&self.program);
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
