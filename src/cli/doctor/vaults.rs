//! What an installation knows: its vaults, and where its disks are.

use std::path::PathBuf;

use time::OffsetDateTime;

use super::check::Check;
use crate::cli::CliError;
use crate::cli::output::key_cell;
use installation::{Installation, Place};

const CATALOG: &str = "catalog";
const VAULT: &str = "vault";
const LOG: &str = "audit log";
const SET: &str = "disk encryption set";

/// An installation, as far as it can be opened. One that is not there is not made.
pub(super) struct Known {
    /// Where its catalog is, if it is on a server.
    server: Option<String>,
    installation: Result<Option<Installation>, CliError>,
    directories: Vec<PathBuf>,
    latest: Option<OffsetDateTime>,
}

impl Known {
    pub(super) fn of(place: &Place) -> Self {
        let opened = Installation::open_if_there(place);
        let mut known = Self {
            server: place.catalog.server().map(ToString::to_string),
            installation: opened.map_err(CliError::from),
            directories: Vec::new(),
            latest: None,
        };
        if let Err(error) = known.read() {
            known.installation = Err(error);
        }
        known
    }

    fn read(&mut self) -> Result<(), CliError> {
        let Ok(Some(installation)) = &self.installation else {
            return Ok(());
        };
        let catalog = installation.catalog();
        let mut times = Vec::new();
        for row in catalog.resources()? {
            times.push(row.record.created);
            let parent = row.record.directory.parent();
            self.directories.extend(parent.map(PathBuf::from));
        }
        times.extend(catalog.vaults()?.iter().map(|row| row.record.created));
        times.extend(catalog.all_des()?.iter().map(|row| row.record.created));
        self.latest = times.into_iter().max();
        self.directories.sort();
        self.directories.dedup();
        Ok(())
    }

    /// The directories in which disks, snapshots and images lie.
    pub(super) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// When something was made last.
    pub(super) fn latest(&self) -> Option<OffsetDateTime> {
        self.latest
    }

    /// Whether the catalog can be reached, each vault that is kept here opens, and each set may wrap and unwrap in its
    /// own.
    pub(super) fn vaults(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if let (Ok(found), Some(place)) = (&self.installation, &self.server) {
            checks.push(Check::ok(CATALOG, format!("at {place}")));
            checks.extend(found.as_ref().map(audit_key));
        }
        checks.extend(self.vaults_here());
        checks
    }

    fn vaults_here(&self) -> Vec<Check> {
        match &self.installation {
            Err(error) => vec![Check::fail(
                CATALOG,
                error.message.clone(),
                match self.server {
                    Some(_) => "see what it says, and see that the server runs and can be reached",
                    None => {
                        "restore a backup (`sealdisk backup restore`), or `sealdisk catalog rebuild`"
                    }
                },
            )],
            Ok(None) => vec![Check::ok(VAULT, "none yet")],
            Ok(Some(installation)) => match reached(installation) {
                Ok(checks) if checks.is_empty() => vec![Check::ok(VAULT, "none yet")],
                Ok(checks) => checks,
                Err(error) => vec![Check::fail(CATALOG, error.message, "see what it says")],
            },
        }
    }
}

/// Whether this host has the key of the log that hosts share.
fn audit_key(installation: &Installation) -> Check {
    match installation.check_audit_key() {
        Ok(()) => Check::ok(LOG, "this host has its key"),
        Err(error) => Check::fail(
            LOG,
            error.to_string(),
            "what cannot be recorded is not done: see docs/fleet.md",
        ),
    }
}

fn reached(installation: &Installation) -> Result<Vec<Check>, CliError> {
    let mut checks = Vec::new();
    for row in installation.catalog().vaults()? {
        let name = row.record.name;
        // What a remote one grants is seen by the sets that use it.
        if row.record.kind.is_remote() {
            continue;
        }
        checks.push(match installation.vault(&name) {
            Ok(_) => Check::ok(VAULT, format!("{name} opens")),
            Err(error) => Check::fail(
                VAULT,
                format!("{name} does not open: {error}"),
                match installation.place().catalog.server() {
                    None => {
                        "disks under its keys cannot be attached: see docs/disaster-recovery.md"
                    }
                    Some(_) => "disks under its keys cannot be attached here: see docs/fleet.md",
                },
            ),
        });
    }
    for row in installation.catalog().all_des()? {
        let name = &row.record.name;
        let granted = installation
            .wrapping_key_of(&row.record)
            .and_then(|access| access.probe().map(|()| access).map_err(Into::into));
        checks.push(match granted {
            Ok(access) => Check::ok(SET, format!("{name} uses {}", key_cell(&access.key_url().to_string()))),
            Err(error) => Check::fail(
                SET,
                format!("{name} cannot use its key: {error}"),
                "grant its identity get, wrapKey and unwrapKey, enable the key, or reach the vault again",
            ),
        });
    }
    Ok(checks)
}
