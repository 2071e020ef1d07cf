//! Moving an installation from files of its state directory to a PostgreSQL server, which many hosts may share.
//!
//! What is moved is a list of parts (`tables.rs`): tables of a file that the server gets with the same rows. There are the
//! catalog, each vault that is kept here, and the installation's log (`files.rs`); and besides these the keys that servers
//! share (`shared.rs`). Master keys, and the key of the log, stay on this host.
//!
//! # Order of steps
//!
//! 1. The server gets the tables of the catalog, and a row that says that a catalog arrives: no command uses that database.
//!    It is refused if it is another installation's, or in use.
//! 2. Vaults and the log are moved, each to a schema or tables of its own. Whatever cannot be moved is refused here.
//! 3. Nobody changes the catalog's file from here on. Each table that differs is filled anew, with all that come behind it;
//!    rows and their hashes are compared, those of the server all of one moment.
//! 4. The catalog's file is marked as moved: nothing can be changed in it any more, and no command uses it. From here to
//!    step 7 nobody uses either.
//! 5. Of each vault and of the log, whose file nobody else changes meanwhile, what was changed since step 2 is moved,
//!    all of it is compared, and its audit log verified there; and the file is marked as moved.
//! 6. The keys that servers share are stored there, sealed.
//! 7. The server's row goes: what is there is used from now on.
//! 8. The state directory notes where its catalog is, and the file that step 7 was done.
//!
//! Killed at any moment, the next run finds by these marks how far it was, and by the hashes which tables are there. Up to
//! step 4 the files are as they were, and who gives up only has to drop the database.

mod error;
mod files;
mod shared;
mod tables;

use std::path::{Path, PathBuf};

use database::postgres::ServerUrl;
use database::{Database, Mode};
use uuid::Uuid;

pub use error::MigrateError;
pub use tables::MovedTable;

use crate::catalog::{Arrival, InstallationRecord, MovingCatalog, TABLES};
use crate::on_server::join;
use crate::place::{CATALOG_FILE, Place};
use crate::{InstallationError, VaultsLock, prepared_state_dir};
use files::{Files, LOG_FILE};
use tables::Part;
use vault::Caller;
use vault::audit::{AuditError, AuditLog, AuditRecord};

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

/// The disks of a catalog in a state directory, for whoever has to know before it is moved that none is in use.
///
/// # Errors
/// [`MigrateError`].
pub fn disks_of(state_dir: &Path) -> Result<Vec<(Uuid, String)>, MigrateError> {
    refuse_missing(state_dir)?;
    let catalog = MovingCatalog::open(&state_dir.join(CATALOG_FILE))?;
    let sql = "SELECT id, name FROM resources ORDER BY name";
    let disks = catalog.database().select(sql, &[], |row| {
        let id = Uuid::parse_str(row.text(0)?).unwrap_or_default();
        Ok::<_, database::Error>((id, row.get(1)?))
    });
    Ok(disks?)
}

/// Moves the installation in `state_dir` to the database at `to`, or goes on with that.
///
/// # Errors
/// [`MigrateError`]; the next run goes on.
pub fn migrate(state_dir: &Path, to: &ServerUrl) -> Result<Migrated, MigrateError> {
    refuse_missing(state_dir)?;
    let state_dir = prepared_state_dir(state_dir)?;
    // Nobody makes vaults meanwhile.
    let _lock = VaultsLock::take(&Place::from(&state_dir))?;
    let catalog = MovingCatalog::open(&state_dir.join(CATALOG_FILE))?;
    let tables = match catalog.arrive(to)? {
        Arrival::Done => Vec::new(),
        Arrival::Begun(server) => {
            record(&state_dir, catalog.own(), to)?;
            let files = Files::open(&state_dir, &catalog)?;
            // What cannot be moved is told while all is as it was.
            files.move_all(&server, to)?;
            let mut moved = move_catalog(&server, &catalog, to)?;
            moved.extend(files.leave_all(&server, to)?);
            shared::move_keys(&state_dir, catalog.own().id(), to)?;
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

/// Moves the catalog, and marks its file. What was moved.
fn move_catalog(
    server: &Database,
    catalog: &MovingCatalog,
    to: &ServerUrl,
) -> Result<Vec<MovedTable>, MigrateError> {
    catalog.database().transaction(Mode::Alone, |file| {
        let part = Part {
            what: "catalog".into(),
            file,
            server,
            tables: TABLES,
            numbers: Vec::new(),
            verify: &|_| Ok(()),
        };
        let moved = part.move_rows(to)?;
        catalog.leave(file, to)?;
        Ok(moved)
    })
}

/// Records that the installation is about to be moved, and where, unless its log was moved already.
fn record(state_dir: &Path, own: &InstallationRecord, to: &ServerUrl) -> Result<(), MigrateError> {
    let log = match AuditLog::open(&state_dir.join(LOG_FILE)) {
        Err(AuditError::Moved { .. }) => return Ok(()),
        opened => opened?,
    };
    let operator = Caller::local(own.operator);
    let record = AuditRecord::new(operator.object_id, &operator.origin, "CatalogMigrate");
    Ok(log.append(&record.with_detail(to.to_string()))?)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vault_tests;
