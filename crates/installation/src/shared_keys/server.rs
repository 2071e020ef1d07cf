//! Keys in rows of a database on a server, sealed.

use std::path::{Path, PathBuf};

use database::postgres::{self, ServerUrl};
use database::{Database, Exclusive, params};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::InstallationError;
use crate::catalog::CatalogError;
use crate::server_databases::KEYS;
use keys::{FileGuard, SealingError, SealingKey};

/// What the key that they are sealed under is derived for.
const PURPOSE: &[u8] = b"sealdisk shared keys v1\0";

/// The keys of a kind.
#[derive(Clone)]
pub(super) struct ServerKeys {
    pub(super) url: ServerUrl,
    pub(super) kind: &'static str,
    pub(super) installation: Uuid,
    /// The file with the key that the one is made of which they are sealed under.
    pub(super) sealing_key: PathBuf,
}

/// The same, which nobody else changes.
pub(super) struct Sealed {
    keys: ServerKeys,
    sealing: SealingKey,
    db: Database,
    /// It has a connection of its own.
    _alone: Exclusive<Box<Database>>,
}

impl ServerKeys {
    pub(super) fn open(&self) -> Result<Sealed, InstallationError> {
        let sealing = SealingKey::load(&self.sealing_key, FileGuard::Mode)
            .and_then(|key| key.subkey(PURPOSE))
            .map_err(|source| self.failed("", source))?;
        let connect = || postgres::open(self.url.as_str(), &KEYS).map_err(CatalogError::from);
        let name = format!("keys/{}", self.kind);
        let alone = Exclusive::take(Box::new(connect()?), &name).map_err(CatalogError::from)?;
        Ok(Sealed {
            keys: self.clone(),
            sealing,
            db: connect()?,
            _alone: alone,
        })
    }

    pub(super) fn place_of(&self, name: &str) -> PathBuf {
        Path::new(&self.url.to_string()).join(self.kind).join(name)
    }

    fn failed(&self, name: &str, source: SealingError) -> InstallationError {
        InstallationError::SharedKey {
            name: self.place_of(name).display().to_string(),
            key: self.sealing_key.clone(),
            source,
        }
    }
}

impl Sealed {
    pub(super) fn names(&self) -> Result<Vec<String>, InstallationError> {
        let sql = "SELECT name FROM shared_keys WHERE kind = ? ORDER BY name";
        let names = self
            .db
            .select(sql, params![self.keys.kind], |row| row.get(0));
        Ok(names.map_err(of_database)?)
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, InstallationError> {
        let sql = "SELECT sealed FROM shared_keys WHERE kind = ? AND name = ?";
        let found: Option<Vec<u8>> = self
            .db
            .value(sql, params![self.keys.kind, name])
            .map_err(of_database)?;
        let opened = found.map(|sealed| self.sealing.open(&self.slot(name), &sealed));
        opened
            .transpose()
            .map_err(|source| self.keys.failed(name, source))
    }

    pub(super) fn put(&self, name: &str, content: &[u8]) -> Result<(), InstallationError> {
        let sealed = self
            .sealing
            .seal(&self.slot(name), content)
            .map_err(|source| self.keys.failed(name, source))?;
        let sql = "INSERT INTO shared_keys VALUES (?, ?, ?) \
                   ON CONFLICT (kind, name) DO UPDATE SET sealed = excluded.sealed";
        let put = self
            .db
            .execute(sql, params![self.keys.kind, name, sealed.as_slice()]);
        put.map_err(of_database)?;
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), InstallationError> {
        let sql = "DELETE FROM shared_keys WHERE kind = ? AND name = ?";
        let removed = self.db.execute(sql, params![self.keys.kind, name]);
        removed.map_err(of_database)?;
        Ok(())
    }

    /// Which key it is, which no other one can be taken for.
    fn slot(&self, name: &str) -> Vec<u8> {
        let mut slot = PURPOSE.to_vec();
        slot.extend(self.keys.installation.as_bytes());
        for part in [self.keys.kind, name] {
            slot.extend((part.len() as u64).to_le_bytes());
            slot.extend(part.as_bytes());
        }
        slot
    }
}

fn of_database(error: database::Error) -> CatalogError {
    error.into()
}
