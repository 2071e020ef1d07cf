//! The lease of this host in a catalog that hosts share, as the processes of the host keep it.
//!
//! Every process that lives for long, an attach or a server, looks once a second whether the lease is due, and whoever
//! finds it so renews it for all. They meet by a file in the runtime directory, whose time of change is that of the last
//! renewal, and which has the id of the lease. A lock of the file keeps all but one from asking the database at once. One
//! that is stopped while it has that lock keeps nobody from it for longer than the lease is good for.
//!
//! While the database is away nothing is renewed, and nothing stops because of that: what a lease is for is in
//! `catalog/hosts.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use crate::catalog::{CatalogError, HostEntry};
use crate::host::{LEASE, RENEWAL};
use crate::{Installation, InstallationError};

/// How often it is looked whether the lease is due.
const LOOK: Duration = Duration::from_secs(1);
/// How long another machine's lease of the same name is waited for: this one may have been started anew.
const PATIENCE: Duration = Duration::from_secs(LEASE.as_secs() + 3);
/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of the file at most.
const MAX_LEN: u64 = 64;

/// The lease of this host, which this process keeps with others.
pub struct HostLease {
    path: PathBuf,
    /// Shared by all who keep it: whoever has it alone is the last.
    users: File,
}

/// Whose turn it is.
enum Turn {
    /// Nobody's: it is not due.
    NotDue,
    /// Somebody else renews it right now.
    Others,
    /// This process', with the file that it has locked, unless whoever has it locked is stuck.
    Ours(File),
}

impl HostLease {
    /// That of this host, which other processes keep, or this one from now on. `None` in a catalog that is not shared.
    /// `runtime_dir` is there.
    ///
    /// # Errors
    /// [`InstallationError::Directory`].
    pub fn beside(
        installation: &Installation,
        runtime_dir: &Path,
    ) -> Result<Option<Self>, InstallationError> {
        if !installation.catalog().is_shared() {
            return Ok(None);
        }
        let path = runtime_dir.join(format!("{}.lease", installation.id()));
        let beside = path.with_extension("leases");
        let users = open(&beside).and_then(|users| {
            flock(&users, FlockOperation::LockShared)?;
            Ok(users)
        });
        match users {
            Ok(users) => Ok(Some(Self { path, users })),
            Err(source) => Err(InstallationError::Directory {
                path: beside,
                source,
            }),
        }
    }

    /// The same once this host has a lease, before anything is begun that others are to know of.
    ///
    /// # Errors
    /// [`CatalogError::HostTaken`], also after some patience; [`InstallationError`] when the catalog cannot be reached.
    pub fn enter(
        installation: &Installation,
        runtime_dir: &Path,
    ) -> Result<Option<Self>, InstallationError> {
        let Some(this) = Self::beside(installation, runtime_dir)? else {
            return Ok(None);
        };
        let deadline = Instant::now() + PATIENCE;
        let mut is_said = false;
        loop {
            match this.renew(installation) {
                Err(InstallationError::Catalog(error @ CatalogError::HostTaken { .. }))
                    if Instant::now() < deadline =>
                {
                    if !std::mem::replace(&mut is_said, true) {
                        log::warn!(
                            "waiting, in case that was this host before it was started anew: {error}"
                        );
                    }
                    thread::sleep(RETRY);
                }
                renewed => return renewed.map(|()| Some(this)),
            }
        }
    }

    /// Keeps it from now on, until the end of the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep(self: Arc<Self>, installation: Arc<Installation>) -> io::Result<()> {
        let builder = thread::Builder::new().name("host-lease".into());
        builder.spawn(move || self.run(&installation)).map(drop)
    }

    fn run(&self, installation: &Installation) {
        let mut known = None;
        loop {
            thread::sleep(LOOK);
            let renewed = self.renew_if_due(installation);
            let why = renewed.err().map(|error| error.to_string());
            if why != known {
                match &why {
                    Some(why) => log::warn!("the lease of this host is not renewed: {why}"),
                    None => log::info!("the lease of this host is renewed again"),
                }
                known = why;
            }
        }
    }

    /// The id of the lease, as it was renewed last, by whichever process. Nothing where that cannot be told right now.
    pub fn id(&self) -> Option<Uuid> {
        let mut text = String::new();
        let file = File::open(&self.path).ok()?;
        file.take(MAX_LEN).read_to_string(&mut text).ok()?;
        Uuid::parse_str(&text).ok()
    }

    /// Renews it if it is due, and nobody else does so: for who looks after it each second.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn renew_if_due(&self, installation: &Installation) -> Result<(), InstallationError> {
        match self.turn().map_err(|source| self.directory_error(source))? {
            Turn::NotDue | Turn::Others => Ok(()),
            Turn::Ours(file) => self.renew_in(installation, &file),
        }
    }

    fn turn(&self) -> io::Result<Turn> {
        if self.age() < RENEWAL {
            return Ok(Turn::NotDue);
        }
        let file = open(&self.path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // It may have been somebody else's turn until now.
            Ok(()) if self.age() < RENEWAL => Ok(Turn::NotDue),
            Ok(()) => Ok(Turn::Ours(file)),
            Err(Errno::WOULDBLOCK) if self.age() >= LEASE => Ok(Turn::Ours(file)),
            Err(Errno::WOULDBLOCK) => Ok(Turn::Others),
            Err(error) => Err(error.into()),
        }
    }

    /// How long ago it was renewed; long ago where that cannot be told, as when the clock was set back.
    fn age(&self) -> Duration {
        let renewed = std::fs::metadata(&self.path).and_then(|file| file.modified());
        let age = renewed
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        age.unwrap_or(Duration::MAX)
    }

    fn renew(&self, installation: &Installation) -> Result<(), InstallationError> {
        let file = open(&self.path).map_err(|source| self.directory_error(source))?;
        self.renew_in(installation, &file)
    }

    fn renew_in(&self, installation: &Installation, file: &File) -> Result<(), InstallationError> {
        let lease = installation.catalog().renew_lease(&HostEntry::this())?;
        // Whoever reads it meanwhile finds as many bytes.
        file.write_all_at(lease.to_string().as_bytes(), 0)
            .map_err(|source| self.directory_error(source))
    }

    /// Ends the lease if no other process of this host keeps it. That waits for the database.
    ///
    /// # Errors
    /// [`InstallationError`]: it ends by itself.
    pub fn leave(&self, installation: &Installation) -> Result<(), InstallationError> {
        match flock(&self.users, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(_) => return Ok(()),
        }
        // Whoever enters meanwhile waits, and has a lease of its own then.
        installation.catalog().end_lease(&HostEntry::this())?;
        Ok(())
    }

    fn directory_error(&self, source: io::Error) -> InstallationError {
        InstallationError::Directory {
            path: self.path.clone(),
            source,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options.truncate(false).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use test_support::postgres::PostgresServer;

    use super::*;
    use crate::catalog::contract::Place;

    #[test]
    fn a_catalog_in_a_file_has_no_leases() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        assert!(
            HostLease::enter(&installation, dir.path())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn the_processes_of_a_host_keep_one_lease_by_turns() {
        let Some(server) = PostgresServer::shared() else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let place = Place::on(server);
        let installation = place.installation();
        let enter = || {
            let entered = HostLease::enter(&installation, dir.path());
            entered.unwrap().unwrap()
        };
        let (one, two) = (enter(), enter());
        assert_eq!(one.id(), two.id());
        assert!(matches!(two.turn().unwrap(), Turn::NotDue));
        let set = |age: Duration| {
            let file = open(&one.path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        set(RENEWAL);
        let Turn::Ours(locked) = one.turn().unwrap() else {
            panic!("it is due");
        };
        assert!(matches!(two.turn().unwrap(), Turn::Others));
        // Whoever has it locked is stuck.
        set(LEASE);
        assert!(matches!(two.turn().unwrap(), Turn::Ours(_)));
        let before = locked.metadata().unwrap();
        one.renew_in(&installation, &locked).unwrap();
        drop(locked);
        assert!(matches!(two.turn().unwrap(), Turn::NotDue));
        assert_eq!(before.len(), std::fs::metadata(&one.path).unwrap().size());
        // The clock was set back.
        let file = open(&one.path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(3600))
            .unwrap();
        assert!(matches!(two.turn().unwrap(), Turn::Ours(_)));

        let lives = || installation.catalog().hosts().unwrap()[0].lives;
        one.leave(&installation).unwrap();
        assert!(lives(), "another one keeps it");
        drop(one);
        two.leave(&installation).unwrap();
        assert!(!lives());
    }
}
