//! Making a disk's directory so that it is there as a whole or not at all, and finding what an
//! interrupted command left.
//!
//! # Order of steps
//!
//! A disk is made in `PARENT/.NAME.creating-UUID`, whose lock (`directory_lock.rs`) the maker has until it is done:
//!
//! 1. make the directory and lock it, and give it another such name, as a trial of step 4;
//! 2. add the catalog's row, state *creating*, which reserves the name and says where that is;
//! 3. make the files, the header last: without it nobody, not even the maker, has the DEK;
//! 4. rename the directory to `PARENT/NAME` (which must not exist; on some file systems it becomes an
//!    empty directory first) and sync `PARENT`;
//! 5. set the row to *ready* with the final directory.
//!
//! Killed after 1 or 2 or in 3, a directory is left that nobody has locked, perhaps with a row: the
//! next `disk create` or `disk list` removes both, and in 4 the empty directory. (A server looks for what has
//! no row, an empty directory, once a minute at most.) Killed after 4, the
//! disk is whole and its header has the row's id: the next command does step 5. The row goes when neither directory is
//! there, and stays while that cannot be seen. A failure or a signal undoes the steps.
//!
//! In a catalog that hosts share, a row says which host has begun it. Another one leaves it alone while that host has its
//! lease, and in any case where it would be in a state directory, of which each host has one of its own.
//!
//! Deleting: lock the directory and the data, set the row to *deleting*, erase the header, set the row to
//! *erased*, remove files and directory, delete the row. Killed anywhere in between, the next command goes
//! on. A row that is not *erased* when there is no header is replaced by a record of that: what was not
//! seen to be erased may still exist. So is one whose directory has another disk's header; that directory
//! is left as it is.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::resource::directory::{header_claims, parent_of};
use crate::resource::directory_lock::{DirectoryLock, lock_directory};
use crate::resource::erase::{erase, forget, has_another_header, remove_files};
use crate::resource::error::DiskError;
use installation::Installation;
use installation::catalog::{CatalogError, DiskRecord, DiskState, Stored};
use installation::envelope::{EnvelopeError, ResourceKind};
use installation::files::{rename_new, sync_dir};

const INFIX: &str = ".creating-";

/// A disk in the making. Unless it is finished, dropping it removes all of it.
pub(crate) struct Staging<'a> {
    installation: &'a Installation,
    directory: PathBuf,
    lock: Option<DirectoryLock>,
    row: Option<Stored<DiskRecord>>,
}

impl<'a> Staging<'a> {
    /// Step 1.
    pub(crate) fn begin(
        installation: &'a Installation,
        parent: &Path,
        kind: ResourceKind,
        name: &str,
    ) -> Result<Self, DiskError> {
        const TRIES: u32 = 10;
        let unused = || unused(parent, &format!(".{name}"));
        for _ in 0..TRIES {
            let directory = unused();
            DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(DiskError::file("create", &directory))?;
            match lock_directory(&directory) {
                Ok(Some(lock)) => {
                    let mut staging = Self {
                        installation,
                        directory,
                        lock: Some(lock),
                        row: None,
                    };
                    let other = unused();
                    rename_new(&staging.directory, &other)
                        .map_err(DiskError::file("rename directories in", parent))?;
                    staging.directory = other;
                    return Ok(staging);
                }
                // A sweep took the new, still unlocked directory for a left one and removes it.
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    // The next sweep removes it if this does not.
                    let _ = fs::remove_dir(&directory);
                    return Err(DiskError::file("lock", &directory)(e));
                }
            }
        }
        Err(DiskError::Unfinished {
            kind,
            name: name.into(),
            doing: "created",
        })
    }

    /// Where the disk's files are to be made.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Step 2; `record` says what the disk will be.
    pub(crate) fn reserve(&mut self, record: DiskRecord) -> Result<(), DiskError> {
        let record = DiskRecord {
            directory: self.directory.clone(),
            state: DiskState::Creating,
            ..record
        };
        let rev = self.installation.catalog().insert_disk(&record)?;
        self.row = Some(Stored { rev, record });
        Ok(())
    }

    /// Steps 4 and 5.
    pub(crate) fn finish(mut self, directory: &Path) -> Result<(), DiskError> {
        rename_new(&self.directory, directory).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => DiskError::PathTaken {
                path: directory.into(),
            },
            _ => DiskError::file("create", directory)(e),
        })?;
        // What has to be undone from here on is there.
        self.directory = directory.into();
        if let Some(parent) = directory.parent() {
            sync_dir(parent).map_err(DiskError::file("sync", parent))?;
        }
        if let Some(row) = &self.row {
            ready(self.installation, row, directory)?;
        }
        self.row = None;
        self.directory = PathBuf::new();
        Ok(())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if self.directory.as_os_str().is_empty() {
            return;
        }
        let removed = remove_files(&self.directory, self.lock.take());
        let undone = removed.and_then(|()| match &self.row {
            Some(row) => {
                let catalog = self.installation.catalog();
                Ok(catalog.delete_disk(&row.record, row.rev)?)
            }
            None => Ok(()),
        });
        if let Err(e) = undone {
            log::warn!("the next command will clean up after this one: {e}");
        }
    }
}

/// A name in which something is made, and that nobody has; `stem` is what it is to be called, behind a dot.
fn unused(parent: &Path, stem: &str) -> PathBuf {
    parent.join(format!("{stem}{INFIX}{}", Uuid::new_v4()))
}

/// Sets a row to *ready* in its final directory.
fn ready(
    installation: &Installation,
    row: &Stored<DiskRecord>,
    directory: &Path,
) -> Result<(), CatalogError> {
    let record = DiskRecord {
        directory: directory.into(),
        state: DiskState::Ready,
        ..row.record.clone()
    };
    installation.catalog().update_disk(row.rev, &record)?;
    Ok(())
}

/// Finishes or removes what interrupted commands left: rows that are not *ready*, and directories
/// of `disks/` and its like that no row knows of.
///
/// What another command is working on is left to it; what cannot be removed is warned of and left.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read.
pub(crate) fn sweep(installation: &Installation) -> Result<(), CatalogError> {
    sweep_rows(installation)?;
    for kind in ResourceKind::ALL {
        sweep_parent(installation, &installation.resources_dir(kind));
    }
    Ok(())
}

/// As [`sweep`] before something is made in `parent`: at once for what has a row, of which the name may be wanted. A
/// directory without one is empty and in nobody's way. To find it takes a look at the names of all that is in `parent`,
/// so a process that makes thousands looks seldom.
///
/// # Errors
/// As [`sweep`].
pub(crate) fn sweep_before(installation: &Installation, parent: &Path) -> Result<(), CatalogError> {
    const SELDOM: Duration = Duration::from_secs(60);
    static LOOKED: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());
    sweep_rows(installation)?;
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    looked.retain(|_, at| at.elapsed() < SELDOM);
    if looked.contains_key(parent) {
        return Ok(());
    }
    looked.insert(parent.into(), Instant::now());
    drop(looked);
    sweep_parent(installation, parent);
    Ok(())
}

/// As `sweep` for one row.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read.
pub fn sweep_one(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(), CatalogError> {
    match installation.catalog().resource(kind, name) {
        Ok(row) => {
            sweep_row(installation, &row);
            Ok(())
        }
        Err(CatalogError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn sweep_rows(installation: &Installation) -> Result<(), CatalogError> {
    for row in installation.catalog().unfinished()? {
        sweep_row(installation, &row);
    }
    Ok(())
}

fn sweep_row(installation: &Installation, row: &Stored<DiskRecord>) {
    let swept = match (row.record.state, is_left_to_its_host(installation, row)) {
        (DiskState::Ready, _) | (_, Ok(true)) => Ok(()),
        (_, Err(error)) => Err(error.into()),
        (DiskState::Creating, _) => sweep_creating(installation, row),
        (DiskState::Deleting | DiskState::Erased, _) => sweep_deleting(installation, row),
    };
    if let Err(e) = swept {
        let (kind, name) = (row.record.kind, &row.record.name);
        log::warn!("cannot clean up after an interrupted command on the {kind} {name}: {e}");
    }
}

/// Whether what was begun is for the host that has begun it: it lives, or the directory is one that this host has no look
/// at. One that is known to be gone has nothing left to it.
fn is_left_to_its_host(
    installation: &Installation,
    row: &Stored<DiskRecord>,
) -> Result<bool, CatalogError> {
    let catalog = installation.catalog();
    if row.record.state == DiskState::Ready || !catalog.is_shared() {
        return Ok(false);
    }
    let Some(maker) = catalog.maker(row.record.id)? else {
        return Ok(false);
    };
    if maker.is_here() || maker.is_evicted {
        return Ok(false);
    }
    let parent = parent_of(&row.record.directory);
    // In the state directory of each host there is another one of that path.
    let is_its_own = ResourceKind::ALL
        .iter()
        .any(|kind| parent == installation.resources_dir(*kind));
    Ok(maker.lives || is_its_own || !parent.is_dir())
}

/// Whether it was begun on this host, as far as that is known.
fn is_made_here(
    installation: &Installation,
    row: &Stored<DiskRecord>,
) -> Result<bool, CatalogError> {
    let catalog = installation.catalog();
    if !catalog.is_shared() {
        return Ok(true);
    }
    let maker = catalog.maker(row.record.id)?;
    Ok(maker.is_none_or(|maker| maker.is_here()))
}

fn sweep_parent(installation: &Installation, parent: &Path) {
    if let Err(e) = sweep_directory(installation, parent) {
        log::warn!("cannot clean up after an interrupted command: {e}");
    }
}

fn sweep_creating(installation: &Installation, row: &Stored<DiskRecord>) -> Result<(), DiskError> {
    let DiskRecord {
        kind,
        name,
        directory,
        ..
    } = &row.record;
    let catalog = installation.catalog();
    match lock_directory(directory) {
        Ok(None) => Ok(()),
        // Its maker has finished it since, and a client of NFS may find it under the name of before for a while.
        Ok(Some(_lock)) if !is_current(installation, row)? => Ok(()),
        Ok(Some(lock)) => {
            remove_files(directory, Some(lock))?;
            // Empty if that is where the maker was killed; anything else is not the maker's.
            let _ = fs::remove_dir(directory.with_file_name(name));
            unless_overtaken(catalog.delete_disk(&row.record, row.rev))?;
            log::warn!("removed the {kind} {name}, whose creation was interrupted");
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => sweep_named(installation, row),
        Err(e) => Err(DiskError::file("lock", directory)(e)),
    }
}

/// As [`sweep_creating`] where there is no directory in which it is being made: it may have its final name. The row stays
/// as long as nobody can tell, since it has what says which keys are needed.
fn sweep_named(installation: &Installation, row: &Stored<DiskRecord>) -> Result<(), DiskError> {
    let DiskRecord { id, kind, name, .. } = &row.record;
    let finished = row.record.directory.with_file_name(name);
    let _lock = match lock_directory(&finished) {
        Ok(Some(lock)) => lock,
        // Its maker is between the last two steps.
        Ok(None) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = parent_of(&finished);
            // Else a file system that is not mounted may have it.
            fs::metadata(parent).map_err(DiskError::file("find", parent))?;
            let is_own = parent == installation.resources_dir(*kind);
            return unless_overtaken(match is_own && is_made_here(installation, row)? {
                true => installation.catalog().delete_disk(&row.record, row.rev),
                // As here, where it may be mounted.
                false => forget(installation, row),
            });
        }
        Err(e) => return Err(DiskError::file("lock", &finished)(e)),
    };
    match header_claims(&finished) {
        Ok(header) if header.disk == *id => unless_overtaken(ready(installation, row, &finished)),
        Err(EnvelopeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            unless_overtaken(installation.catalog().delete_disk(&row.record, row.rev))
        }
        // Another's, that was made or put there since.
        Ok(_) => unless_overtaken(installation.catalog().delete_disk(&row.record, row.rev)),
        Err(error) => Err(error.into()),
    }
}

fn sweep_deleting(installation: &Installation, row: &Stored<DiskRecord>) -> Result<(), DiskError> {
    let directory = &row.record.directory;
    let row = match lock_directory(directory) {
        Ok(None) => return Ok(()),
        // Somebody else was faster, and what has the place now is another's.
        Ok(Some(_lock)) if !is_current(installation, row)? => return Ok(()),
        Ok(Some(_lock)) if has_another_header(&row.record) => row.clone(),
        Ok(Some(lock)) => {
            let row = erase(installation, row.clone())?;
            remove_files(directory, Some(lock))?;
            row
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => row.clone(),
        Err(e) => return Err(DiskError::file("lock", directory)(e)),
    };
    unless_overtaken(forget(installation, &row))
}

/// Whether a row is what it was when it was read. While that is so, whoever has locked its directory since knows that
/// the directory is the row's: what is made in the place of something deleted has another row.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read.
pub(crate) fn is_current(
    installation: &Installation,
    row: &Stored<DiskRecord>,
) -> Result<bool, CatalogError> {
    let DiskRecord { id, kind, name, .. } = &row.record;
    match installation.catalog().resource(*kind, name) {
        Ok(now) => Ok(now.rev == row.rev && now.record.id == *id),
        Err(CatalogError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A row that changed since it was read is not left over any more: whoever works on it, or
/// another sweep, was faster.
fn unless_overtaken(result: Result<(), CatalogError>) -> Result<(), DiskError> {
    match result {
        Err(CatalogError::Changed { .. } | CatalogError::NotFound { .. }) => Ok(()),
        result => Ok(result?),
    }
}

/// Removes directories of makers that were killed before they could add a row.
fn sweep_directory(installation: &Installation, parent: &Path) -> Result<(), DiskError> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(DiskError::file("list", parent)(e)),
    };
    for entry in entries {
        let entry = entry.map_err(DiskError::file("list", parent))?;
        let name = entry.file_name();
        let Some((stem, id)) = name.to_str().and_then(|n| n.rsplit_once(INFIX)) else {
            continue;
        };
        if !stem.starts_with('.') || Uuid::parse_str(id).is_err() {
            continue;
        }
        let path = entry.path();
        // Locked: in the making. An error: its maker removed or renamed it meanwhile.
        if let Ok(Some(lock)) = lock_directory(&path) {
            // One that is whole is in no directory of such a name.
            let known = installation.catalog().unfinished()?;
            if known.iter().all(|row| row.record.directory != path) {
                remove_left(&path, &unused(parent, stem), lock)?;
            }
        }
    }
    Ok(())
}

/// Removes a directory of which nobody knows, whose lock that is. It gets another such name before: a client of NFS may
/// find one for a while under a name that its maker on another host has exchanged for its final one, and only the server,
/// which renames, is sure of names.
fn remove_left(path: &Path, other: &Path, lock: DirectoryLock) -> Result<(), DiskError> {
    match fs::rename(path, other) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => {
            renamed.map_err(DiskError::file("rename", path))?;
            remove_files(other, Some(lock))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Cancel;
    use crate::lifecycle::create::{CreateRequest, create};

    /// The disk "d", whose maker was killed before the last step; its final directory.
    fn named(installation: &Installation, data_dir: Option<PathBuf>) -> PathBuf {
        let request = CreateRequest {
            name: "d".into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: None,
            sector_size: 4096,
            logical_sector_size: None,
            data_dir,
        };
        create(installation, &request, &Cancel::default(), |_| |_| {}).unwrap();
        let Stored { rev, record } = row(installation).unwrap();
        let finished = record.directory.clone();
        let being_made = format!(".d{INFIX}{}", Uuid::new_v4());
        let record = DiskRecord {
            directory: finished.with_file_name(being_made),
            state: DiskState::Creating,
            ..record
        };
        installation.catalog().update_disk(rev, &record).unwrap();
        finished
    }

    fn row(installation: &Installation) -> Option<Stored<DiskRecord>> {
        match installation.catalog().resource(ResourceKind::Disk, "d") {
            Ok(row) => Some(row),
            Err(CatalogError::NotFound { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn state_after_sweep(installation: &Installation) -> Option<DiskState> {
        sweep(installation).unwrap();
        row(installation).map(|row| row.record.state)
    }

    #[test]
    fn a_finished_disk_keeps_its_row_while_it_cannot_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let elsewhere = dir.path().join("data");
        let finished = named(&installation, Some(elsewhere.clone()));
        // What cannot be read, and what is not mounted.
        let header = finished.join("header");
        for (path, in_its_place) in [(&header, true), (&elsewhere, false)] {
            let away = dir.path().join("away");
            fs::rename(path, &away).unwrap();
            if in_its_place {
                fs::create_dir(path).unwrap();
            }
            let state = state_after_sweep(&installation);
            assert_eq!(state, Some(DiskState::Creating), "{path:?}");
            if in_its_place {
                fs::remove_dir(path).unwrap();
            }
            fs::rename(&away, path).unwrap();
        }
        assert_eq!(state_after_sweep(&installation), Some(DiskState::Ready));
        let now = row(&installation).unwrap().record;
        assert_eq!(now.directory, finished);
    }

    #[test]
    fn a_disk_that_is_in_no_directory_leaves_a_trace_where_it_may_be_mounted() {
        for is_elsewhere in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let installation = Installation::open(dir.path().join("state")).unwrap();
            let elsewhere = is_elsewhere.then(|| dir.path().join("data"));
            let finished = named(&installation, elsewhere);
            fs::rename(finished, dir.path().join("away")).unwrap();
            assert_eq!(state_after_sweep(&installation), None);
            let departed = installation.catalog().departed().unwrap();
            assert_eq!(departed.len(), usize::from(is_elsewhere));
        }
    }
}
