//! What every catalog is tried in.

use std::path::PathBuf;

use database::postgres::ServerUrl;
use tempfile::TempDir;
use test_support::postgres::PostgresServer;

use super::DatabaseCatalog;
use crate::{CatalogAt, Installation, Place as At, prepared_state_dir};

/// Where a catalog is, with a state directory beside it.
pub(crate) struct Place {
    dir: TempDir,
    /// `None` for a file.
    url: Option<String>,
}

impl Place {
    /// An SQLite file.
    pub(crate) fn file() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            url: None,
        }
    }

    /// A schema of a server.
    pub(crate) fn on(server: &PostgresServer) -> Self {
        Self {
            url: Some(server.new_schema()),
            ..Self::file()
        }
    }

    /// The catalog there, which can be open many times.
    pub(crate) fn catalog(&self) -> DatabaseCatalog {
        match &self.url {
            None => DatabaseCatalog::open(&self.path()).unwrap(),
            Some(url) => {
                let url = ServerUrl::parse(url).unwrap();
                DatabaseCatalog::open_on_server(&url).unwrap()
            }
        }
    }

    /// An installation with that.
    pub(crate) fn installation(&self) -> Installation {
        let at = At {
            state_dir: prepared_state_dir(self.dir.path()).unwrap(),
            catalog: CatalogAt::given(self.url.as_deref()).unwrap(),
        };
        Installation::with_catalog(at, self.catalog()).unwrap()
    }

    /// The file that the catalog is in, beside which its copy is.
    pub(crate) fn in_file(&self) -> Option<PathBuf> {
        self.url.is_none().then(|| self.path())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("catalog.db")
    }
}

/// Does a test in an SQLite file, and on a PostgreSQL server where one is installed.
pub(crate) fn on_each(test: impl Fn(&Place)) {
    test(&Place::file());
    if let Some(server) = PostgresServer::shared() {
        test(&Place::on(server));
    }
}
