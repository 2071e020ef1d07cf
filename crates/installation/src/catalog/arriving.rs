//! That a catalog is being moved into a database on a server: while it is, nobody else uses that.

use database::{Connection, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{time_text, uuid};
use super::error::CatalogError;

const WHAT: &str = "arriving";

/// Whose catalog is being moved there, if one is.
pub(super) fn found(db: &Connection) -> Result<Option<Uuid>, CatalogError> {
    db.first("SELECT installation FROM arriving", &[], |row| {
        uuid(WHAT, row.text(0)?)
    })
}

/// Refuses a database into which a catalog is being moved.
pub(super) fn refuse(db: &Connection, place: &str) -> Result<(), CatalogError> {
    match found(db)? {
        None => Ok(()),
        Some(installation) => Err(CatalogError::Arriving {
            place: place.into(),
            installation,
        }),
    }
}

/// Notes that one is.
pub(super) fn begin(db: &Connection, installation: Uuid) -> Result<(), CatalogError> {
    let now = time_text(WHAT, OffsetDateTime::now_utc())?;
    db.execute(
        "INSERT INTO arriving VALUES (1, ?, ?)",
        params![installation.to_string(), now],
    )?;
    Ok(())
}

/// Has the database used from now on.
pub(super) fn finish(db: &Connection) -> Result<(), CatalogError> {
    db.execute("DELETE FROM arriving", &[])?;
    Ok(())
}
