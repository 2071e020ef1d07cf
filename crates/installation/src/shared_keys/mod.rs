//! Keys that the servers of an installation share: those that sign tokens and assertions, and that of the TLS authority.
//!
//! With a catalog in the state directory they are files there, `STATE_DIR/KIND/NAME`, which only their owner can read. With
//! one on a server they are rows beside it, so that each server has all of them at once: a token that one has given is
//! taken by the others, and who trusts the authority trusts all. In the database each is sealed under a key that is made
//! of `audit.key`, which every host of the installation has and the database has not: who reads the database can sign
//! nothing, and who writes to it can put no key of their own into it. What is sealed says its kind and its name, so that
//! none can be put in the place of another one; one that was removed can be put back, which a retired key of tokens does
//! not make valid for longer than its tokens were.

mod directory;
mod server;

use std::path::{Path, PathBuf};

use database::postgres::ServerUrl;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{Installation, InstallationError};
use directory::Directory;
use server::{Sealed, ServerKeys};

/// Where the keys of a kind are.
#[derive(Clone)]
pub struct KeyStore(At);

#[derive(Clone)]
enum At {
    Directory(PathBuf),
    Server(ServerKeys),
}

/// The keys of a kind, which nobody else changes until this is dropped.
pub struct OpenKeys(Open);

enum Open {
    Directory(Directory),
    Server(Box<Sealed>),
}

impl KeyStore {
    /// Files in a directory, which is made when it is looked into.
    pub fn in_directory(dir: &Path) -> Self {
        Self(At::Directory(dir.into()))
    }

    /// Rows beside the catalog at that URL, of an installation whose hosts have the key in that file.
    pub(crate) fn on_server(
        url: &ServerUrl,
        kind: &'static str,
        installation: Uuid,
        sealing_key: &Path,
    ) -> Self {
        Self(At::Server(ServerKeys {
            url: url.clone(),
            kind,
            installation,
            sealing_key: sealing_key.into(),
        }))
    }

    /// Waits until nobody else changes them.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn open(&self) -> Result<OpenKeys, InstallationError> {
        Ok(OpenKeys(match &self.0 {
            At::Directory(dir) => Open::Directory(Directory::open(dir)?),
            At::Server(server) => Open::Server(Box::new(server.open()?)),
        }))
    }

    /// Whether each host has them all.
    pub fn is_shared(&self) -> bool {
        matches!(self.0, At::Server(_))
    }

    /// Where a key is, for messages.
    pub fn place_of(&self, name: &str) -> PathBuf {
        match &self.0 {
            At::Directory(dir) => dir.join(name),
            At::Server(server) => server.place_of(name),
        }
    }
}

impl OpenKeys {
    /// The names of all, in order.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn names(&self) -> Result<Vec<String>, InstallationError> {
        match &self.0 {
            Open::Directory(keys) => keys.names(),
            Open::Server(keys) => keys.names(),
        }
    }

    /// A key; `None` where there is none of that name.
    ///
    /// # Errors
    /// [`InstallationError::KeyFile`] also for one that others can read, [`InstallationError::SharedKey`].
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, InstallationError> {
        match &self.0 {
            Open::Directory(keys) => keys.read(name),
            Open::Server(keys) => keys.read(name),
        }
    }

    /// As [`OpenKeys::read`], of a file whoever else can read that.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn read_unguarded(
        &self,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, InstallationError> {
        match &self.0 {
            Open::Directory(keys) => keys.read_unguarded(name),
            Open::Server(keys) => keys.read(name),
        }
    }

    /// Stores a key, in the place of the one that has its name; it is durable then. What is no secret may be read by all.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn put(
        &self,
        name: &str,
        content: &[u8],
        is_secret: bool,
    ) -> Result<(), InstallationError> {
        match &self.0 {
            Open::Directory(keys) => keys.put(name, content, is_secret),
            Open::Server(keys) => keys.put(name, content),
        }
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn remove(&self, name: &str) -> Result<(), InstallationError> {
        match &self.0 {
            Open::Directory(keys) => keys.remove(name),
            Open::Server(keys) => keys.remove(name),
        }
    }
}

impl Installation {
    /// The keys of a kind: `tokens`, `tls` or `federation`.
    ///
    /// # Errors
    /// [`InstallationError::Audit`] on a host that has not got `audit.key` yet.
    pub fn key_store(&self, kind: &'static str) -> Result<KeyStore, InstallationError> {
        if self.place().catalog.server().is_some() {
            match self.audit_key_file().exists() {
                true => self.check_audit_key()?,
                // The first host makes it with the log.
                false => drop(self.audit_log()?),
            }
        }
        Ok(self.key_place(kind))
    }

    /// The same, without a look at whether this host can use them.
    pub(crate) fn key_place(&self, kind: &'static str) -> KeyStore {
        match self.place().catalog.server() {
            None => KeyStore::in_directory(&self.state_dir().join(kind)),
            Some(url) => KeyStore::on_server(url, kind, self.id(), &self.audit_key_file()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use test_support::postgres::PostgresServer;

    use super::*;
    use crate::{CatalogAt, Place};

    fn used(keys: &KeyStore) {
        let open = keys.open().unwrap();
        assert!(open.names().unwrap().is_empty());
        assert!(open.read("a").unwrap().is_none());
        for content in ["1", "2"] {
            open.put("b", content.as_bytes(), true).unwrap();
            open.put("a", b"x", false).unwrap();
            let read = open.read("b").unwrap().unwrap();
            assert_eq!(read.as_slice(), content.as_bytes());
        }
        assert_eq!(open.names().unwrap(), ["a", "b"]);
        open.remove("b").unwrap();
        open.remove("b").unwrap();
        assert_eq!(open.names().unwrap(), ["a"]);
    }

    #[test]
    fn keys_are_kept_replaced_and_removed_in_either_place() {
        let dir = tempfile::tempdir().unwrap();
        used(&KeyStore::in_directory(&dir.path().join("keys")));
        let Some(server) = PostgresServer::shared() else {
            return;
        };
        let place = Place {
            state_dir: dir.path().join("state"),
            catalog: CatalogAt::given(Some(&server.new_schema())).unwrap(),
        };
        let installation = Installation::open(place).unwrap();
        used(&installation.key_store("tokens").unwrap());
        let other = installation.key_store("federation").unwrap();
        assert!(other.open().unwrap().names().unwrap().is_empty());
        assert!(!installation.state_dir().join("tokens").exists());
    }

    #[test]
    fn a_database_shows_no_key_and_takes_none_from_who_has_not_got_that_of_the_hosts() {
        let Some(server) = PostgresServer::shared() else {
            return;
        };
        let url = server.new_schema();
        let schema = url.rsplit_once("%3D").unwrap().1;
        let hosts = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let open = |host: &tempfile::TempDir| {
            let catalog = CatalogAt::given(Some(&url)).unwrap();
            let state_dir = host.path().to_owned();
            Installation::open(Place { state_dir, catalog }).unwrap()
        };
        let (one, other) = (open(&hosts[0]), open(&hosts[1]));
        let keys = one.key_store("tokens").unwrap();
        let put = |name: &str| keys.open().unwrap().put(name, b"secret of tokens", true);
        put("a").unwrap();
        put("b").unwrap();
        let stored = format!("SELECT encode(sealed, 'escape') FROM {schema}.shared_keys");
        assert!(!server.sql(&stored).contains("secret of"));
        // A host that was not given the key yet, and then was.
        let refused = other.key_store("tokens").err().unwrap().to_string();
        assert!(refused.contains("audit.key"), "{refused}");
        fs::copy(one.audit_key_file(), other.audit_key_file()).unwrap();
        let theirs = other.key_store("tokens").unwrap();
        let read = theirs.open().unwrap().read("a").unwrap().unwrap();
        assert_eq!(read.as_slice(), b"secret of tokens");
        // One in the place of another.
        server.sql(&format!(
            "UPDATE {schema}.shared_keys SET sealed = (SELECT sealed FROM {schema}.shared_keys WHERE name = 'a') \
             WHERE name = 'b'"
        ));
        let refused = theirs.open().unwrap().read("b").err().unwrap();
        assert!(
            matches!(refused, InstallationError::SharedKey { .. }),
            "{refused}"
        );
    }
}
