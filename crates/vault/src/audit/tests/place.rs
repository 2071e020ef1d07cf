//! Where the logs are that are tried.

use std::path::{Path, PathBuf};

use database::Database;
use database::postgres::{self, Schema};
use tempfile::TempDir;
use test_support::postgres::PostgresServer;

use crate::audit::{AuditError, AuditLog, log};

const SCHEMA: Schema = Schema {
    what: "audit log",
    application_id: log::SCHEMA.application_id,
    steps: &[concat!(
        include_str!("../postgres.sql"),
        include_str!("../postgres-intents.sql")
    )],
};

/// What keeps a log.
#[derive(Clone, Copy)]
pub(super) enum Engine {
    /// An SQLite file.
    Sqlite,
    /// A schema of a server.
    Postgres(&'static PostgresServer),
}

/// SQLite, and PostgreSQL where that is installed.
pub(super) fn engines() -> Vec<Engine> {
    let server = PostgresServer::shared().map(Engine::Postgres);
    std::iter::once(Engine::Sqlite).chain(server).collect()
}

/// Where a log is, with a directory for what a host has of it.
pub(super) struct Place {
    dir: TempDir,
    /// `None` for a file in the directory.
    url: Option<String>,
    host: &'static str,
}

impl Place {
    /// A new one.
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            url: match engine {
                Engine::Sqlite => None,
                Engine::Postgres(server) => Some(server.new_schema()),
            },
            host: "one/host",
        }
    }

    /// The same on a server for another host, which has nothing of it yet.
    pub(super) fn of_another_host(&self) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            url: self.url.clone(),
            host: "another",
        }
    }

    /// The log there, which can be open many times.
    pub(super) fn open(&self) -> Result<AuditLog, AuditError> {
        match &self.url {
            None => AuditLog::open(&self.file()),
            Some(url) => {
                let db = postgres::open(url, &SCHEMA)?;
                AuditLog::open_shared(db, &self.key(), self.host)
            }
        }
    }

    /// The database, as somebody has it who has not got the key.
    pub(super) fn database(&self) -> Database {
        match &self.url {
            None => rusqlite::Connection::open(self.file()).unwrap().into(),
            Some(url) => postgres::open(url, &SCHEMA).unwrap(),
        }
    }

    /// The database on a server that soon ends a transaction which does nothing; `None` of a file.
    pub(super) fn impatient_database(&self) -> Option<Database> {
        let url = self.url.as_ref()?;
        let url = format!("{url}%20-c%20idle_in_transaction_session_timeout%3D100");
        Some(postgres::open(&url, &SCHEMA).unwrap())
    }

    /// The directory of the host.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file with the key.
    pub(super) fn key(&self) -> PathBuf {
        self.dir().join("audit.key")
    }

    /// What the log calls a process of the host that is gone.
    pub(super) fn gone_process(&self) -> String {
        match &self.url {
            None => "another boot/1/2".into(),
            Some(_) => format!("another boot/1/2/{}", self.host),
        }
    }

    fn file(&self) -> PathBuf {
        self.dir().join("audit.db")
    }
}
