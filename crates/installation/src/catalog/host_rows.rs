//! The tables of hosts and attachments, and their rows.

use database::Row;
use time::OffsetDateTime;

use super::columns::{damaged, uuid};
use super::error::CatalogError;
use super::hosts::{AttachmentRecord, AttachmentState, HostRecord, Maker};
use crate::host::LEASE;

/// The tables, and whose a resource and an operation is. Times are seconds since 1970 of the database's clock, since they
/// are compared. A row of `attachments` stays when the disk is let go of: its epoch is gone on with.
pub(super) const TABLES: &str = "
CREATE TABLE hosts (
    id      TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    machine TEXT NOT NULL,
    boot    TEXT NOT NULL,
    lease   TEXT NOT NULL,
    since   INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    evicted INTEGER NOT NULL,
    version TEXT NOT NULL
) STRICT;
CREATE TABLE attachments (
    disk           TEXT PRIMARY KEY REFERENCES resources (id) ON DELETE CASCADE,
    host           TEXT NOT NULL,
    host_name      TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    state          TEXT NOT NULL,
    attach         TEXT NOT NULL,
    since          INTEGER NOT NULL,
    storage_client TEXT
) STRICT;
CREATE INDEX attachments_by_host ON attachments (host) WHERE state <> 'closed';
ALTER TABLE resources ADD COLUMN host TEXT;
ALTER TABLE operations ADD COLUMN host TEXT;
CREATE INDEX layer_uses_by_layer ON layer_uses (layer);
";

/// Whether a host has not let go of something; the index of attachments is taken for it.
const HAS_DISKS: &str =
    "SELECT 1 FROM attachments WHERE attachments.host = hosts.id AND attachments.state <> 'closed'";

/// A query for the hosts that meet a condition.
pub(super) fn select_hosts(condition: &str) -> String {
    format!(
        "SELECT id, name, version, since, expires,
             CASE WHEN expires > unixepoch() THEN 1 ELSE 0 END AS lives, evicted,
             (SELECT count(*) FROM attachments
              WHERE attachments.host = hosts.id AND attachments.state <> 'closed') AS disks
         FROM hosts WHERE {condition} ORDER BY name, id"
    )
}

/// Those that are known, and not gone with all that they had.
pub(super) fn known_hosts() -> String {
    select_hosts(&format!("evicted = 0 OR EXISTS ({HAS_DISKS})"))
}

/// A query for the attachments that meet a condition.
pub(super) fn select_attachments(condition: &str) -> String {
    format!(
        "SELECT disk, host, host_name, epoch, state, attach, attachments.since AS since, storage_client,
             CASE WHEN hosts.expires > unixepoch() THEN 1 WHEN hosts.id IS NOT NULL THEN 0 END AS lives,
             hosts.expires AS expires
         FROM attachments LEFT JOIN hosts ON hosts.id = attachments.host WHERE {condition} ORDER BY disk"
    )
}

/// A query for the host of a resource.
pub(super) const MAKER: &str = "
SELECT resources.host AS host, hosts.name AS name,
    CASE WHEN hosts.expires > unixepoch() THEN 1 ELSE 0 END AS lives, hosts.evicted AS evicted
FROM resources LEFT JOIN hosts ON hosts.id = resources.host
WHERE resources.id = ? AND resources.host IS NOT NULL";

pub(super) fn parse_host(row: &Row) -> Result<HostRecord, CatalogError> {
    let name: String = row.get("name")?;
    let disks: i64 = row.get("disks")?;
    Ok(HostRecord {
        id: row.get("id")?,
        version: row.get("version")?,
        since: moment(&name, row.get("since")?)?,
        seen: seen(&name, row.get("expires")?)?,
        lives: row.get("lives")?,
        is_evicted: row.get("evicted")?,
        disks: u64::try_from(disks).unwrap_or_default(),
        name,
    })
}

pub(super) fn parse_attachment(row: &Row) -> Result<AttachmentRecord, CatalogError> {
    let disk: String = row.get("disk")?;
    let state: String = row.get("state")?;
    let expires: Option<i64> = row.get("expires")?;
    Ok(AttachmentRecord {
        host: row.get("host")?,
        host_name: row.get("host_name")?,
        epoch: row.get("epoch")?,
        state: AttachmentState::from_text(&state)
            .ok_or_else(|| damaged(&disk, format!("state '{state}'")))?,
        attach: uuid(&disk, row.text("attach")?)?,
        since: moment(&disk, row.get("since")?)?,
        storage_client: row.get("storage_client")?,
        host_lives: row.get("lives")?,
        host_seen: expires.map(|expires| seen(&disk, expires)).transpose()?,
        disk: uuid(&disk, &disk)?,
    })
}

pub(super) fn parse_maker(row: &Row) -> Result<Maker, CatalogError> {
    let evicted: Option<bool> = row.get("evicted")?;
    Ok(Maker {
        host: row.get("host")?,
        name: row.get("name")?,
        lives: row.get("lives")?,
        is_evicted: evicted.unwrap_or(false),
    })
}

/// How long a lease is good for, as the database counts it.
pub(super) fn lease_seconds() -> i64 {
    i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX)
}

/// When a lease was renewed last that ends then.
pub(super) fn seen(name: &str, expires: i64) -> Result<OffsetDateTime, CatalogError> {
    moment(name, expires.saturating_sub(lease_seconds()))
}

fn moment(name: &str, seconds: i64) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| damaged(name, e))
}
