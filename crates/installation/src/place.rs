//! Where an installation is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use database::postgres::ServerUrl;

/// The variable that has what `--catalog` has.
pub const CATALOG_VARIABLE: &str = "SEALDISK_CATALOG";

/// The catalog in the state directory.
pub(crate) const CATALOG_FILE: &str = "catalog.db";

/// Where an installation is: what is the host's own in a directory, and the catalog there too or on a server, which many
/// hosts may share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The state directory: vaults, keys of audit logs, settings and, unless it is elsewhere, the catalog.
    pub state_dir: PathBuf,
    /// Where the catalog is.
    pub catalog: CatalogAt,
}

/// Where a catalog is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CatalogAt {
    /// In the state directory.
    #[default]
    StateDir,
    /// On a PostgreSQL server.
    Server(ServerUrl),
}

impl CatalogAt {
    /// As `--catalog` says it. Nothing, or an empty word, is the state directory.
    ///
    /// # Errors
    /// What is wrong with the URL, of which nothing is repeated.
    pub fn given(url: Option<&str>) -> Result<Self, String> {
        match url {
            None | Some("") => Ok(Self::StateDir),
            Some(url) => ServerUrl::parse(url).map(Self::Server),
        }
    }

    /// The server, if it is on one.
    pub fn server(&self) -> Option<&ServerUrl> {
        match self {
            Self::StateDir => None,
            Self::Server(url) => Some(url),
        }
    }

    /// Whether it is reached over a network.
    pub fn needs_network(&self) -> bool {
        self.server().is_some_and(|url| !url.is_local())
    }
}

impl Place {
    /// The options that name it to a process of this program. Programs of before there were servers know the first only.
    pub fn options(&self) -> Vec<OsString> {
        let mut options = vec!["--state-dir".into(), self.state_dir.clone().into()];
        if let Some(url) = self.catalog.server() {
            options.extend(["--catalog".into(), url.as_str().into()]);
        }
        options
    }

    /// The file of the catalog, if it is in the state directory.
    pub(crate) fn file(&self) -> PathBuf {
        self.state_dir.join(CATALOG_FILE)
    }
}

/// One with its catalog in the state directory.
impl From<PathBuf> for Place {
    fn from(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            catalog: CatalogAt::StateDir,
        }
    }
}

impl From<&Path> for Place {
    fn from(state_dir: &Path) -> Self {
        state_dir.to_owned().into()
    }
}

impl From<&PathBuf> for Place {
    fn from(state_dir: &PathBuf) -> Self {
        state_dir.clone().into()
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_of_a_server_and_of_nothing_else() {
        let mut place = Place::from(Path::new("/state"));
        assert_eq!(place.options(), ["--state-dir", "/state"]);
        assert!(!place.catalog.needs_network());
        let url = "postgres://me@db/d?passfile=/etc/pass";
        place.catalog = CatalogAt::given(Some(url)).unwrap();
        assert_eq!(place.options(), ["--state-dir", "/state", "--catalog", url]);
        assert!(place.catalog.needs_network());
        let local = CatalogAt::given(Some("postgres:///d?host=/run/postgresql"));
        assert!(!local.unwrap().needs_network());
        for none in [None, Some("")] {
            assert_eq!(CatalogAt::given(none), Ok(CatalogAt::StateDir));
        }
        let refused = CatalogAt::given(Some("postgres://me:s3cret@db/d")).unwrap_err();
        assert!(!refused.contains("s3cret"), "{refused}");
    }
}
