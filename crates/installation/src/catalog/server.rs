//! A catalog on a server.

use std::path::Path;

use database::postgres::{self, Schema, ServerUrl};
use database::{Connection, Database, Mode, sqlite};

use super::arriving;
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::installation_row::{known_identities, own_identities};
use super::moved::{self, MovedRecord};
use super::record::InstallationRecord;
use super::schema::SCHEMA;

/// The same tables as [`SCHEMA`], as PostgreSQL has them.
pub(super) const ON_SERVER: Schema = Schema {
    what: SCHEMA.what,
    application_id: SCHEMA.application_id,
    steps: &[include_str!("postgres.sql")],
};

impl DatabaseCatalog {
    /// Opens the catalog at a URL, making an empty one when there is none.
    ///
    /// # Errors
    /// [`CatalogError::Open`], also for a database of something else or of a newer version; [`CatalogError::Arriving`].
    pub fn open_on_server(url: &ServerUrl) -> Result<Self, CatalogError> {
        let (db, place) = (postgres::open(url.as_str(), &ON_SERVER)?, url.to_string());
        let own = match known(&db, &place)? {
            Some(own) => own,
            // Of two who find none, one makes it.
            None => db.transaction(Mode::Write, |db| {
                arriving::refuse(db, &place)?;
                own_identities(db)
            })?,
        };
        Ok(Self::on_server(db, place, own))
    }

    /// As [`DatabaseCatalog::open_on_server`], of one that is there: `None` when none is.
    ///
    /// # Errors
    /// As [`DatabaseCatalog::open_on_server`].
    pub fn open_made_on_server(url: &ServerUrl) -> Result<Option<Self>, CatalogError> {
        let Some(db) = postgres::open_made(url.as_str(), &ON_SERVER)? else {
            return Ok(None);
        };
        let place = url.to_string();
        let own = known(&db, &place)?;
        Ok(own.map(|own| Self::on_server(db, place, own)))
    }

    /// Whether there is a catalog at a URL that this program can open. Nothing is written.
    ///
    /// # Errors
    /// [`CatalogError::Open`]: why it cannot.
    pub fn look_on_server(url: &ServerUrl) -> Result<bool, CatalogError> {
        Ok(postgres::look(url.as_str(), &ON_SERVER)?)
    }

    /// Whether this program can open the catalog in the file at `path`, to which nothing is written.
    ///
    /// # Errors
    /// [`CatalogError::Open`], [`CatalogError::Moved`]: why not.
    pub fn look(path: &Path) -> Result<(), CatalogError> {
        match Self::moved_from(path)? {
            None => Ok(()),
            Some(moved) => Err(CatalogError::Moved {
                path: path.into(),
                place: moved.place,
            }),
        }
    }

    /// Where the catalog in the file at `path` was moved to, if it was. Nothing is written.
    ///
    /// # Errors
    /// [`CatalogError::Open`].
    pub fn moved_from(path: &Path) -> Result<Option<MovedRecord>, CatalogError> {
        let db = Database::from(sqlite::open_as_it_is(path, &moved::MARKED)?);
        moved::found(&db)
    }
}

/// Whose catalog it is, if that was made.
fn known(db: &Database, place: &str) -> Result<Option<InstallationRecord>, CatalogError> {
    db.transaction(Mode::Read, |db| of_whom(db, place))
}

fn of_whom(db: &Connection, place: &str) -> Result<Option<InstallationRecord>, CatalogError> {
    arriving::refuse(db, place)?;
    known_identities(db)
}
