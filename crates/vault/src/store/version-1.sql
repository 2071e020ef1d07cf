CREATE TABLE vault (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    vault_id     TEXT NOT NULL,
    name         TEXT NOT NULL,
    created      TEXT NOT NULL,
    master_check BLOB NOT NULL
) STRICT;
CREATE TABLE key_versions (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
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
    UNIQUE (name, version)
) STRICT;
CREATE TABLE access_policies (
    object_id   TEXT PRIMARY KEY,
    rev         INTEGER NOT NULL,
    permissions TEXT NOT NULL
) STRICT;
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    time      TEXT NOT NULL,
    caller    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    detail    TEXT,
    outcome   TEXT NOT NULL CHECK (outcome IN ('allowed', 'refused')),
    code      TEXT
) STRICT;
