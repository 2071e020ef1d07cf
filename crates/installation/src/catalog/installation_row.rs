//! The row of the installation's own identities.

use database::{Connection, params};
use uuid::Uuid;

use super::columns::{damaged, uuid};
use super::error::CatalogError;
use super::record::InstallationRecord;

const WHAT: &str = "installation";

/// The installation's own identities, which are made if there are none.
pub(super) fn own_identities(db: &Connection) -> Result<InstallationRecord, CatalogError> {
    if let Some(own) = known_identities(db)? {
        return Ok(own);
    }
    db.execute(
        "INSERT INTO installation VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
        params![Uuid::new_v4().to_string(), Uuid::new_v4().to_string()],
    )?;
    known_identities(db)?.ok_or_else(|| damaged(WHAT, "it is missing"))
}

/// Those identities, if they were made.
pub(super) fn known_identities(
    db: &Connection,
) -> Result<Option<InstallationRecord>, CatalogError> {
    let sql = "SELECT operator, platform FROM installation";
    db.first(sql, &[], |row| {
        Ok(InstallationRecord {
            operator: uuid(WHAT, row.text(0)?)?,
            platform: uuid(WHAT, row.text(1)?)?,
        })
    })
}
