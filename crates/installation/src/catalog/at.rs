//! Where a catalog is, and whether it still is the one that was opened.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use database::Connection;

use super::error::CatalogError;
use super::file_id::FileId;
use super::installation_row::known_identities;
use super::looked::Looked;
use super::moved;
use super::record::InstallationRecord;

/// How long a server is not asked again whose catalog it has: each check of a key would.
const OFTEN: Duration = Duration::from_secs(1);

/// Where a catalog is.
pub(super) enum At {
    /// In a file of its own.
    File(CatalogFile),
    /// On a server.
    Server(CatalogServer),
}

/// The file that a catalog is in, beside which its copy is.
pub(super) struct CatalogFile {
    pub(super) path: PathBuf,
    /// What was at `path` when it was opened, if it is known.
    opened: Mutex<Option<FileId>>,
    /// What SQLite said of changes by others when it was seen last that it was not moved.
    pub(super) unmoved: Looked<i64>,
}

impl CatalogFile {
    pub(super) fn new(path: &Path, opened: Option<FileId>) -> Self {
        Self {
            path: path.into(),
            opened: Mutex::new(opened),
            unmoved: Looked::default(),
        }
    }

    pub(super) fn opened(&self) -> MutexGuard<'_, Option<FileId>> {
        // It is replaced as a whole.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a file whose catalog is on a server by now.
    pub(super) fn refuse_moved(&self, db: &Connection) -> Result<(), CatalogError> {
        let version = db.the_value::<i64>("PRAGMA data_version", &[])?;
        if self.unmoved.last() == Some(version) {
            return Ok(());
        }
        match moved::found(db)? {
            None => {
                self.unmoved.note(Some(version));
                Ok(())
            }
            Some(moved) => Err(CatalogError::Moved {
                path: self.path.clone(),
                place: moved.place,
            }),
        }
    }
}

/// The server that a catalog is on.
pub(super) struct CatalogServer {
    /// Without its options.
    place: String,
    /// Whose it was when it was opened.
    own: InstallationRecord,
    /// When it was found to be that one last.
    looked: Looked<Instant>,
}

impl CatalogServer {
    pub(super) fn new(place: String, own: InstallationRecord) -> Self {
        Self {
            place,
            own,
            looked: Looked::default(),
        }
    }

    /// Whether it is time to look whose catalog it has.
    pub(super) fn is_due(&self) -> bool {
        self.looked.last().is_none_or(|at| at.elapsed() >= OFTEN)
    }

    /// Refuses a server that has the catalog of somebody else by now.
    pub(super) fn refuse_exchanged(&self, db: &Connection) -> Result<(), CatalogError> {
        if known_identities(db)? != Some(self.own) {
            return Err(CatalogError::Exchanged {
                place: self.place.clone(),
            });
        }
        self.looked.note(Some(Instant::now()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::schema::SCHEMA;
    use database::{Database, Mode, sqlite};
    use time::OffsetDateTime;
    use uuid::Uuid;

    #[test]
    fn a_move_is_seen_at_once_and_a_file_in_which_nothing_changes_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let open = || Database::from(sqlite::open(&path, &SCHEMA).unwrap());
        let (db, other) = (open(), open());
        let file = CatalogFile::new(&path, None);
        file.refuse_moved(&db).unwrap();
        let looked = file.unmoved.last().unwrap();
        file.refuse_moved(&db).unwrap();
        assert_eq!(file.unmoved.last(), Some(looked));
        let record = moved::MovedRecord {
            place: "postgres://db/d".into(),
            installation: Uuid::new_v4(),
            time: OffsetDateTime::now_utc(),
            is_finished: false,
        };
        let mark = |db: &database::Transaction<'_>| moved::mark(db, &["merges"], &record);
        other.transaction(Mode::Write, mark).unwrap();
        for _ in 0..2 {
            let refused = file.refuse_moved(&db).unwrap_err();
            assert!(matches!(refused, CatalogError::Moved { .. }), "{refused}");
        }
    }
}
