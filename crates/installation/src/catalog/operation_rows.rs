//! The table of operations of the management API, and its rows.

use database::Row;

use super::columns::{damaged, parse_json, parse_time, uuid};
use super::error::CatalogError;
use super::management::Touch;
use super::operations::{DeploymentName, OperationRecord, OperationState};

/// The table. A deployment goes with its group.
pub(super) const TABLE: &str = "
CREATE TABLE operations (
    id         TEXT PRIMARY KEY,
    in_group   TEXT COLLATE NOCASE REFERENCES resource_groups (name) ON DELETE CASCADE,
    deployment TEXT COLLATE NOCASE,
    target     TEXT NOT NULL,
    state      TEXT NOT NULL,
    cancelled  INTEGER NOT NULL DEFAULT 0,
    started    TEXT NOT NULL,
    started_by TEXT NOT NULL,
    changed    TEXT NOT NULL,
    request    TEXT NOT NULL,
    answer     TEXT NOT NULL,
    UNIQUE (in_group, deployment)
) STRICT;
CREATE INDEX operations_by_state ON operations (state);
";

pub(super) const OPERATION: &str = "SELECT id, in_group, deployment, target, state, started, started_by, changed, request, \
                         answer FROM operations";

pub(super) fn parse(row: &Row) -> Result<OperationRecord, CatalogError> {
    let id: String = row.get(0)?;
    let of: (Option<String>, Option<String>) = (row.get(1)?, row.get(2)?);
    let state: String = row.get(4)?;
    Ok(OperationRecord {
        deployment: match of {
            (Some(group), Some(name)) => Some(DeploymentName { group, name }),
            _ => None,
        },
        target: row.get(3)?,
        state: OperationState::from_text(&state)
            .ok_or_else(|| damaged(&id, format!("state '{state}'")))?,
        started: Touch {
            at: parse_time(&id, row.text(5)?)?,
            by: uuid(&id, row.text(6)?)?,
        },
        changed: parse_time(&id, row.text(7)?)?,
        request: parse_json(&id, "request", row.text(8)?)?,
        answer: parse_json(&id, "answer", row.text(9)?)?,
        id: uuid(&id, &id)?,
    })
}
