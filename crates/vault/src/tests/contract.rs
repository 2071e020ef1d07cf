//! What every vault is tried in.

use std::path::Path;

use database::Database;
use database::postgres::{self, Schema};
use tempfile::TempDir;
use test_support::postgres::PostgresServer;

use super::*;

const SCHEMA: Schema = Schema {
    what: VAULT_DATABASE,
    application_id: VAULT_APPLICATION_ID,
    steps: VAULT_POSTGRES_STEPS,
};

/// What runs the statements of a vault.
#[derive(Clone, Copy)]
pub(super) enum Engine {
    Sqlite,
    Postgres(&'static PostgresServer),
}

/// Does a test in SQLite files, and on a PostgreSQL server where one is installed.
pub(super) fn on_each(test: impl Fn(Engine)) {
    test(Engine::Sqlite);
    if let Some(server) = PostgresServer::shared() {
        test(Engine::Postgres(server));
    }
}

/// Where a vault is, which can be open many times.
pub(super) struct Place {
    dir: TempDir,
    /// `None` for a file.
    url: Option<String>,
}

impl Place {
    /// An empty one.
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            url: match engine {
                Engine::Sqlite => None,
                Engine::Postgres(server) => Some(server.new_schema()),
            },
        }
    }

    /// What is beside the database.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The place as a vault has it.
    pub(super) fn vault(&self) -> VaultPlace {
        self.with(self.dir())
    }

    /// The same database with another directory, as on another host.
    pub(super) fn with(&self, dir: &Path) -> VaultPlace {
        match self.url.clone() {
            None => VaultPlace::in_directory(dir),
            Some(url) => VaultPlace::on_server(dir, move || postgres::open(&url, &SCHEMA)),
        }
    }

    /// The database for somebody else than the vault.
    pub(super) fn connect(&self) -> Database {
        self.vault().open().unwrap()
    }

    /// The database for who has no master key.
    pub(super) fn database(&self) -> VaultDatabase {
        match &self.url {
            None => VaultDatabase::open(&self.dir().join("vault.db")).unwrap(),
            Some(url) => VaultDatabase::on_server(self.connect(), url).unwrap(),
        }
    }

    /// The name of its schema on a server.
    pub(super) fn schema(&self) -> Option<&str> {
        self.url.as_deref()?.rsplit("%3D").next()
    }

    /// Has the database take no record any more, or take them again.
    pub(super) fn refuse_records(&self, refuses: bool) {
        self.refuse("audit", refuses);
    }

    /// Has a table take nothing more, or take it again.
    pub(super) fn refuse(&self, table: &str, refuses: bool) {
        let sql = match (&self.url, refuses) {
            (None, true) => format!(
                "CREATE TRIGGER refusing BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
            ),
            (None, false) => "DROP TRIGGER refusing".into(),
            // Of what is added from then on.
            (Some(_), true) => {
                format!("ALTER TABLE {table} ADD CONSTRAINT refusing CHECK (false) NOT VALID")
            }
            (Some(_), false) => format!("ALTER TABLE {table} DROP CONSTRAINT refusing"),
        };
        self.connect().execute(&sql, &[]).unwrap();
    }
}
