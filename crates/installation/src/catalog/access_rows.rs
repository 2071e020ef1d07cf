//! The table of access that was granted, and its rows.

use database::Row;

use super::access::{Access, AccessRecord};
use super::columns::{damaged, parse_kind, parse_time, uuid};
use super::error::CatalogError;
use super::management::Touch;

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE access_grants (
    id         TEXT PRIMARY KEY,
    resource   TEXT NOT NULL REFERENCES resources (id) ON DELETE CASCADE,
    access     TEXT NOT NULL,
    token      BLOB NOT NULL,
    expires    TEXT NOT NULL,
    created    TEXT NOT NULL,
    created_by TEXT NOT NULL
) STRICT;
CREATE INDEX access_grants_by_resource ON access_grants (resource);
";

pub(super) const SELECT: &str = "SELECT access_grants.id, resource, kind, name, access, token, expires, access_grants.created, \
                      created_by FROM access_grants JOIN resources ON resources.id = resource";

pub(super) fn parse(row: &Row) -> Result<AccessRecord, CatalogError> {
    let name: String = row.get(3)?;
    let access: String = row.get(4)?;
    Ok(AccessRecord {
        id: uuid(&name, row.text(0)?)?,
        resource: uuid(&name, row.text(1)?)?,
        kind: parse_kind(&name, row.text(2)?)?,
        access: Access::from_text(&access)
            .ok_or_else(|| damaged(&name, format!("access '{access}'")))?,
        token: row.get(5)?,
        expires: parse_time(&name, row.text(6)?)?,
        created: Touch {
            at: parse_time(&name, row.text(7)?)?,
            by: uuid(&name, row.text(8)?)?,
        },
        name,
    })
}
