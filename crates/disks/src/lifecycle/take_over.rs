//! Taking a disk over from a host that is gone, for this one.
//!
//! # Order of steps
//!
//! 1. the lease of the other host has ended, and the operator says that the host is off: a lease that ended proves
//!    nothing, since a host that is frozen or cut off goes on where it was;
//! 2. the disk is claimed: who still has the lock of the storage keeps it;
//! 3. the catalog's row says that this host fences, with the next epoch;
//! 4. the header is stamped: the session of the other host goes, with what was not flushed there, and nothing of an
//!    attach of before counts any more;
//! 5. the row is closed. Whoever attaches the disk then finds one that was let go of.
//!
//! A crash after 3 leaves a row that says who was at it; the same command goes on. After 4 the header says that the disk is
//! free, whatever the row says.
//!
//! Storage that can cut off one client does so between 3 and 4, in the place of the operator's word. A directory cannot.

use std::path::Path;

use uuid::Uuid;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::session::Unflushed;
use installation::Installation;
use installation::catalog::{AttachmentState, CatalogError, Kind};
use installation::envelope::Session;

/// Where a disk was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOver {
    /// What the host is called; nothing where the disk was let go of in order, so that anybody can attach it.
    pub from: Option<String>,
}

/// Takes a disk over from the host that has it by its header. `host_is_off` is the operator's word that this host is off,
/// or cut off from the storage for good.
///
/// # Errors
/// [`CatalogError::HostLives`], [`DiskError::NotFenced`], [`DiskError::StillHeld`], [`DiskError::NotElsewhere`], others:
/// the command can be repeated.
pub fn take_over(
    installation: &Installation,
    name: &str,
    runtime_dir: &Path,
    host_is_off: bool,
) -> Result<TakenOver, DiskError> {
    let disk = Disk::find(installation, name)?;
    let found = disk.header_file()?.read()?;
    disk.check_identity(found.claims())?;
    let Some(session) = found.claims().session.clone() else {
        return Ok(TakenOver { from: None });
    };
    let host = session.host_name().to_owned();
    if session.is_of_this_host() != Some(false) {
        return Err(DiskError::NotElsewhere { name: name.into() });
    }
    disk.refuse_living(installation, &session)?;
    if !host_is_off {
        return Err(DiskError::NotFenced {
            name: name.into(),
            host,
        });
    }
    let claim = disk.claim().map_err(|error| match error {
        DiskError::InUse { .. } => DiskError::StillHeld {
            name: name.into(),
            host: host.clone(),
        },
        error => error,
    })?;
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    if !is_same(lock.read()?.claims().session.as_ref(), &session) {
        return Err(CatalogError::Changed {
            kind: Kind::Disk,
            name: name.into(),
        }
        .into());
    }
    let before = disk.attachment(installation)?;
    let fence = Uuid::new_v4();
    disk.put_attachment(
        installation,
        before.as_ref(),
        fence,
        AttachmentState::Fencing,
    )?;
    let how = (runtime_dir, Unflushed::GivenUp);
    disk.settle_under(installation, &mut lock, &claim, how)?;
    drop(lock);
    disk.close_attachment(installation, fence)?;
    Ok(TakenOver { from: Some(host) })
}

/// Whether nobody has attached the disk since.
fn is_same(now: Option<&Session>, before: &Session) -> bool {
    now == Some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::disk::claim_data;
    use crate::resource::session::tests::attached;

    /// As the header is when another host has attached the disk.
    fn give_to_other(installation: &Installation, disk: &Disk, host: &str) {
        let file = disk.header_file().unwrap();
        let mut lock = file.lock().unwrap();
        let (mut header, dek) = disk.unlock(installation, lock.read().unwrap()).unwrap();
        header.session.as_mut().unwrap().host = host.into();
        lock.write(&header, &dek).unwrap();
    }

    #[test]
    fn a_disk_is_taken_over_on_the_operators_word_and_never_while_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let [runtime, elsewhere] = [0; 2].map(|_| tempfile::tempdir_in("/dev/shm").unwrap());
        let installation = Installation::open(&dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let take = |word| take_over(&installation, "d", elsewhere.path(), word);
        assert!(matches!(take(true), Err(DiskError::NotElsewhere { .. })));
        give_to_other(&installation, &disk, "node1/0123456789abcdef");
        let read = || disk.header_file().unwrap().read().unwrap().claims().clone();
        let before = read();
        let refused = take(false).unwrap_err().to_string();
        assert!(
            refused.contains("node1") && refused.contains("--host-is-off"),
            "{refused}"
        );
        let held = claim_data("d", &disk.layer_paths(before.top().unwrap()).data).unwrap();
        let refused = take(true).unwrap_err();
        assert!(matches!(refused, DiskError::StillHeld { .. }), "{refused}");
        assert_eq!(read(), before);
        drop(held);
        let from = Some("node1".into());
        assert_eq!(take(true).unwrap(), TakenOver { from });
        let after = read();
        assert!(after.session.is_none() && after.attach != before.attach);
        // Again, which changes nothing.
        assert_eq!(take(false).unwrap(), TakenOver { from: None });
        assert_eq!(read(), after);
    }
}
