-- When the vault was deleted, and until when it can be recovered.
ALTER TABLE vault ADD COLUMN deleted TEXT;
ALTER TABLE vault ADD COLUMN purge_at TEXT;
-- Where the master key is, as JSON; NULL is the place that it had before there was a choice.
ALTER TABLE vault ADD COLUMN master TEXT;
-- The keys of backups that were made under earlier master keys, sealed under the present one.
CREATE TABLE backup_keys (
    seq    INTEGER PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT;
