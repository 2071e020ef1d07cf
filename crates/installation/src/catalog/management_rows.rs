//! The tables of what the management API alone knows, and their rows.

use database::{Connection, Row, params};

use super::columns::{constraint, damaged, json, missing, parse_json, parse_time, time_text, uuid};
use super::error::CatalogError;
use super::management::{GroupRecord, PlacementRecord, RoleAssignmentRecord, Touch};
use super::record::Kind;

/// The tables, and what keeps them in step. The first group is there from the beginning.
pub(super) const TABLES: &str = "
CREATE TABLE resource_groups (
    name     TEXT PRIMARY KEY COLLATE NOCASE,
    location TEXT NOT NULL,
    tags     TEXT NOT NULL,
    created  TEXT NOT NULL
) STRICT;
INSERT INTO resource_groups
    VALUES ('default', 'local', '{}', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
CREATE TABLE placements (
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL COLLATE NOCASE,
    in_group   TEXT NOT NULL COLLATE NOCASE REFERENCES resource_groups (name) ON DELETE RESTRICT,
    location   TEXT NOT NULL,
    tags       TEXT NOT NULL,
    settings   TEXT NOT NULL,
    created    TEXT NOT NULL,
    created_by TEXT NOT NULL,
    changed    TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
CREATE INDEX placements_by_group ON placements (in_group);
CREATE TABLE role_assignments (
    id             TEXT PRIMARY KEY,
    scope          TEXT NOT NULL COLLATE NOCASE,
    role           TEXT NOT NULL,
    principal      TEXT NOT NULL,
    principal_type TEXT NOT NULL,
    created        TEXT NOT NULL,
    created_by     TEXT NOT NULL,
    UNIQUE (scope, role, principal)
) STRICT;
CREATE INDEX role_assignments_by_principal ON role_assignments (principal);
CREATE INDEX resources_by_any_case ON resources (kind, name COLLATE NOCASE);
CREATE TRIGGER placement_of_resource AFTER DELETE ON resources BEGIN
    DELETE FROM placements WHERE kind = OLD.kind AND name = OLD.name;
END;
CREATE TRIGGER placement_of_renamed AFTER UPDATE OF name ON resources WHEN OLD.name <> NEW.name BEGIN
    UPDATE OR REPLACE placements SET name = NEW.name WHERE kind = OLD.kind AND name = OLD.name;
END;
CREATE TRIGGER placement_of_vault AFTER DELETE ON vaults BEGIN
    DELETE FROM placements WHERE kind = 'vault' AND name = OLD.name;
END;
CREATE TRIGGER placement_of_set AFTER DELETE ON disk_encryption_sets BEGIN
    DELETE FROM placements WHERE kind = 'disk-encryption-set' AND name = OLD.name;
    DELETE FROM role_assignments WHERE principal = OLD.principal_id;
END;
CREATE TRIGGER roles_of_other_identity AFTER UPDATE OF principal_id ON disk_encryption_sets
WHEN OLD.principal_id <> NEW.principal_id BEGIN
    DELETE FROM role_assignments WHERE principal = OLD.principal_id;
END;
CREATE TRIGGER placement_of_identity AFTER DELETE ON identities BEGIN
    DELETE FROM placements WHERE kind = 'identity' AND name = OLD.name;
    DELETE FROM role_assignments WHERE principal = OLD.object_id;
END;
";

/// Each trigger with its table, the kind of the placement, the type in scopes, and what goes besides.
const GOING: [(&str, &str, &str, &str, &str); 4] = [
    (
        "placement_of_resource",
        "resources",
        "OLD.kind",
        RESOURCE,
        "",
    ),
    (
        "placement_of_vault",
        "vaults",
        "'vault'",
        "'Microsoft.KeyVault/vaults/'",
        "",
    ),
    (
        "placement_of_set",
        "disk_encryption_sets",
        "'disk-encryption-set'",
        "'Microsoft.Compute/diskEncryptionSets/'",
        // The identity of a user stays, with its roles.
        "DELETE FROM role_assignments WHERE principal = OLD.principal_id \
             AND json_extract(OLD.identity, '$.type') <> 'UserAssigned';",
    ),
    (
        "placement_of_identity",
        "identities",
        "'identity'",
        "'Microsoft.ManagedIdentity/userAssignedIdentities/'",
        "DELETE FROM role_assignments WHERE principal = OLD.object_id;",
    ),
];
const RESOURCE: &str = "'Microsoft.Compute/' || OLD.kind || 's/'";

/// Roles at a resource go with it, whoever deletes it, and go along when it gets another name: a later one of that name
/// is another. Its group is that of its placement, which goes after them.
pub(super) fn make_roles_go(db: &rusqlite::Transaction<'_>) -> rusqlite::Result<()> {
    for (trigger, table, kind, full_type, more) in GOING {
        let scope = scope_of(kind, full_type, "OLD.name");
        db.execute_batch(&format!(
            "DROP TRIGGER {trigger};
             CREATE TRIGGER {trigger} AFTER DELETE ON {table} BEGIN
                 DELETE FROM role_assignments WHERE {IN_SUBSCRIPTION} = {scope} COLLATE NOCASE;
                 DELETE FROM placements WHERE kind = {kind} AND name = OLD.name;
                 {more}
             END;"
        ))?;
    }
    let old = scope_of("OLD.kind", RESOURCE, "OLD.name");
    let new = scope_of("OLD.kind", RESOURCE, "NEW.name");
    db.execute_batch(&format!(
        "DROP TRIGGER placement_of_renamed;
         CREATE TRIGGER placement_of_renamed AFTER UPDATE OF name ON resources WHEN OLD.name <> NEW.name BEGIN
             UPDATE OR REPLACE role_assignments SET scope = substr(scope, 1, {BEGIN}) || {new}
                 WHERE {IN_SUBSCRIPTION} = {old} COLLATE NOCASE;
             UPDATE OR REPLACE placements SET name = NEW.name WHERE kind = OLD.kind AND name = OLD.name;
         END;"
    ))
}

/// A scope begins with `/subscriptions/` and a UUID; there is one subscription.
const BEGIN: usize = 51;
const IN_SUBSCRIPTION: &str = "substr(scope, 52)";

/// What a scope has behind its subscription, as an expression of a trigger.
fn scope_of(kind: &str, full_type: &str, name: &str) -> String {
    format!(
        "('/resourceGroups/' || coalesce((SELECT in_group FROM placements \
          WHERE kind = {kind} AND name = OLD.name), 'default') || '/providers/' || {full_type} || {name})"
    )
}

/// How many role assignments there are.
pub(super) fn count_roles(db: &Connection) -> Result<i64, CatalogError> {
    let sql = "SELECT count(*) FROM role_assignments";
    Ok(db.the_value(sql, &[])?)
}

pub(super) const GROUP: &str = "SELECT name, location, tags, created FROM resource_groups";
pub(super) const PLACEMENT: &str = "SELECT kind, name, in_group, location, tags, settings, created, created_by, \
                         changed, changed_by FROM placements";
/// The columns of a placement, and the name as the resource has it.
pub(super) const PLACED_RESOURCES: &str = "SELECT placed.kind, placed.name, in_group, location, tags, settings, \
     placed.created, created_by, changed, changed_by, resources.name \
     FROM resources LEFT JOIN placements AS placed \
         ON placed.kind = resources.kind AND placed.name = resources.name COLLATE NOCASE \
     WHERE resources.kind = ?1 AND resources.name > ?2 AND resources.state = 'ready' \
         AND (coalesce(in_group, ?4) = ?3 COLLATE NOCASE OR ?3 IS NULL) \
     ORDER BY resources.name LIMIT ?5";
pub(super) const ASSIGNMENT: &str =
    "SELECT id, scope, role, principal, principal_type, created, created_by FROM role_assignments";

/// Whether the catalog's copy has the placements of a kind. It is written anew at each change, so it
/// has none of disks, of which there are thousands: those of a lost catalog are in the default group.
pub(super) fn is_copied(kind: Kind) -> bool {
    !matches!(kind, Kind::Disk | Kind::Snapshot | Kind::Image)
}

pub(super) fn insert_group(db: &Connection, record: &GroupRecord) -> Result<(), CatalogError> {
    let name = &record.name;
    db.execute(
        "INSERT INTO resource_groups VALUES (?, ?, ?, ?) \
         ON CONFLICT (name) DO UPDATE SET location = excluded.location, tags = excluded.tags",
        params![
            name,
            record.location,
            json(name, &record.tags)?,
            time_text(name, record.created)?
        ],
    )?;
    Ok(())
}

pub(super) fn insert_placement(
    db: &Connection,
    record: &PlacementRecord,
) -> Result<(), CatalogError> {
    let name = &record.name;
    db.execute(
        "INSERT INTO placements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name, in_group = excluded.in_group, \
         location = excluded.location, tags = excluded.tags, settings = excluded.settings, \
         created = excluded.created, created_by = excluded.created_by, changed = excluded.changed, \
         changed_by = excluded.changed_by",
        params![
            record.kind.as_str(),
            name,
            record.group,
            record.location,
            json(name, &record.tags)?,
            json(name, &record.settings)?,
            time_text(name, record.created.at)?,
            record.created.by.to_string(),
            time_text(name, record.changed.at)?,
            record.changed.by.to_string(),
        ],
    )
    .map_err(|e| match constraint(e, record.kind, name, Some("")) {
        CatalogError::NotFound { .. } => missing(Kind::Group, &record.group),
        error => error,
    })?;
    Ok(())
}

pub(super) fn insert_assignment(
    db: &Connection,
    record: &RoleAssignmentRecord,
) -> Result<(), CatalogError> {
    let name = record.id.to_string();
    db.execute(
        "INSERT INTO role_assignments VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![
            name,
            record.scope,
            record.role.to_string(),
            record.principal.to_string(),
            record.principal_type,
            time_text(&name, record.created.at)?,
            record.created.by.to_string(),
        ],
    )
    .map_err(|e| constraint(e, Kind::RoleAssignment, &name, None))?;
    Ok(())
}

pub(super) fn parse_group(row: &Row) -> Result<GroupRecord, CatalogError> {
    let name: String = row.get(0)?;
    Ok(GroupRecord {
        location: row.get(1)?,
        tags: parse_json(&name, "tags", row.text(2)?)?,
        created: parse_time(&name, row.text(3)?)?,
        name,
    })
}

/// A row of [`PLACED_RESOURCES`].
pub(super) fn parse_placed(row: &Row) -> Result<(String, Option<PlacementRecord>), CatalogError> {
    let name: String = row.get(10)?;
    let is_placed = row.get::<Option<String>>(0)?.is_some();
    let placed = is_placed.then(|| parse_placement(row)).transpose()?;
    Ok((name, placed))
}

pub(super) fn parse_placement(row: &Row) -> Result<PlacementRecord, CatalogError> {
    let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
    let touch = |at: usize| {
        Ok::<_, CatalogError>(Touch {
            at: parse_time(&name, row.text(at)?)?,
            by: uuid(&name, row.text(at + 1)?)?,
        })
    };
    Ok(PlacementRecord {
        kind: Kind::from_text(&kind).ok_or_else(|| damaged(&name, format!("kind '{kind}'")))?,
        group: row.get(2)?,
        location: row.get(3)?,
        tags: parse_json(&name, "tags", row.text(4)?)?,
        settings: parse_json(&name, "settings", row.text(5)?)?,
        created: touch(6)?,
        changed: touch(8)?,
        name,
    })
}

pub(super) fn parse_assignment(row: &Row) -> Result<RoleAssignmentRecord, CatalogError> {
    let id: String = row.get(0)?;
    Ok(RoleAssignmentRecord {
        scope: row.get(1)?,
        role: uuid(&id, row.text(2)?)?,
        principal: uuid(&id, row.text(3)?)?,
        principal_type: row.get(4)?,
        created: Touch {
            at: parse_time(&id, row.text(5)?)?,
            by: uuid(&id, row.text(6)?)?,
        },
        id: uuid(&id, &id)?,
    })
}
