//! The files of vaults and of the installation's log, which become schemas and tables of the server.

use std::path::Path;

use database::postgres::{self, ServerUrl, has_schema, make_schema};
use database::{Connection, Database, Mode};
use uuid::Uuid;

use super::error::MigrateError;
use super::tables::{MovedTable, Part};
use crate::catalog::{CatalogError, MovingCatalog, schema_of};
use crate::log_databases::{INSTALLATION_LOG, vault_log_name};
use crate::server_databases::{LOG, VAULT};
use vault::MovingFile;
use vault::audit::{Archives, verify_database};

/// The file of the installation's log.
pub(super) const LOG_FILE: &str = "audit.db";

/// Room that a log in a file has in reserve, which one on a server does without.
const RESERVE: &str = "audit.reserve";

/// All that there are of an installation.
pub(super) struct Files {
    installation: Uuid,
    all: Vec<File>,
}

/// A file.
struct File {
    file: MovingFile,
    /// The vault that it is of; `None` of the log.
    vault: Option<String>,
}

impl Files {
    /// Opens all of them.
    ///
    /// # Errors
    /// [`MigrateError`], also for a vault whose file is gone.
    pub(super) fn open(state_dir: &Path, catalog: &MovingCatalog) -> Result<Self, MigrateError> {
        let mut all = Vec::new();
        for name in catalog.vaults_here()? {
            let path = state_dir.join("vaults").join(&name).join("vault.db");
            if !path.exists() {
                return Err(MigrateError::VaultLost { name, path });
            }
            all.push(File {
                file: MovingFile::vault(&path)?,
                vault: Some(name),
            });
        }
        all.push(File {
            file: MovingFile::log(&state_dir.join(LOG_FILE))?,
            vault: None,
        });
        Ok(Self {
            installation: catalog.own().id(),
            all,
        })
    }

    /// Moves what is in all of them, while they are in use.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub(super) fn move_all(&self, server: &Database, to: &ServerUrl) -> Result<(), MigrateError> {
        for file in &self.all {
            let target = self.target(file, server, to)?;
            let moment = file.file.database().moment()?;
            file.move_rows(&moment, &target, to)?;
        }
        Ok(())
    }

    /// Moves what was changed in them since, and marks them as moved. What was moved.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub(super) fn leave_all(
        &self,
        server: &Database,
        to: &ServerUrl,
    ) -> Result<Vec<MovedTable>, MigrateError> {
        let mut moved = Vec::new();
        for file in &self.all {
            let target = self.target(file, server, to)?;
            let tables = file.file.database().transaction(Mode::Write, |db| {
                let tables = file.move_rows(db, &target, to)?;
                file.file.leave(db, &to.to_string())?;
                Ok::<_, MigrateError>(tables)
            })?;
            moved.extend(tables);
            let reserve = file.file.path().with_file_name(RESERVE);
            if let Err(error) = std::fs::remove_file(&reserve) {
                log::debug!("{} stays: {error}", reserve.display());
            }
        }
        Ok(moved)
    }

    /// Where a file is moved to.
    fn target(
        &self,
        file: &File,
        server: &Database,
        to: &ServerUrl,
    ) -> Result<Database, MigrateError> {
        let Some(vault) = &file.vault else {
            let opened = postgres::open(to.as_str(), &LOG);
            return Ok(opened.map_err(CatalogError::from)?);
        };
        let schema = schema_of(self.installation, vault);
        if !has_schema(server, &schema)? {
            make_schema(server, &schema).map_err(|source| CatalogError::MakeSchema { source })?;
        }
        let at = to.in_schema(&schema);
        let opened = postgres::open(at.as_str(), &VAULT);
        Ok(opened.map_err(CatalogError::from)?)
    }
}

impl File {
    fn move_rows(
        &self,
        file: &Connection,
        server: &Database,
        to: &ServerUrl,
    ) -> Result<Vec<MovedTable>, MigrateError> {
        let (what, log) = match &self.vault {
            Some(name) => (format!("key vault '{name}'"), vault_log_name(name)),
            None => ("installation's log".into(), INSTALLATION_LOG.into()),
        };
        let verify = |db: &Connection| verify(db, &what, &log);
        let part = Part {
            what: what.clone(),
            file,
            server,
            tables: self.file.tables(),
            numbers: self.file.next_numbers()?,
            verify: &verify,
        };
        part.move_rows(to)
    }
}

/// Verifies an audit log by the key that is in it.
fn verify(db: &Connection, what: &str, log: &str) -> Result<(), MigrateError> {
    let report = verify_database(db, log, &[], &mut Archives::default())?;
    match report.finding {
        None => Ok(()),
        Some(finding) => Err(MigrateError::Chain {
            what: what.into(),
            finding: finding.what,
        }),
    }
}
