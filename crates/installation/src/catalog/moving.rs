//! A catalog that is moved from its file to a server: what is particular of it.
//!
//! Two marks say how far it is, one in each database, so that nobody uses both: the server's that a catalog is arriving
//! (`arriving.rs`), until it is whole; the file's that it was moved (`moved.rs`), before the other one goes.

use std::path::{Path, PathBuf};

use database::postgres::{self, ServerUrl};
use database::{Connection, Database, Mode, OpenError, sqlite};
use time::OffsetDateTime;

use super::arriving;
use super::columns::damaged;
use super::error::CatalogError;
use super::installation_row::{known_identities, own_identities};
use super::moved::{self, MovedRecord};
use super::record::InstallationRecord;
use super::rows::{VAULT_COLUMNS, parse_vault};
use super::schema::SCHEMA;
use super::server::ON_SERVER;

/// The tables of a catalog, each behind those that its rows refer to; and those of what goes with other rows, which the
/// server forgets when these are deleted, at the end.
pub(crate) const TABLES: &[&str] = &[
    "installation",
    "vaults",
    "disk_encryption_sets",
    "resources",
    "layer_uses",
    "merges",
    "identities",
    "departed",
    "made_again",
    "noted_vaults",
    "restored",
    "purged_vaults",
    "resource_groups",
    "access_grants",
    "federated_credentials",
    "passwords",
    "device_logins",
    "used_assertions",
    "operations",
    "placements",
    "role_assignments",
    "locks",
];

/// The catalog in a file, for whoever moves it.
pub(crate) struct MovingCatalog {
    db: Database,
    path: PathBuf,
    own: InstallationRecord,
}

/// What a server has of a catalog that is to be moved there.
pub(crate) enum Arrival {
    /// Nothing, or not all of it, and nobody uses it meanwhile.
    Begun(Database),
    /// All of it, and it is in use.
    Done,
}

impl MovingCatalog {
    /// Opens the file, whether its catalog was moved or not.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn open(path: &Path) -> Result<Self, CatalogError> {
        let db = match sqlite::open(path, &SCHEMA) {
            Err(OpenError::Version { .. }) => sqlite::open(path, &moved::MARKED),
            opened => opened,
        };
        let db = Database::from(db?);
        let own = own_identities(&db)?;
        let others =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
        for table in db.select(others, &[], |row| row.get::<String>(0))? {
            if table != moved::NAME && !TABLES.contains(&table.as_str()) {
                let what = format!("it is a table that this version does not move: {table}");
                return Err(damaged(&table, what));
            }
        }
        Ok(Self {
            db,
            path: path.into(),
            own,
        })
    }

    /// Whose catalog it is.
    pub(crate) fn own(&self) -> &InstallationRecord {
        &self.own
    }

    /// The file's database.
    pub(crate) fn database(&self) -> &Database {
        &self.db
    }

    /// The vaults that are kept in this installation.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn vaults_here(&self) -> Result<Vec<String>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults ORDER BY name");
        let vaults = self.db.select(&sql, &[], parse_vault)?.into_iter();
        let here = vaults.filter(|vault| !vault.record.kind.is_remote());
        Ok(here.map(|vault| vault.record.name).collect())
    }

    /// Makes ready the database on the server, for this catalog alone. `is_joined`: the state directory knows that the
    /// server's is used, whether or not the file does.
    ///
    /// # Errors
    /// [`CatalogError`]: it is another installation's, or what was there is lost.
    pub(crate) fn arrive(&self, to: &ServerUrl, is_joined: bool) -> Result<Arrival, CatalogError> {
        let place = to.to_string();
        let mut moved = moved::found(&self.db)?;
        if let Some(moved) = &mut moved {
            moved.is_finished |= is_joined;
        }
        if let Some(moved) = &moved
            && moved.place != place
        {
            return Err(CatalogError::Moved {
                path: self.path.clone(),
                place: moved.place.clone(),
            });
        }
        let db = postgres::open(to.as_str(), &ON_SERVER)?;
        let is_done = db.transaction(Mode::Write, |db| self.look(db, &place, moved.as_ref()))?;
        Ok(match is_done {
            true => Arrival::Done,
            false => Arrival::Begun(db),
        })
    }

    /// Whether all of it is there and in use; else it is noted there that it arrives.
    fn look(
        &self,
        db: &Connection,
        place: &str,
        moved: Option<&MovedRecord>,
    ) -> Result<bool, CatalogError> {
        let (here, place) = (self.own.id(), place.to_owned());
        match arriving::found(db)? {
            Some(installation) if installation == here => return Ok(false),
            Some(installation) => {
                return Err(CatalogError::Arriving {
                    place,
                    installation,
                });
            }
            None => {}
        }
        let found = self.path.clone();
        match known_identities(db)?.map(|there| there.id()) {
            Some(there) if there != here => Err(CatalogError::OtherInstallation {
                place,
                there,
                found,
                here,
            }),
            Some(_) if moved.is_some() => Ok(true),
            // This file is an older one than the one that was moved.
            Some(_) => Err(CatalogError::Older { place, path: found }),
            None if moved.is_some_and(|moved| moved.is_finished) => {
                Err(CatalogError::LostOnServer { place, found })
            }
            None => arriving::begin(db, here).map(|()| false),
        }
    }

    /// Whether the file is marked.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn is_moved(file: &Connection) -> Result<bool, CatalogError> {
        Ok(moved::found(file)?.is_some())
    }

    /// Marks the file, in which nothing can be changed any more. In a transaction of it.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn leave(&self, file: &Connection, to: &ServerUrl) -> Result<(), CatalogError> {
        if Self::is_moved(file)? {
            return Ok(());
        }
        let record = MovedRecord {
            place: to.to_string(),
            installation: self.own.id(),
            time: OffsetDateTime::now_utc(),
            is_finished: false,
        };
        moved::mark(file, TABLES, &record)
    }

    /// Has the database on the server used from now on.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn release(server: &Database) -> Result<(), CatalogError> {
        arriving::finish(server)
    }

    /// Notes in the file that the server's is used.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub(crate) fn finish(&self) -> Result<(), CatalogError> {
        moved::finish(&self.db)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::database_catalog::DatabaseCatalog;

    #[test]
    fn every_table_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let catalog = MovingCatalog::open(&path).unwrap();
        for table in TABLES {
            let sql = format!("SELECT count(*) FROM {table}");
            catalog.db.the_value::<i64>(&sql, &[]).unwrap();
        }
        // One that was forgotten here.
        let made = catalog
            .db
            .execute("CREATE TABLE forgotten (a INTEGER)", &[]);
        made.unwrap();
        let refused = MovingCatalog::open(&path).err().unwrap();
        assert!(refused.to_string().contains("does not move"), "{refused}");
    }

    #[test]
    fn nothing_is_changed_in_a_file_whose_catalog_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        // One that has it open since before.
        let before = rusqlite::Connection::open(&path).unwrap();
        let catalog = MovingCatalog::open(&path).unwrap();
        let merge = "INSERT INTO merges VALUES ('a')";
        before.execute(merge, []).unwrap();
        let to = ServerUrl::parse("postgres://me@it's/d").unwrap();
        // A program of before opens it until then, and no more.
        let version = || before.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0));
        let of = |schema: &sqlite::Schema| i32::try_from(schema.steps.len()).unwrap();
        assert_eq!(version().unwrap(), of(&SCHEMA));
        assert_eq!(moved::found(&catalog.db).unwrap(), None);
        for _ in 0..2 {
            catalog
                .db
                .transaction(Mode::Write, |db| catalog.leave(db, &to))
                .unwrap();
        }
        for sql in [merge, "UPDATE merges SET layer = 'b'", "DELETE FROM merges"] {
            let refused = before.execute(sql, []).unwrap_err().to_string();
            assert!(
                refused.contains("was moved to postgres://it's/d"),
                "{sql}: {refused}"
            );
        }
        assert_eq!(version().unwrap(), of(&moved::MARKED));
        let refused = sqlite::open(&path, &SCHEMA).err().unwrap();
        assert!(matches!(refused, OpenError::Version { .. }));
        let refused = DatabaseCatalog::open(&path).err().unwrap();
        assert!(matches!(refused, CatalogError::Moved { .. }), "{refused}");
        MovingCatalog::open(&path).unwrap();
        assert!(!moved::found(&catalog.db).unwrap().unwrap().is_finished);
        catalog.finish().unwrap();
        assert!(moved::found(&catalog.db).unwrap().unwrap().is_finished);
    }
}
