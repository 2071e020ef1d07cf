-- When what is due and failed is tried again.
CREATE TABLE due_retries (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next     TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
-- Who has used which key version, kept beside the audit log in the same transactions.
CREATE TABLE key_uses (
    name      TEXT NOT NULL,
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
INSERT INTO key_uses
    SELECT key, version, caller, operation, '', max(origin), min(time), max(time), count(*)
    FROM audit
    WHERE code IS NULL AND key IS NOT NULL AND version IS NOT NULL
      AND operation IN ('KeyWrap', 'KeyUnwrap', 'KeyEncrypt', 'KeyDecrypt')
    GROUP BY key, version, caller, operation;
