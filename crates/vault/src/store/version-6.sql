-- How many records of one identity the vault takes in 10 seconds.
ALTER TABLE vault ADD COLUMN operations_limit INTEGER NOT NULL DEFAULT 4000;
CREATE TABLE audit_quota (
    caller TEXT PRIMARY KEY,
    until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
