//! The tables of the catalog.

use super::{
    access_rows, departed, federated, identities, locks, logins, management_rows, noted,
    operation_rows, purged, resources, restored,
};
use database::sqlite::Schema;

/// Times are RFC 3339 text, ids the usual text form of UUIDs, so that `sqlite3` shows them; a
/// directory is a blob because a path need not be UTF-8.
pub(super) const SCHEMA: Schema = Schema {
    what: "catalog",
    application_id: 0x5EA1_0CA7,
    steps: &[
        |db| db.execute_batch(VERSION_1),
        |db| db.execute_batch(VERSION_2),
        |db| db.execute_batch(identities::TABLE),
        |db| db.execute_batch(VERSION_4),
        |db| db.execute_batch(departed::TABLE),
        |db| db.execute_batch(noted::TABLES),
        |db| db.execute_batch(VERSION_7),
        |db| db.execute_batch(management_rows::TABLES),
        |db| db.execute_batch(access_rows::TABLE),
        |db| db.execute_batch(federated::TABLE),
        |db| db.execute_batch(logins::TABLES),
        |db| db.execute_batch(operation_rows::TABLE),
        |db| db.execute_batch(resources::UNFINISHED_INDEX),
        |db| db.execute_batch(logins::USED_ASSERTIONS),
        |db| db.execute_batch(locks::TABLE),
        management_rows::make_roles_go,
        |db| db.execute_batch(restored::TABLE),
        |db| db.execute_batch(purged::TABLE),
        |db| db.execute_batch(restored::WITHOUT_BACKUP),
        |db| db.execute_batch(identities::APPLICATIONS),
    ],
};

const VERSION_1: &str = "
CREATE TABLE installation (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    operator TEXT NOT NULL,
    platform TEXT NOT NULL
) STRICT;
CREATE TABLE vaults (
    name    TEXT PRIMARY KEY,
    rev     INTEGER NOT NULL,
    url     TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL
) STRICT;
CREATE TABLE disk_encryption_sets (
    name          TEXT PRIMARY KEY,
    rev           INTEGER NOT NULL,
    principal_id  TEXT NOT NULL UNIQUE,
    key_url       TEXT NOT NULL,
    previous_keys TEXT NOT NULL,
    auto_rotation INTEGER NOT NULL,
    last_rotation TEXT,
    created       TEXT NOT NULL
) STRICT;
CREATE TABLE disks (
    id        TEXT PRIMARY KEY,
    rev       INTEGER NOT NULL,
    name      TEXT NOT NULL UNIQUE,
    directory BLOB NOT NULL,
    size      INTEGER NOT NULL,
    des       TEXT REFERENCES disk_encryption_sets (name) ON DELETE RESTRICT,
    key_url   TEXT NOT NULL,
    created   TEXT NOT NULL,
    state     TEXT NOT NULL
) STRICT;
CREATE INDEX disks_by_des ON disks (des);
";

/// Vaults and identities come in several kinds. The same managed identity can be that of several
/// sets, so `principal_id` is unique no more, which takes a new table.
const VERSION_2: &str = r#"
ALTER TABLE vaults ADD COLUMN kind TEXT NOT NULL DEFAULT '{"type":"Embedded"}';
CREATE TABLE new_sets (
    name          TEXT PRIMARY KEY,
    rev           INTEGER NOT NULL,
    identity      TEXT NOT NULL,
    principal_id  TEXT NOT NULL,
    key_url       TEXT NOT NULL,
    previous_keys TEXT NOT NULL,
    auto_rotation INTEGER NOT NULL,
    last_rotation TEXT,
    created       TEXT NOT NULL
) STRICT;
INSERT INTO new_sets
    SELECT name, rev, '{"type":"SystemAssigned"}', principal_id, key_url, previous_keys,
           auto_rotation, last_rotation, created
    FROM disk_encryption_sets;
DROP TABLE disk_encryption_sets;
ALTER TABLE new_sets RENAME TO disk_encryption_sets;
"#;

/// Snapshots and images beside disks, each with the layers that it has, from the bottom up. The layers
/// of disks from before are filled in from their headers, as any row that has fallen behind is.
const VERSION_4: &str = "
CREATE TABLE resources (
    id        TEXT PRIMARY KEY,
    rev       INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    directory BLOB NOT NULL,
    size      INTEGER NOT NULL,
    des       TEXT REFERENCES disk_encryption_sets (name) ON DELETE RESTRICT,
    key_url   TEXT NOT NULL,
    created   TEXT NOT NULL,
    state     TEXT NOT NULL,
    UNIQUE (kind, name)
) STRICT;
INSERT INTO resources
    SELECT id, rev, 'disk', name, directory, size, des, key_url, created, state FROM disks;
DROP TABLE disks;
CREATE INDEX resources_by_des ON resources (des);
CREATE TABLE layer_uses (
    resource TEXT NOT NULL REFERENCES resources (id) ON DELETE CASCADE,
    place    INTEGER NOT NULL,
    layer    TEXT NOT NULL,
    des      TEXT REFERENCES disk_encryption_sets (name) ON DELETE RESTRICT,
    key_url  TEXT NOT NULL,
    PRIMARY KEY (resource, place)
) STRICT;
CREATE INDEX layer_uses_by_des ON layer_uses (des);
CREATE TABLE merges (
    layer TEXT PRIMARY KEY
) STRICT;
";

/// Sets whose disks are encrypted twice.
const VERSION_7: &str = r#"
ALTER TABLE disk_encryption_sets ADD COLUMN encryption_type TEXT NOT NULL
    DEFAULT '"EncryptionAtRestWithCustomerKey"';
"#;
