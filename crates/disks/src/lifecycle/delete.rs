//! Deleting a disk, a snapshot or an image: its wrapped DEKs first.

use std::io;
use std::path::{Path, PathBuf};

use crate::resource::directory::header_claims;
use crate::resource::directory_lock::lock_patiently;
use crate::resource::disk::{Disk, TRIES, claim_data};
use crate::resource::erase::{
    disk_files, erase, forget, has_another_header, remove_files, set_state,
};
use crate::resource::error::DiskError;
use crate::resource::layer_files::names_of;
use crate::resource::lookup::lookup;
use crate::resource::staging::is_current;
use installation::Installation;
use installation::catalog::{CatalogError, Change, DiskRecord, DiskState, Stored};
use installation::envelope::ResourceKind;
use volume::store::LayerFile;

/// Deletes what is not in use. Its header is overwritten before any file is unlinked, so
/// that the ciphertext is worthless at once, whatever becomes of its blocks; layers that others have
/// too stay theirs.
///
/// It works without any key, and for a disk whose header is damaged or missing; of one whose header was not
/// seen the catalog keeps in mind that it may still exist. Where its directory has the header of another disk
/// now, nothing in it is touched. `runtime_dir` is where a killed daemon may have left the disk's map.
///
/// # Errors
/// [`DiskError::InUse`], [`DiskError::AttachedElsewhere`], [`DiskError::Granted`]; others, after which the deletion can be
/// repeated.
pub fn delete(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    runtime_dir: &Path,
) -> Result<(), DiskError> {
    let row = lookup(installation, kind, name)?;
    installation
        .catalog()
        .refuse_locked(kind.into(), name, Change::Delete)?;
    delete_found(installation, &row, runtime_dir)
}

/// Deletes what was found under its name, unless something else has its place by now.
fn delete_found(
    installation: &Installation,
    row: &Stored<DiskRecord>,
    runtime_dir: &Path,
) -> Result<(), DiskError> {
    let (kind, name) = (row.record.kind, row.record.name.as_str());
    let directory = &row.record.directory;
    let busy = || DiskError::InUse {
        name: name.into(),
        path: directory.clone(),
    };
    let lock = match lock_patiently(directory) {
        Ok(lock) => lock.ok_or_else(busy)?,
        // What is left is the catalog's row.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(forget(installation, row)?),
        Err(e) => return Err(DiskError::file("lock", directory)(e)),
    };
    // Another command may have deleted it, and made something else in its place, before this one had the lock.
    if !is_current(installation, row)? {
        let (kind, name) = (kind.into(), name.into());
        return Err(CatalogError::Changed { kind, name }.into());
    }
    if has_another_header(&row.record) {
        return Ok(forget(installation, row)?);
    }
    let disk = Disk {
        record: row.record.clone(),
    };
    disk.refuse_granted(installation)?;
    let claims = claim_own_data(&row.record, || {})
        .map_err(|error| disk.in_use_where(installation, error))?;
    if disk.awaited_by().is_some() {
        return Err(disk.is_awaited());
    }
    let header = header_claims(directory).ok();
    disk.refuse_to_delete(installation, header.as_ref(), runtime_dir)?;
    let session = header.and_then(|header| header.session);
    let row = match row.record.state {
        DiskState::Erased => row.clone(),
        _ => set_state(installation, row, DiskState::Deleting)?,
    };
    let row = erase(installation, row)?;
    // Nobody can use it any more. NFS and FUSE keep a file that is open under another name in its directory,
    // which then is not empty.
    drop(claims);
    remove_files(directory, Some(lock))?;
    disk.remove_maps(session.as_ref(), runtime_dir);
    match forget(installation, &row) {
        // A command that cleans up has found no directory any more, and was faster.
        Err(CatalogError::NotFound { .. }) => Ok(()),
        forgotten => Ok(forgotten?),
    }
}

/// Claims the data of the layers that nobody else has, and the top layer in any case, which whoever
/// uses or reads it has. What others have loses nothing but a name here.
///
/// They are looked for again when they are claimed: an attach lets go of the top layer as soon as it has another one.
/// `found` is called before they are claimed, for tests.
fn claim_own_data(
    record: &DiskRecord,
    mut found: impl FnMut(),
) -> Result<Vec<LayerFile>, DiskError> {
    let mut own = own_data(record)?;
    for _ in 0..TRIES {
        found();
        let claims = own.iter().map(|path| claim_data(&record.name, path));
        let claims = claims.collect::<Result<Vec<_>, _>>();
        // A layer that is merged away leaves the directory meanwhile.
        let now = own_data(record)?;
        if now == own {
            return claims;
        }
        own = now;
    }
    Err(DiskError::InUse {
        name: record.name.clone(),
        path: record.directory.clone(),
    })
}

fn own_data(record: &DiskRecord) -> Result<Vec<PathBuf>, DiskError> {
    let directory = &record.directory;
    let top = match header_claims(directory) {
        Ok(header) => header.top().map(|top| top.id),
        Err(_) => None,
    };
    let top = top.map(|id| format!("{id}.data"));
    let mut own = Vec::new();
    for file in disk_files(directory)? {
        let path = directory.join(&file);
        let is_own = || names_of(&path).is_ok_and(|names| names < 2);
        if file.ends_with(".data") && (top.as_ref() == Some(&file) || is_own()) {
            own.push(path);
        }
    }
    own.sort();
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use installation::InstallationError;

    use super::*;
    use crate::import::Cancel;
    use crate::layers::{LayerOp, Unattached};
    use crate::lifecycle::create::{CreateRequest, DEFAULT_SECTOR_SIZE, create};
    use crate::resource::directory::HEADER;
    use crate::resource::staging::sweep;

    fn make(installation: &Installation) -> Result<(), DiskError> {
        let request = CreateRequest {
            name: "d".into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: None,
            sector_size: DEFAULT_SECTOR_SIZE,
            logical_sector_size: None,
            data_dir: None,
        };
        create(installation, &request, &Cancel::default(), |_| |_| ()).map(drop)
    }

    /// The top layer of a disk that is deleted becomes one of those beneath, of which whoever has the disk lets go.
    #[test]
    fn a_disk_that_is_used_is_not_deleted_while_it_gets_another_layer() {
        let state = tempfile::tempdir().unwrap();
        let installation = Installation::open(state.path()).unwrap();
        make(&installation).unwrap();
        let disk = Disk::find(&installation, "d").unwrap();
        let claim = disk.claim().unwrap();
        let user = Unattached::settled(&installation, &disk, claim, state.path());
        let mut user = user.unwrap();
        let mut rotated = false;
        let claimed = claim_own_data(&disk.record, || {
            if !rotated {
                let op = LayerOp::RotateDek { rate: None };
                op.apply(&installation, &disk, &mut user).unwrap();
                rotated = true;
            }
        });
        assert!(
            matches!(claimed, Err(DiskError::InUse { .. })),
            "{claimed:?}"
        );
        drop(user);
        // Both layers are its own.
        assert_eq!(claim_own_data(&disk.record, || {}).unwrap().len(), 2);
        remove(&installation, state.path()).unwrap();
    }

    fn remove(installation: &Installation, runtime: &Path) -> Result<(), DiskError> {
        delete(installation, ResourceKind::Disk, "d", runtime)
    }

    /// Whoever only cleans up, as each command does, never makes a deletion fail.
    #[test]
    fn a_deletion_succeeds_whoever_cleans_up_beside_it() {
        let state = tempfile::tempdir().unwrap();
        let installation = Installation::open(state.path()).unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let other = Installation::open_existing(state.path()).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    sweep(&other).unwrap();
                }
            });
            let all = (0..20).try_for_each(|_| {
                make(&installation)?;
                remove(&installation, state.path())
            });
            is_over.store(true, Ordering::Relaxed);
            all.unwrap();
        });
    }

    /// Of several who make the same disk at once one has it, and the others leave nothing.
    #[test]
    fn one_of_those_who_make_the_same_disk_has_it() {
        let state = tempfile::tempdir().unwrap();
        let installation = Installation::open(state.path()).unwrap();
        for _ in 0..5 {
            let path = state.path();
            let made = thread::scope(|scope| {
                let makers = [0; 4].map(|_| {
                    scope.spawn(move || {
                        let own = Installation::open_existing(path).unwrap();
                        make(&own).is_ok()
                    })
                });
                makers.map(|maker| maker.join().unwrap())
            });
            let made = made.into_iter().filter(|made| *made).count();
            assert_eq!(made, 1);
            let disks = installation.resources_dir(ResourceKind::Disk);
            let left = fs::read_dir(disks).unwrap().map(|entry| {
                let name = entry.unwrap().file_name();
                name.into_string().unwrap()
            });
            let left: Vec<_> = left.filter(|name| name.contains(".creating-")).collect();
            assert!(left.is_empty(), "{left:?}");
            remove(&installation, state.path()).unwrap();
        }
    }

    /// What was read before a disk was deleted and another one made in its place deletes nothing of that, also when its
    /// header cannot be read for the moment.
    #[test]
    fn who_comes_late_deletes_nothing_of_the_next_disk() {
        let state = tempfile::tempdir().unwrap();
        let installation = Installation::open(state.path()).unwrap();
        make(&installation).unwrap();
        let mut late = lookup(&installation, ResourceKind::Disk, "d").unwrap();
        remove(&installation, state.path()).unwrap();
        make(&installation).unwrap();
        let header = late.record.directory.join(HEADER);
        File::options()
            .write(true)
            .open(&header)
            .unwrap()
            .set_len(0)
            .unwrap();
        let files = || disk_files(&late.record.directory).unwrap().len();
        let before = files();
        assert!(before > 1);
        let refused = delete_found(&installation, &late, state.path());
        assert!(
            matches!(
                refused,
                Err(DiskError::Control(InstallationError::Catalog(
                    CatalogError::Changed { .. }
                )))
            ),
            "{refused:?}"
        );
        assert_eq!(files(), before);
        late.record.state = DiskState::Erased;
        delete_found(&installation, &late, state.path()).unwrap_err();
        assert_eq!(disk_files(&late.record.directory).unwrap().len(), before);
    }
}
