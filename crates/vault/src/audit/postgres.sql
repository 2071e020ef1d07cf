-- The tables of a log in PostgreSQL, as store.rs, counter.rs and segment.rs have those in SQLite: the same names, and the
-- same columns in the same order, since statements are written once. A text is compared byte by byte. A vault has them
-- beside its keys, an installation beside its catalog.
CREATE TABLE audit_log (
    id         bigint PRIMARY KEY CHECK (id = 1),
    log_id     text COLLATE "C" NOT NULL,
    created    text COLLATE "C" NOT NULL,
    public_key bytea NOT NULL,
    sealed_key bytea NOT NULL
);
CREATE TABLE audit (
    seq       bigint PRIMARY KEY,
    time      text COLLATE "C" NOT NULL,
    caller    text COLLATE "C" NOT NULL,
    origin    text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    key       text COLLATE "C",
    version   text COLLATE "C",
    disk      text COLLATE "C",
    detail    text COLLATE "C",
    code      text COLLATE "C",
    hash      bytea NOT NULL
);
CREATE TABLE audit_head (
    id        bigint PRIMARY KEY CHECK (id = 1),
    seq       bigint NOT NULL,
    hash      bytea NOT NULL,
    time      text COLLATE "C" NOT NULL,
    signature bytea NOT NULL
);
CREATE TABLE audit_checkpoints (
    seq       bigint PRIMARY KEY,
    hash      bytea NOT NULL,
    time      text COLLATE "C" NOT NULL,
    signature bytea NOT NULL
);
CREATE TABLE audit_open (
    id        bigint PRIMARY KEY,
    caller    text COLLATE "C" NOT NULL,
    origin    text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    key       text COLLATE "C",
    version   text COLLATE "C",
    disk      text COLLATE "C",
    detail    text COLLATE "C",
    code      text COLLATE "C",
    count     bigint NOT NULL,
    first     text COLLATE "C",
    last      text COLLATE "C",
    closes    bigint NOT NULL,
    "window"  bigint NOT NULL
);
CREATE INDEX audit_open_of ON audit_open (caller, operation);
CREATE TABLE audit_segments (
    first     bigint PRIMARY KEY,
    last      bigint NOT NULL,
    previous  bytea NOT NULL,
    hash      bytea NOT NULL,
    time      text COLLATE "C" NOT NULL,
    signature bytea NOT NULL,
    file      text COLLATE "C",
    sha256    text COLLATE "C"
);
