//! Where a vault is, and what of it is of files on this host alone.
//!
//! What a vault has beside its database is in a directory: the file of its master key, and what was seen of its log last.
//! The database is in that directory too, or on a server, which several hosts share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use database::{Connection, Database, OpenError, sqlite};

use crate::audit::Reserve;
use crate::error::is_there;
use crate::{VaultError, VaultErrorCode, store};

/// Each connection to a server is a thread here and a process there.
const READERS_OF_SERVER: usize = 2;

type Open = Box<dyn Fn() -> Result<Database, OpenError> + Send + Sync>;

/// Where a vault is.
pub struct VaultPlace {
    dir: PathBuf,
    /// `vault.db` in there. What is beside the database is named after it, wherever that is.
    path: PathBuf,
    server: Option<Open>,
    /// Room for the log in the file. A server has room, or says that it has none.
    reserve: Option<Reserve>,
    /// What reads while another connection changes something; each is opened at its first use.
    readers: Vec<Mutex<Option<Database>>>,
    /// Which of them is waited for next when all are busy.
    next: AtomicUsize,
}

impl VaultPlace {
    /// A directory with all that a vault has.
    pub fn in_directory(dir: &Path) -> Self {
        Self::new(dir, None, 1)
    }

    /// A database on a server, which `open` connects to, and a directory on this host. The tables are made by
    /// [`VAULT_POSTGRES_STEPS`](crate::VAULT_POSTGRES_STEPS).
    pub fn on_server(
        dir: &Path,
        open: impl Fn() -> Result<Database, OpenError> + Send + Sync + 'static,
    ) -> Self {
        Self::new(dir, Some(Box::new(open)), READERS_OF_SERVER)
    }

    fn new(dir: &Path, server: Option<Open>, readers: usize) -> Self {
        let path = dir.join("vault.db");
        Self {
            dir: dir.into(),
            reserve: server.is_none().then(|| Reserve::of(&path)),
            path,
            server,
            readers: (0..readers).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What files beside the database are named after.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that the database is, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.server.is_none().then_some(self.path.as_path())
    }

    /// Whether other hosts may have the vault open.
    pub(crate) fn is_shared(&self) -> bool {
        self.server.is_some()
    }

    /// Whether there can be a vault; what is on a server is seen when it is opened.
    pub(crate) fn is_there(&self) -> Result<bool, VaultError> {
        self.file().map_or(Ok(true), is_there)
    }

    /// What is said of a vault that is not there.
    pub(crate) fn lacks(&self, name: &str) -> String {
        let dir = self.dir.display();
        match self.is_shared() {
            true => format!(
                "there is no key vault '{name}' in the database that it should be in; restore that from a backup"
            ),
            false => format!(
                "there is no key vault '{name}' in {dir}; restore the directory from a backup"
            ),
        }
    }

    /// Connects to the database, making its tables where there are none.
    pub(crate) fn open(&self) -> Result<Database, VaultError> {
        match &self.server {
            Some(open) => Ok(open()?),
            None => Ok(sqlite::open(&self.path, &store::SCHEMA)?.into()),
        }
    }

    /// Device and inode of the file; nothing of a server.
    pub(crate) fn file_id(&self) -> std::io::Result<Option<(u64, u64)>> {
        use std::os::unix::fs::MetadataExt;
        let metadata = self.file().map(std::fs::metadata).transpose()?;
        Ok(metadata.map(|metadata| (metadata.dev(), metadata.ino())))
    }

    /// Looks at the database while another connection may be changing it.
    pub(crate) fn read<T>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let begun = Instant::now();
        let mut reader = self.reader()?;
        let db = match reader.take() {
            Some(db) => db,
            None => self.open()?,
        };
        let db: &Database = reader.insert(db);
        db.waited_since(begun);
        look(db)
    }

    /// A reader that nobody uses.
    fn reader(&self) -> Result<MutexGuard<'_, Option<Database>>, VaultError> {
        for reader in &self.readers {
            match reader.try_lock() {
                Ok(reader) => return Ok(reader),
                Err(TryLockError::Poisoned(reader)) => return Ok(reader.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let reader = self.readers.iter().cycle().nth(turn % READERS_OF_SERVER);
        let none = || VaultError::new(VaultErrorCode::Internal, "the key vault has no reader");
        let reader = reader.ok_or_else(none)?;
        Ok(reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the reserve up if there is no room, before the database is opened.
    pub(crate) fn release_if_full(&self) {
        if let Some(reserve) = &self.reserve {
            reserve.release_if_full();
        }
    }

    /// Makes the reserve where there is none.
    pub(crate) fn keep_reserve(&self) {
        if let Some(reserve) = &self.reserve {
            reserve.keep();
        }
    }

    /// Makes room for what must be recorded.
    pub(crate) fn make_room(&self, db: &Database) {
        if let Some(reserve) = &self.reserve {
            reserve.make_room(db);
        }
    }

    /// Whether there is room for essential records only.
    pub(crate) fn is_spent(&self) -> bool {
        self.reserve.as_ref().is_some_and(Reserve::is_spent)
    }

    /// The room that is in reserve, in bytes.
    pub(crate) fn reserve_size(&self) -> u64 {
        self.reserve.as_ref().map_or(0, Reserve::size)
    }
}
