//! Moving an installation from files of its state directory to a PostgreSQL server, which many hosts may share.
//!
//! What is moved is a list of parts (`tables.rs`): tables of a file that the server gets with the same rows. There is one so
//! far, the catalog. Key vaults of this installation are to be others, and while those are not there an installation that
//! has any is not moved: a host that shares the catalog would know vaults that it does not have.
//!
//! # Order of steps
//!
//! 1. The server gets its tables, and a row that says that a catalog arrives: no command uses that database. It is
//!    refused if it is another installation's, or in use.
//! 2. Nobody changes the files from here on. Each table that differs is filled anew, with all that come behind it.
//! 3. Rows and their hashes are compared, those of the server all of one moment.
//! 4. If still no disk is in use, the catalog's file is marked as moved: nothing can be changed in it any more, and no
//!    command uses it. From here to the next step nobody uses either.
//! 5. The server's row goes: its catalog is used from now on.
//! 6. The state directory notes where its catalog is, and the file that step 5 was done.
//!
//! Killed at any moment, the next run finds by these marks how far it was, and by the hashes which tables are there. Up to
//! step 4 the files are as they were, and who gives up only has to drop the database.

mod error;
mod tables;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use database::postgres::ServerUrl;
use database::{Connection, Database, Mode, params};
use uuid::Uuid;

pub use error::MigrateError;
pub use tables::MovedTable;

use crate::catalog::{Arrival, InstallationRecord, MovingCatalog, TABLES};
use crate::envelope::ResourceKind;
use crate::known_server::KnownServer;
use crate::on_server::join;
use crate::place::CATALOG_FILE;
use crate::{InstallationError, VaultsLock, prepared_state_dir};
use tables::Part;
use vault::Caller;
use vault::audit::{AuditLog, AuditRecord};

/// What was moved.
#[derive(Debug)]
pub struct Migrated {
    /// Whose it is.
    pub installation: Uuid,
    /// The file that is not used any more.
    pub from: PathBuf,
    /// The tables with what is in them; none where all was there before.
    pub tables: Vec<MovedTable>,
}

/// Whether somebody has the disk in a directory in use, or waits for it.
pub type IsUsed<'a> = dyn Fn(&Path) -> bool + 'a;

/// Refuses while a disk is in use: the process that has it would go on with the file, in which nothing is changed any more.
/// Once the file is marked, who has a disk has it by the other catalog.
fn refuse_used(catalog: &Connection, is_used: &IsUsed<'_>) -> Result<(), MigrateError> {
    if MovingCatalog::is_moved(catalog)? {
        return Ok(());
    }
    let sql = "SELECT name, directory FROM resources WHERE kind = ? ORDER BY name";
    let disks = catalog.select(sql, params![ResourceKind::Disk.as_str()], |row| {
        let directory = PathBuf::from(OsString::from_vec(row.get(1)?));
        Ok::<_, database::Error>((row.get::<String>(0)?, directory))
    })?;
    let used = disks
        .into_iter()
        .filter(|(_, directory)| is_used(directory));
    let names: Vec<_> = used.map(|(name, _)| name).collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(MigrateError::Used { names }),
    }
}

/// Moves the installation in `state_dir` to the database at `to`, or goes on with that, while none of its disks is in use.
///
/// # Errors
/// [`MigrateError`]; the next run goes on.
pub fn migrate(
    state_dir: &Path,
    to: &ServerUrl,
    is_used: &IsUsed<'_>,
) -> Result<Migrated, MigrateError> {
    refuse_missing(state_dir)?;
    let state_dir = prepared_state_dir(state_dir)?;
    // Nobody makes vaults meanwhile.
    let _lock = VaultsLock::take(&state_dir)?;
    let catalog = MovingCatalog::open(&state_dir.join(CATALOG_FILE))?;
    // Before anything is written on the server.
    refuse_used(catalog.database(), is_used)?;
    let vaults = catalog.vaults_here()?;
    if !vaults.is_empty() {
        return Err(MigrateError::Vaults { names: vaults });
    }
    let known = KnownServer::read(&state_dir)?;
    let is_joined = known.is_some_and(|known| known.installation == catalog.own().id());
    let tables = match catalog.arrive(to, is_joined)? {
        Arrival::Done => Vec::new(),
        Arrival::Begun(server) => {
            record(&state_dir, catalog.own(), to)?;
            let moved = move_to(&server, &catalog, to, is_used)?;
            MovingCatalog::release(&server)?;
            moved
        }
    };
    let installation = catalog.own().id();
    join(&state_dir, installation, to)?;
    catalog.finish()?;
    Ok(Migrated {
        installation,
        from: state_dir.join(CATALOG_FILE),
        tables,
    })
}

/// Refuses a directory without a catalog: none is made, and no directory.
fn refuse_missing(state_dir: &Path) -> Result<(), InstallationError> {
    match state_dir.join(CATALOG_FILE).symlink_metadata() {
        Ok(_) => Ok(()),
        Err(_) => Err(InstallationError::Missing {
            path: state_dir.into(),
        }),
    }
}

/// Moves all parts, and marks the file. What was moved.
fn move_to(
    server: &Database,
    catalog: &MovingCatalog,
    to: &ServerUrl,
    is_used: &IsUsed<'_>,
) -> Result<Vec<MovedTable>, MigrateError> {
    catalog.database().transaction(Mode::Alone, |file| {
        let parts = [Part {
            what: "catalog",
            file,
            server,
            tables: TABLES,
            verify: &|_| Ok(()),
        }];
        let mut moved = Vec::new();
        for part in &parts {
            moved.extend(part.move_rows(to)?);
        }
        // Rows may have taken long.
        refuse_used(file, is_used)?;
        catalog.leave(file, to)?;
        Ok(moved)
    })
}

/// Records that the catalog is about to be moved, and where.
fn record(
    state_dir: &Path,
    own: &InstallationRecord,
    to: &ServerUrl,
) -> Result<(), InstallationError> {
    let operator = Caller::local(own.operator);
    let record = AuditRecord::new(operator.object_id, &operator.origin, "CatalogMigrate");
    let log = AuditLog::open(&state_dir.join("audit.db"))?;
    log.append(&record.with_detail(to.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests;
