-- A catalog as the first version of this program made it, with a row in each table.
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
INSERT INTO installation VALUES
    (1, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002');
INSERT INTO vaults VALUES ('v', 1, 'https://v.vault.localhost', '2026-01-02T03:04:05Z');
INSERT INTO disk_encryption_sets VALUES
    ('set', 4, '00000000-0000-0000-0000-000000000003', 'https://v.vault.localhost/keys/k',
     '["https://v.vault.localhost/keys/old"]', 1, NULL, '2026-01-02T03:04:05Z');
INSERT INTO disks VALUES
    ('00000000-0000-0000-0000-000000000004', 2, 'd', CAST('/d' AS BLOB), 4096, 'set',
     'https://v.vault.localhost/keys/k/0123', '2026-01-02T03:04:05Z', 'ready');
PRAGMA application_id = 0x5EA10CA7;
PRAGMA user_version = 1;
