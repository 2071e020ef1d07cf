-- Names of keys are compared without case, as Azure compares them, and keep the case in which they were
-- given first. SQLite cannot change a column's collation, so the tables are made anew.
CREATE TABLE new_key_versions (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL COLLATE NOCASE,
    version    TEXT NOT NULL,
    rev        INTEGER NOT NULL,
    enabled    INTEGER NOT NULL,
    not_before TEXT,
    expires    TEXT,
    created    TEXT NOT NULL,
    updated    TEXT NOT NULL,
    n          BLOB NOT NULL,
    e          BLOB NOT NULL,
    sealed     BLOB NOT NULL,
    kty        TEXT NOT NULL,
    key_ops    TEXT NOT NULL,
    tags       TEXT NOT NULL,
    UNIQUE (name, version)
) STRICT;
INSERT INTO new_key_versions
    SELECT seq, name, version, rev, enabled, not_before, expires, created, updated, n, e, sealed, kty,
           key_ops, tags
    FROM key_versions;
-- Numbers of versions are never given twice.
DELETE FROM sqlite_sequence WHERE name = 'new_key_versions';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'new_key_versions', seq FROM sqlite_sequence WHERE name = 'key_versions';
DROP TABLE key_versions;
ALTER TABLE new_key_versions RENAME TO key_versions;

CREATE TABLE new_deleted_keys (
    name     TEXT PRIMARY KEY COLLATE NOCASE,
    deleted  TEXT NOT NULL,
    purge_at TEXT NOT NULL
) STRICT;
INSERT INTO new_deleted_keys SELECT name, deleted, purge_at FROM deleted_keys;
DROP TABLE deleted_keys;
ALTER TABLE new_deleted_keys RENAME TO deleted_keys;

CREATE TABLE new_rotation_policies (
    name   TEXT PRIMARY KEY COLLATE NOCASE,
    policy TEXT NOT NULL
) STRICT;
INSERT INTO new_rotation_policies SELECT name, policy FROM rotation_policies;
DROP TABLE rotation_policies;
ALTER TABLE new_rotation_policies RENAME TO rotation_policies;

CREATE TABLE new_due_retries (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL COLLATE NOCASE,
    attempts INTEGER NOT NULL,
    next     TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
INSERT INTO new_due_retries SELECT kind, name, attempts, next FROM due_retries;
DROP TABLE due_retries;
ALTER TABLE new_due_retries RENAME TO due_retries;

CREATE TABLE new_key_uses (
    name      TEXT NOT NULL COLLATE NOCASE,
    version   TEXT NOT NULL,
    caller    TEXT NOT NULL,
    operation TEXT NOT NULL,
    disk      TEXT NOT NULL,
    origin    TEXT NOT NULL,
    first     TEXT NOT NULL,
    last      TEXT NOT NULL,
    uses      INTEGER NOT NULL,
    PRIMARY KEY (name, version, caller, operation, disk)
) STRICT, WITHOUT ROWID;
-- The log has names as they were asked for; a purged key's other spelling may be among them.
INSERT INTO new_key_uses
    SELECT name, version, caller, operation, disk, max(origin), min(first), max(last), sum(uses)
    FROM key_uses
    GROUP BY name COLLATE NOCASE, version, caller, operation, disk;
DROP TABLE key_uses;
ALTER TABLE new_key_uses RENAME TO key_uses;
