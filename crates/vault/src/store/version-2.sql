ALTER TABLE vault ADD COLUMN retention_days INTEGER NOT NULL DEFAULT 90;
ALTER TABLE vault ADD COLUMN purge_protection INTEGER NOT NULL DEFAULT 0;
ALTER TABLE key_versions ADD COLUMN kty TEXT NOT NULL DEFAULT 'RSA';
ALTER TABLE key_versions ADD COLUMN key_ops TEXT NOT NULL DEFAULT 'wrapKey unwrapKey';
ALTER TABLE key_versions ADD COLUMN tags TEXT NOT NULL DEFAULT '{}';
CREATE TABLE deleted_keys (
    name     TEXT PRIMARY KEY,
    deleted  TEXT NOT NULL,
    purge_at TEXT NOT NULL
) STRICT;
CREATE TABLE rotation_policies (
    name    TEXT PRIMARY KEY,
    policy  TEXT NOT NULL
) STRICT;
-- Its records are put into the chain by the first process that has the master key.
ALTER TABLE audit RENAME TO audit_unchained;
