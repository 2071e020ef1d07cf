-- The keys that the servers of an installation share, each sealed under a key that its hosts have, and this database has
-- not. Kind and name are part of what is sealed.
CREATE TABLE shared_keys (
    kind   text COLLATE "C" NOT NULL,
    name   text COLLATE "C" NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (kind, name)
);
