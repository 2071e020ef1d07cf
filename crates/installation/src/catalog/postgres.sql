-- The tables of a catalog in PostgreSQL, as schema.rs has those in SQLite: the same names, in the same order, since
-- statements are written once. A text is compared byte by byte, or without case where SQLite's column says NOCASE;
-- an identity is json, which `->>` looks into.
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);

-- Seconds since 1970 by the clock of the database, under the name that SQLite has for it: that of the beginning of the
-- transaction, so that a lease is never longer than its host knows.
CREATE FUNCTION unixepoch() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT floor(extract(epoch FROM now()))::bigint
$$;

CREATE TABLE installation (
    id       bigint PRIMARY KEY CHECK (id = 1),
    operator text COLLATE "C" NOT NULL,
    platform text COLLATE "C" NOT NULL
);
-- A catalog is being moved here, by catalog migrate: there is a row until it is whole.
CREATE TABLE arriving (
    id           bigint PRIMARY KEY CHECK (id = 1),
    installation text COLLATE "C" NOT NULL,
    time         text COLLATE "C" NOT NULL
);
CREATE TABLE vaults (
    name    text COLLATE "C" PRIMARY KEY,
    rev     bigint NOT NULL,
    url     text COLLATE "C" NOT NULL UNIQUE,
    created text COLLATE "C" NOT NULL,
    kind    text COLLATE "C" NOT NULL
);
CREATE TABLE disk_encryption_sets (
    name            text COLLATE "C" PRIMARY KEY,
    rev             bigint NOT NULL,
    identity        json NOT NULL,
    principal_id    text COLLATE "C" NOT NULL,
    key_url         text COLLATE "C" NOT NULL,
    previous_keys   text COLLATE "C" NOT NULL,
    auto_rotation   bigint NOT NULL,
    last_rotation   text COLLATE "C",
    created         text COLLATE "C" NOT NULL,
    encryption_type text COLLATE "C" NOT NULL
);
CREATE TABLE resources (
    id        text COLLATE "C" PRIMARY KEY,
    rev       bigint NOT NULL,
    kind      text COLLATE "C" NOT NULL,
    name      text COLLATE "C" NOT NULL,
    directory bytea NOT NULL,
    size      bigint NOT NULL,
    des       text COLLATE "C" REFERENCES disk_encryption_sets (name) ON DELETE RESTRICT,
    key_url   text COLLATE "C" NOT NULL,
    created   text COLLATE "C" NOT NULL,
    state     text COLLATE "C" NOT NULL,
    host      text COLLATE "C",
    UNIQUE (kind, name)
);
CREATE INDEX resources_by_des ON resources (des);
CREATE INDEX resources_by_any_case ON resources (kind, name COLLATE nocase);
CREATE INDEX resources_unfinished ON resources (kind, name) WHERE state <> 'ready';
CREATE TABLE layer_uses (
    resource text COLLATE "C" NOT NULL REFERENCES resources (id) ON DELETE CASCADE,
    place    bigint NOT NULL,
    layer    text COLLATE "C" NOT NULL,
    des      text COLLATE "C" REFERENCES disk_encryption_sets (name) ON DELETE RESTRICT,
    key_url  text COLLATE "C" NOT NULL,
    PRIMARY KEY (resource, place)
);
CREATE INDEX layer_uses_by_des ON layer_uses (des);
CREATE INDEX layer_uses_by_layer ON layer_uses (layer);
CREATE TABLE hosts (
    id      text COLLATE "C" PRIMARY KEY,
    name    text COLLATE "C" NOT NULL,
    machine text COLLATE "C" NOT NULL,
    boot    text COLLATE "C" NOT NULL,
    lease   text COLLATE "C" NOT NULL,
    since   bigint NOT NULL,
    expires bigint NOT NULL,
    evicted bigint NOT NULL,
    version text COLLATE "C" NOT NULL
);
CREATE TABLE attachments (
    disk           text COLLATE "C" PRIMARY KEY REFERENCES resources (id) ON DELETE CASCADE,
    host           text COLLATE "C" NOT NULL,
    host_name      text COLLATE "C" NOT NULL,
    epoch          bigint NOT NULL,
    state          text COLLATE "C" NOT NULL,
    attach         text COLLATE "C" NOT NULL,
    since          bigint NOT NULL,
    storage_client text COLLATE "C"
);
CREATE INDEX attachments_by_host ON attachments (host) WHERE state <> 'closed';
CREATE TABLE merges (
    layer text COLLATE "C" PRIMARY KEY
);
CREATE TABLE identities (
    object_id   text COLLATE "C" PRIMARY KEY,
    rev         bigint NOT NULL,
    client_id   text COLLATE "C" NOT NULL UNIQUE,
    name        text COLLATE "C" UNIQUE,
    des         text COLLATE "C" UNIQUE REFERENCES disk_encryption_sets (name) ON DELETE CASCADE,
    secret_hash bytea,
    created     text COLLATE "C" NOT NULL,
    secret_ends text COLLATE "C",
    application bigint NOT NULL DEFAULT 0,
    CHECK ((name IS NULL) <> (des IS NULL))
);
CREATE TABLE departed (
    id        text COLLATE "C" PRIMARY KEY,
    kind      text COLLATE "C" NOT NULL,
    name      text COLLATE "C" NOT NULL,
    directory text COLLATE "C" NOT NULL,
    keys      text COLLATE "C" NOT NULL,
    reason    text COLLATE "C" NOT NULL,
    time      text COLLATE "C" NOT NULL
);
CREATE TABLE made_again (
    id   bigint PRIMARY KEY CHECK (id = 1),
    time text COLLATE "C" NOT NULL
);
CREATE TABLE noted_vaults (
    url text COLLATE "C" PRIMARY KEY
);
CREATE TABLE restored (
    id     bigint PRIMARY KEY CHECK (id = 1),
    backup text COLLATE "C",
    time   text COLLATE "C" NOT NULL
);
CREATE TABLE purged_vaults (
    url  text COLLATE "C" PRIMARY KEY,
    time text COLLATE "C" NOT NULL
);

CREATE TABLE resource_groups (
    name     text COLLATE nocase PRIMARY KEY,
    location text COLLATE "C" NOT NULL,
    tags     text COLLATE "C" NOT NULL,
    created  text COLLATE "C" NOT NULL
);
INSERT INTO resource_groups
    VALUES ('default', 'local', '{}', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
CREATE TABLE placements (
    kind       text COLLATE "C" NOT NULL,
    name       text COLLATE nocase NOT NULL,
    in_group   text COLLATE nocase NOT NULL REFERENCES resource_groups (name) ON DELETE RESTRICT,
    location   text COLLATE "C" NOT NULL,
    tags       text COLLATE "C" NOT NULL,
    settings   text COLLATE "C" NOT NULL,
    created    text COLLATE "C" NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    changed    text COLLATE "C" NOT NULL,
    changed_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE INDEX placements_by_group ON placements (in_group);
CREATE TABLE role_assignments (
    id             text COLLATE "C" PRIMARY KEY,
    scope          text COLLATE nocase NOT NULL,
    role           text COLLATE "C" NOT NULL,
    principal      text COLLATE "C" NOT NULL,
    principal_type text COLLATE "C" NOT NULL,
    created        text COLLATE "C" NOT NULL,
    created_by     text COLLATE "C" NOT NULL,
    UNIQUE (scope, role, principal)
);
CREATE INDEX role_assignments_by_principal ON role_assignments (principal);
-- A scope begins with /subscriptions/ and a UUID; there is one subscription.
CREATE INDEX role_assignments_in_subscription ON role_assignments (substr(scope, 52));
CREATE TABLE locks (
    kind       text COLLATE "C" NOT NULL,
    target     text COLLATE nocase NOT NULL,
    name       text COLLATE nocase NOT NULL,
    level      text COLLATE "C" NOT NULL,
    notes      text COLLATE "C",
    created    text COLLATE "C" NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, target, name)
);

CREATE TABLE access_grants (
    id         text COLLATE "C" PRIMARY KEY,
    resource   text COLLATE "C" NOT NULL REFERENCES resources (id) ON DELETE CASCADE,
    access     text COLLATE "C" NOT NULL,
    token      bytea NOT NULL,
    expires    text COLLATE "C" NOT NULL,
    created    text COLLATE "C" NOT NULL,
    created_by text COLLATE "C" NOT NULL
);
CREATE INDEX access_grants_by_resource ON access_grants (resource);
CREATE TABLE federated_credentials (
    identity text COLLATE "C" NOT NULL REFERENCES identities (object_id) ON DELETE CASCADE,
    name     text COLLATE nocase NOT NULL,
    issuer   text COLLATE "C" NOT NULL,
    subject  text COLLATE "C" NOT NULL,
    keys     text COLLATE "C" NOT NULL,
    created  text COLLATE "C" NOT NULL,
    PRIMARY KEY (identity, name)
);
CREATE TABLE passwords (
    identity text COLLATE "C" PRIMARY KEY REFERENCES identities (object_id) ON DELETE CASCADE,
    hash     text COLLATE "C" NOT NULL
);
CREATE TABLE device_logins (
    user_code   text COLLATE "C" PRIMARY KEY,
    device_hash bytea NOT NULL UNIQUE,
    peer        text COLLATE "C" NOT NULL,
    resource    text COLLATE "C" NOT NULL,
    created     text COLLATE "C" NOT NULL,
    expires     text COLLATE "C" NOT NULL,
    identity    text COLLATE "C" REFERENCES identities (object_id) ON DELETE CASCADE
);
CREATE TABLE used_assertions (
    hash    bytea PRIMARY KEY,
    expires bigint NOT NULL
);
CREATE TABLE operations (
    id         text COLLATE "C" PRIMARY KEY,
    in_group   text COLLATE nocase REFERENCES resource_groups (name) ON DELETE CASCADE,
    deployment text COLLATE nocase,
    target     text COLLATE "C" NOT NULL,
    state      text COLLATE "C" NOT NULL,
    cancelled  bigint NOT NULL DEFAULT 0,
    started    text COLLATE "C" NOT NULL,
    started_by text COLLATE "C" NOT NULL,
    changed    text COLLATE "C" NOT NULL,
    request    text COLLATE "C" NOT NULL,
    answer     text COLLATE "C" NOT NULL,
    host       text COLLATE "C",
    UNIQUE (in_group, deployment)
);
CREATE INDEX operations_by_state ON operations (state);

-- What a scope has behind its subscription: of something by its placement, with the name that it has or gets.
CREATE FUNCTION scope_of(a_kind text, a_type text, placed text, called text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT '/resourceGroups/' || coalesce((
        SELECT in_group FROM placements WHERE kind = a_kind COLLATE "C" AND name = placed COLLATE nocase
    ), 'default') || '/providers/' || a_type || called
$$;

-- Placement, locks and the roles at something go with it. Its group is that of its placement, which goes after them.
CREATE FUNCTION forget_placed(a_kind text, a_type text, a_name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM role_assignments
        WHERE substr(scope, 52) = scope_of(a_kind, a_type, a_name, a_name) COLLATE nocase;
    DELETE FROM placements WHERE kind = a_kind COLLATE "C" AND name = a_name COLLATE nocase;
    DELETE FROM locks WHERE kind = a_kind COLLATE "C" AND target = a_name COLLATE nocase;
END $$;

CREATE FUNCTION resource_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_placed(OLD.kind, 'Microsoft.Compute/' || OLD.kind || 's/', OLD.name);
    RETURN NULL;
END $$;
CREATE TRIGGER resource_goes AFTER DELETE ON resources FOR EACH ROW EXECUTE FUNCTION resource_goes();

CREATE FUNCTION vault_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_placed('vault', 'Microsoft.KeyVault/vaults/', OLD.name);
    RETURN NULL;
END $$;
CREATE TRIGGER vault_goes AFTER DELETE ON vaults FOR EACH ROW EXECUTE FUNCTION vault_goes();

CREATE FUNCTION set_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_placed('disk-encryption-set', 'Microsoft.Compute/diskEncryptionSets/', OLD.name);
    -- The identity of a user stays, with its roles.
    IF OLD.identity ->> 'type' <> 'UserAssigned' THEN
        DELETE FROM role_assignments WHERE principal = OLD.principal_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER set_goes AFTER DELETE ON disk_encryption_sets FOR EACH ROW EXECUTE FUNCTION set_goes();

CREATE FUNCTION set_gets_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.identity ->> 'type' <> 'UserAssigned' THEN
        DELETE FROM role_assignments WHERE principal = OLD.principal_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER set_gets_identity AFTER UPDATE OF principal_id ON disk_encryption_sets
    FOR EACH ROW WHEN (OLD.principal_id <> NEW.principal_id) EXECUTE FUNCTION set_gets_identity();

CREATE FUNCTION identity_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM forget_placed('identity', 'Microsoft.ManagedIdentity/userAssignedIdentities/', OLD.name);
    DELETE FROM role_assignments WHERE principal = OLD.object_id;
    RETURN NULL;
END $$;
CREATE TRIGGER identity_goes AFTER DELETE ON identities FOR EACH ROW EXECUTE FUNCTION identity_goes();

CREATE FUNCTION group_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM locks WHERE kind = 'group' AND target = OLD.name;
    RETURN NULL;
END $$;
CREATE TRIGGER group_goes AFTER DELETE ON resource_groups FOR EACH ROW EXECUTE FUNCTION group_goes();

-- They go along when it gets another name, and take the place of what is left there of another one.
CREATE FUNCTION resource_is_renamed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    a_type text := 'Microsoft.Compute/' || OLD.kind || 's/';
    old_scope text := scope_of(OLD.kind, a_type, OLD.name, OLD.name);
    new_scope text := scope_of(OLD.kind, a_type, OLD.name, NEW.name);
BEGIN
    IF OLD.name <> NEW.name COLLATE nocase THEN
        DELETE FROM role_assignments AS other USING role_assignments AS own
            WHERE substr(own.scope, 52) = old_scope COLLATE nocase
                AND other.scope = substr(own.scope, 1, 51) || new_scope COLLATE nocase
                AND other.role = own.role AND other.principal = own.principal;
        DELETE FROM placements AS other USING placements AS own
            WHERE own.kind = OLD.kind AND own.name = OLD.name COLLATE nocase
                AND other.kind = OLD.kind AND other.name = NEW.name COLLATE nocase;
        DELETE FROM locks AS other USING locks AS own
            WHERE own.kind = OLD.kind AND own.target = OLD.name COLLATE nocase
                AND other.kind = OLD.kind AND other.target = NEW.name COLLATE nocase AND other.name = own.name;
    END IF;
    UPDATE role_assignments SET scope = substr(scope, 1, 51) || new_scope
        WHERE substr(scope, 52) = old_scope COLLATE nocase;
    UPDATE placements SET name = NEW.name WHERE kind = OLD.kind AND name = OLD.name COLLATE nocase;
    UPDATE locks SET target = NEW.name WHERE kind = OLD.kind AND target = OLD.name COLLATE nocase;
    RETURN NULL;
END $$;
CREATE TRIGGER resource_is_renamed AFTER UPDATE OF name ON resources
    FOR EACH ROW WHEN (OLD.name <> NEW.name) EXECUTE FUNCTION resource_is_renamed();
