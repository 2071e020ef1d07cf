//! An installation: its state directory, its catalog and its vaults.
//!
//! ```text
//! STATE_DIR/catalog.db
//! STATE_DIR/catalog-copy.json
//! STATE_DIR/catalog-server.json   where the catalog is, if it is not here
//! STATE_DIR/audit.{db,key}
//! STATE_DIR/{alarms,last-backup}.json
//! STATE_DIR/vaults/NAME/{vault.db,master.key}
//! STATE_DIR/disks/NAME/{header,LAYER.data,LAYER.map}
//! ```
//!
//! Where the catalog is on a server, so are `audit.db` and each `vault.db`, and hosts that share it each have a state
//! directory with the keys.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::InstallationError;
use super::files::private_dir;
use super::host::this_host;
use super::known_server::KnownServer;
use super::leftovers::left_of;
use super::on_server::{IfMissing, catalog_for, join};
use super::place::{CatalogAt, Place};
use super::server_databases::LOG;
use crate::catalog::{Catalog, CatalogError, DatabaseCatalog, InstallationRecord};
use crate::envelope::ResourceKind;
use database::postgres::{self, ServerUrl};
use vault::Caller;
use vault::audit::{AuditError, AuditLog, Reserve};
use vault::remote::TokenCache;

/// Everything that commands work on.
pub struct Installation {
    place: Place,
    catalog: Box<dyn Catalog>,
    identities: Mutex<InstallationRecord>,
    tokens: TokenCache,
}

impl Installation {
    /// Opens the installation; the first call makes it.
    ///
    /// # Errors
    /// [`InstallationError`], for a directory that others can write into too, and for a catalog that is gone, elsewhere,
    /// or another installation's.
    pub fn open(place: impl Into<Place>) -> Result<Self, InstallationError> {
        let place = place.into();
        match &place.catalog {
            CatalogAt::StateDir => Self::open_file(&place.state_dir),
            CatalogAt::Server(url) => match Self::open_at(&place, url, IfMissing::Make)? {
                Some(installation) => Ok(installation),
                None => Err(missing(&place)),
            },
        }
    }

    /// Opens the installation for those who only look: where there is none, none is made.
    ///
    /// # Errors
    /// [`InstallationError::Missing`], [`InstallationError::MissingOnServer`], and as [`Installation::open`].
    pub fn open_existing(place: impl Into<Place>) -> Result<Self, InstallationError> {
        let place = place.into();
        Self::open_if_there(&place)?.ok_or_else(|| missing(&place))
    }

    /// Opens the installation if there is one, or what is left of one.
    ///
    /// # Errors
    /// As [`Installation::open`], and [`InstallationError::Directory`]: this user may not look, which is not to be taken
    /// for none.
    pub fn open_if_there(place: impl Into<Place>) -> Result<Option<Self>, InstallationError> {
        let place = place.into();
        match &place.catalog {
            CatalogAt::StateDir => match Self::is_there(&place.state_dir)? {
                true => Self::open_file(&place.state_dir).map(Some),
                false => Ok(None),
            },
            CatalogAt::Server(url) => Self::open_at(&place, url, IfMissing::LookOnly),
        }
    }

    /// Whether there is an installation with its catalog in a directory, or what is left of one.
    fn is_there(state_dir: &Path) -> Result<bool, InstallationError> {
        let catalog = Place::from(state_dir).file();
        match catalog.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => match left_of(&catalog) {
                Some(_) => Ok(true),
                None => Ok(KnownServer::read(state_dir)?.is_some()),
            },
            Err(source) => Err(InstallationError::Directory {
                path: state_dir.into(),
                source,
            }),
        }
    }

    fn open_file(state_dir: &Path) -> Result<Self, InstallationError> {
        let place = Place::from(prepared_state_dir(state_dir)?);
        Self::refuse_elsewhere(&place.state_dir)?;
        let catalog = place.file();
        if let Some(found) = left_of(&catalog) {
            let path = catalog;
            return Err(CatalogError::Lost { path, found }.into());
        }
        // On a full file system the catalog cannot be opened either.
        Reserve::of(&place.state_dir.join("audit.db")).release_if_full();
        let catalog = DatabaseCatalog::open(&catalog)?;
        Self::with_catalog(place, catalog)
    }

    fn open_at(
        place: &Place,
        url: &ServerUrl,
        if_missing: IfMissing,
    ) -> Result<Option<Self>, InstallationError> {
        // Before there is a directory: to look makes none.
        let Some(catalog) = catalog_for(&place.state_dir, url, if_missing)? else {
            return Ok(None);
        };
        let state_dir = prepared_state_dir(&place.state_dir)?;
        let catalog_at = place.catalog.clone();
        let place = Place {
            state_dir,
            catalog: catalog_at,
        };
        let installation = Self::with_catalog(place, catalog)?;
        join(installation.state_dir(), installation.id(), url)?;
        Ok(Some(installation))
    }

    /// Whether this program can open the installation, in which nothing is changed.
    ///
    /// # Errors
    /// [`InstallationError`]: why not.
    pub fn look(place: impl Into<Place>) -> Result<(), InstallationError> {
        let place = place.into();
        let Some(url) = place.catalog.server() else {
            Self::refuse_elsewhere(&place.state_dir)?;
            return Ok(DatabaseCatalog::look(&place.file())?);
        };
        match DatabaseCatalog::look_on_server(url)? {
            true => Ok(()),
            false => Err(missing(&place)),
        }
    }

    /// Refuses to use, or to make, a catalog in a state directory whose catalog is on a server.
    ///
    /// # Errors
    /// [`CatalogError::Elsewhere`].
    pub fn refuse_elsewhere(state_dir: &Path) -> Result<(), CatalogError> {
        match KnownServer::read(state_dir)? {
            None => Ok(()),
            Some(known) => Err(CatalogError::Elsewhere {
                state_dir: state_dir.into(),
                place: known.server,
            }),
        }
    }

    /// With a catalog that is there.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn with_catalog(
        place: impl Into<Place>,
        catalog: DatabaseCatalog,
    ) -> Result<Self, InstallationError> {
        Ok(Self {
            identities: Mutex::new(catalog.installation()?),
            catalog: Box::new(catalog),
            tokens: TokenCache::default(),
            place: place.into(),
        })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Ends the threads and connections of the catalog, until it is used again: for a process that is about to give up
    /// what each thread gives up for itself.
    pub fn rest(&self) {
        self.catalog.rest();
    }

    /// The catalog.
    pub fn catalog(&self) -> &dyn Catalog {
        self.catalog.as_ref()
    }

    /// Whether the catalog is what others find who open the installation now: one that was lost, and perhaps made
    /// again, is still there for who has it open.
    pub fn is_current(&self) -> bool {
        self.catalog.is_current()
    }

    /// Goes over to a catalog that was made again in the place of the one that is open, for those who have the
    /// installation open for long: what is changed from then on, such as the removal of an identity, only the new one
    /// knows. While there is none at all the old one is used on.
    ///
    /// # Errors
    /// [`InstallationError`]: the new one cannot be used, and nothing may be concluded from the old one.
    pub fn renew(&self) -> Result<(), InstallationError> {
        if let Some(identities) = self.catalog.renew()? {
            *self.identities() = identities;
        }
        Ok(())
    }

    fn identities(&self) -> MutexGuard<'_, InstallationRecord> {
        // It is replaced as a whole.
        self.identities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.place.state_dir
    }

    /// Tells the installation from others: the tenant of its identities.
    pub fn id(&self) -> Uuid {
        self.identities().id()
    }

    /// Where what is of that kind is kept that was not given a `--data-dir`.
    pub fn resources_dir(&self, kind: ResourceKind) -> PathBuf {
        self.state_dir().join(match kind {
            ResourceKind::Disk => "disks",
            ResourceKind::Snapshot => "snapshots",
            ResourceKind::Image => "images",
        })
    }

    /// Where the embedded vaults are kept.
    pub fn vaults_dir(&self) -> PathBuf {
        self.state_dir().join("vaults")
    }

    /// The tokens of managed identities that this process was given.
    pub fn tokens(&self) -> &TokenCache {
        &self.tokens
    }

    /// The log of what this installation does with keys that no vault sees: DEKs that are handed to
    /// data planes and destroyed, sets that are changed. The first call makes it. With a catalog on a server it is
    /// beside that, and each host has its key.
    ///
    /// # Errors
    /// [`InstallationError::Audit`].
    pub fn audit_log(&self) -> Result<AuditLog, InstallationError> {
        let Some(url) = self.place.catalog.server() else {
            return Ok(AuditLog::open(&self.state_dir().join("audit.db"))?);
        };
        let db = postgres::open(url.as_str(), &LOG).map_err(AuditError::from)?;
        Ok(AuditLog::open_shared(
            db,
            &self.audit_key_file(),
            this_host(),
        )?)
    }

    /// The key of the installation's log: of one on a server each host has it.
    pub fn audit_key_file(&self) -> PathBuf {
        self.state_dir().join("audit.key")
    }

    /// Whether this host has the key of the log, where hosts share that. Nothing is made, and nothing is recorded.
    ///
    /// # Errors
    /// [`InstallationError::Audit`]: what it lacks.
    pub fn check_audit_key(&self) -> Result<(), InstallationError> {
        let Some(url) = self.place.catalog.server() else {
            return Ok(());
        };
        let found = postgres::open_as_it_is(url.as_str(), &LOG).map_err(AuditError::from)?;
        match found {
            Some(db) => Ok(AuditLog::check_shared_key(&db, &self.audit_key_file())?),
            None => Ok(()),
        }
    }

    /// The identity on whose behalf the command line manages vaults.
    pub fn operator(&self) -> Caller {
        Caller::local(self.identities().operator)
    }

    /// The principal that uses the platform-managed key.
    pub fn platform(&self) -> Caller {
        Caller::local(self.identities().platform)
    }
}

/// Why there is none where one is to be looked at.
fn missing(place: &Place) -> InstallationError {
    match place.catalog.server() {
        None => InstallationError::Missing {
            path: place.state_dir.clone(),
        },
        Some(url) => InstallationError::MissingOnServer {
            place: url.to_string(),
        },
    }
}

/// The state directory as an absolute path, with what belongs into it: what is recorded must mean the
/// same from every working directory.
pub fn prepared_state_dir(state_dir: &Path) -> Result<PathBuf, InstallationError> {
    private_dir(state_dir)?;
    let state_dir =
        std::path::absolute(state_dir).map_err(|source| InstallationError::Directory {
            path: state_dir.into(),
            source,
        })?;
    for below in ["vaults", "disks"] {
        private_dir(&state_dir.join(below))?;
    }
    Ok(state_dir)
}

/// `/var/lib/sealdisk` for root, the XDG state directory for other users.
///
/// # Errors
/// [`InstallationError::NoStateDirectory`] when the environment names no home.
pub fn default_state_dir() -> Result<PathBuf, InstallationError> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/sealdisk".into());
    }
    // The XDG base directory specification has relative paths ignored.
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("sealdisk"))
        .ok_or(InstallationError::NoStateDirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogCopy;

    fn lose_catalog(state: &Path) {
        for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
            let _ = std::fs::remove_file(state.join(name));
        }
    }

    fn made_again(path: &Path) -> (DatabaseCatalog, InstallationRecord) {
        let own = InstallationRecord {
            operator: Uuid::new_v4(),
            platform: Uuid::new_v4(),
        };
        let empty = CatalogCopy::new(own, Vec::new(), Vec::new(), Vec::new(), Vec::new());
        (DatabaseCatalog::make_again(path, &empty).unwrap(), own)
    }

    #[test]
    fn a_catalog_that_was_made_again_is_seen_by_who_had_the_lost_one_open() {
        const PURGED: &str = "https://v.vault.localhost";
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        drop(Installation::open(&state).unwrap());
        let held = Installation::open(&state).unwrap();
        assert!(held.is_current());
        let (before, path) = (held.operator(), state.join("catalog.db"));
        held.catalog().note_purged_vault(PURGED).unwrap();
        lose_catalog(&state);
        // Until there is another one.
        held.renew().unwrap();
        assert!(!held.is_current() && !path.exists());
        assert_eq!(held.operator(), before);
        let purged = || held.catalog().vault_purged_at(PURGED).unwrap();
        assert!(purged().is_some());

        for _ in 0..2 {
            let (made, own) = made_again(&path);
            held.renew().unwrap();
            assert!(held.is_current());
            assert_eq!(held.operator(), Caller::local(own.operator));
            assert_eq!(held.platform(), Caller::local(own.platform));
            assert!(purged().is_none());
            made.note_purged_vault(PURGED).unwrap();
            assert!(purged().is_some());
            // What was open before has left the files of the new one alone.
            drop(made);
            let known = DatabaseCatalog::open(&path).unwrap();
            assert!(known.vault_purged_at(PURGED).unwrap().is_some());
            lose_catalog(&state);
        }
    }

    #[test]
    fn nothing_is_concluded_from_a_lost_catalog_while_the_new_one_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let held = Installation::open(&state).unwrap();
        held.renew().unwrap();
        lose_catalog(&state);
        let path = state.join("catalog.db");
        // One that somebody is making.
        std::fs::write(&path, "").unwrap();
        held.renew().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [b'x'; 8192]).unwrap();
        for _ in 0..2 {
            held.renew().unwrap_err();
        }
        std::fs::remove_file(&path).unwrap();
        let (_made, own) = made_again(&path);
        held.renew().unwrap();
        assert_eq!(held.operator(), Caller::local(own.operator));
    }

    #[test]
    fn to_look_makes_no_installation() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("none/state");
        let looked = Installation::open_existing(&state);
        assert!(matches!(looked, Err(InstallationError::Missing { .. })));
        assert!(!dir.path().join("none").exists());
        drop(Installation::open(&state).unwrap());
        Installation::open_existing(&state).unwrap();
        std::fs::write(state.join("audit.db"), "").unwrap();
        std::fs::remove_file(state.join("catalog.db")).unwrap();
        let lost = Installation::open_existing(&state);
        let is_lost =
            |error| matches!(error, InstallationError::Catalog(CatalogError::Lost { .. }));
        assert!(lost.is_err_and(is_lost));
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        // What the system says of it is not that there is nothing.
        let looked = Installation::open_existing(&file.join("state"));
        let looked = looked.err().unwrap();
        assert!(
            matches!(looked, InstallationError::Directory { .. }),
            "{looked}"
        );
        assert!(Installation::open_if_there(dir.path()).unwrap().is_none());
    }

    #[test]
    fn principals_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = Installation::open(&state).unwrap();
        let second = Installation::open(&state).unwrap();
        assert_eq!(first.operator(), second.operator());
        assert_eq!(first.platform(), second.platform());
        assert_ne!(first.operator(), first.platform());
        assert!(
            second.resources_dir(ResourceKind::Disk).is_absolute() && second.vaults_dir().is_dir()
        );
    }
}
