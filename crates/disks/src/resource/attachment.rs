//! Which host has a disk, as a catalog says it that hosts share.
//!
//! The lock of the data decides who has the disk, and the header whether the last one has let go of it in order; both are
//! with the storage. The catalog's row says the same from afar, and whether somebody is to be let in at all: a host that
//! has neither detached the disk nor was said to be gone keeps others out, also while its lock is free, since its guest may
//! live. In a catalog of one host's own there are no such rows, and the header is all there is.
//!
//! # Order of steps
//!
//! An attach claims the disk, looks at row and header, writes its row, and then the header, under the header's lock. It
//! ends its session in the header before it closes its row. So a crash leaves a row that says too much at worst: with a
//! header that has no session it keeps nobody out.

use std::path::Path;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::resource::directory::header_claims;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::session::{Left, Unflushed};
use installation::catalog::{AttachmentRecord, AttachmentState, CatalogError, Kind, NewAttachment};
use installation::envelope::{HeaderPayload, Session};
use installation::{Installation, id_of_host};
use vault::moment;

/// Whether what an attach has left on another host is given up, since its operator has said that the host is gone.
pub fn is_given_up(before: Option<&AttachmentRecord>, header: &HeaderPayload) -> bool {
    let session = header.session.as_ref();
    let host = session.and_then(|session| id_of_host(&session.host));
    before.is_some_and(|before| {
        before.state == AttachmentState::Evicted && Some(before.host.as_str()) == host
    })
}

impl Disk {
    /// The row of the disk's attachment; nothing in a catalog that is one host's own.
    ///
    /// # Errors
    /// [`DiskError::Control`].
    pub fn attachment(
        &self,
        installation: &Installation,
    ) -> Result<Option<AttachmentRecord>, DiskError> {
        let catalog = installation.catalog();
        match catalog.is_shared() {
            true => Ok(catalog.attachment(self.id())?),
            false => Ok(None),
        }
    }

    /// Writes the row of an attach on this host, of a disk that it has claimed, in the place of the row that was found.
    ///
    /// # Errors
    /// [`DiskError::Control`], when somebody else was faster, too.
    pub fn begin_attachment(
        &self,
        installation: &Installation,
        before: Option<&AttachmentRecord>,
        attach: Uuid,
    ) -> Result<(), DiskError> {
        self.put_attachment(installation, before, attach, AttachmentState::Open)
    }

    pub(crate) fn put_attachment(
        &self,
        installation: &Installation,
        before: Option<&AttachmentRecord>,
        attach: Uuid,
        state: AttachmentState,
    ) -> Result<(), DiskError> {
        let catalog = installation.catalog();
        if !catalog.is_shared() {
            return Ok(());
        }
        let new = NewAttachment::here(self.id(), attach, state);
        let epoch = before.map_or(0, |before| before.epoch);
        match catalog.put_attachment(&new, epoch) {
            Ok(_) => Ok(()),
            // By the name that people know.
            Err(CatalogError::Changed { .. }) => Err(CatalogError::Changed {
                kind: Kind::Disk,
                name: self.name().into(),
            }
            .into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes the row of an attach that has let go of the disk, unless another one has it by now.
    ///
    /// # Errors
    /// [`DiskError::Control`].
    pub fn close_attachment(
        &self,
        installation: &Installation,
        attach: Uuid,
    ) -> Result<(), DiskError> {
        let catalog = installation.catalog();
        if catalog.is_shared() {
            catalog.close_attachment(self.id(), attach)?;
        }
        Ok(())
    }

    /// Who has had the disk since that attach, if that was taken from it by the catalog's word.
    ///
    /// # Errors
    /// [`DiskError::Control`]: that is not known.
    pub fn taken_since(
        &self,
        installation: &Installation,
        attach: Uuid,
    ) -> Result<Option<AttachmentRecord>, DiskError> {
        let now = self.attachment(installation)?;
        Ok(now.filter(|now| now.attach != attach || now.state == AttachmentState::Evicted))
    }

    /// Refuses a disk that another host has by that row, unless it has let go of it, as the header says, or what it has
    /// left is here: then this host had another name.
    ///
    /// # Errors
    /// [`DiskError::AttachedElsewhere`].
    pub fn refuse_other_host(
        &self,
        before: Option<&AttachmentRecord>,
        header: &HeaderPayload,
        is_left_here: bool,
    ) -> Result<(), DiskError> {
        match before {
            Some(before) if is_elsewhere(before) && header.session.is_some() && !is_left_here => {
                Err(self.attached_elsewhere(before, Lock::Free))
            }
            _ => Ok(()),
        }
    }

    /// Says by the catalog's row what a header alone has said: that the disk was not let go of on another host.
    pub fn by_its_host(&self, before: Option<&AttachmentRecord>, error: DiskError) -> DiskError {
        match (before, error) {
            (Some(before), DiskError::NotLetGo { .. }) if is_elsewhere(before) => {
                self.attached_elsewhere(before, Lock::Free)
            }
            (_, error) => error,
        }
    }

    /// Says on which host a disk is in use, if that is another one and can be told.
    pub fn in_use_where(&self, installation: &Installation, error: DiskError) -> DiskError {
        if !matches!(error, DiskError::InUse { .. }) {
            return error;
        }
        let header = header_claims(self.directory()).ok();
        let is_free = header
            .as_ref()
            .is_some_and(|header| header.session.is_none());
        let session = header.and_then(|header| header.session);
        let session = session.filter(|session| session.is_of_this_host() == Some(false));
        let before = self.attachment(installation).ok().flatten();
        // The row of an attach that was killed as it let go says too much: a command has the disk.
        let before = before.filter(|before| is_elsewhere(before) && !is_free);
        match (before, session) {
            (Some(before), _) => self.attached_elsewhere(&before, Lock::Held),
            (None, Some(session)) => self.elsewhere(
                (session.host_name(), session.since),
                (None, None),
                Lock::Held,
            ),
            (None, None) => error,
        }
    }

    fn attached_elsewhere(&self, before: &AttachmentRecord, lock: Lock) -> DiskError {
        let lease = (before.host_lives, before.host_seen);
        self.elsewhere((&before.host_name, before.since), lease, lock)
    }

    fn elsewhere(
        &self,
        (host, since): (&str, OffsetDateTime),
        lease: (Option<bool>, Option<OffsetDateTime>),
        lock: Lock,
    ) -> DiskError {
        DiskError::AttachedElsewhere {
            name: self.name().into(),
            host: host.into(),
            since: moment(since),
            advice: advice(self.name(), lease, lock),
        }
    }

    /// Refuses to delete a disk that another host has not let go of: its guest may live there, and there is no way back.
    ///
    /// # Errors
    /// [`DiskError::AttachedElsewhere`].
    pub(crate) fn refuse_to_delete(
        &self,
        installation: &Installation,
        header: Option<&HeaderPayload>,
        runtime_dir: &Path,
    ) -> Result<(), DiskError> {
        let Some(header) = header.filter(|header| header.session.is_some()) else {
            return Ok(());
        };
        let before = self.attachment(installation)?;
        if !before.as_ref().is_some_and(is_elsewhere) {
            return Ok(());
        }
        let left = self.left(header, runtime_dir, Unflushed::Needed);
        let is_left_here = matches!(left, Ok(Left::Map(_) | Left::Frozen(_)));
        self.refuse_other_host(before.as_ref(), header, is_left_here)
    }

    /// Refuses to give up what is left on a host that is known to live.
    ///
    /// # Errors
    /// [`CatalogError::HostLives`].
    pub fn refuse_to_give_up(
        &self,
        installation: &Installation,
        header: &HeaderPayload,
        missing: Unflushed,
    ) -> Result<(), DiskError> {
        match &header.session {
            Some(session)
                if missing == Unflushed::GivenUp && session.is_of_this_host() == Some(false) =>
            {
                self.refuse_living(installation, session)
            }
            _ => Ok(()),
        }
    }

    /// Refuses to take anything from a host that lives, by its lease in a catalog that is shared.
    ///
    /// # Errors
    /// [`CatalogError::HostLives`].
    pub(crate) fn refuse_living(
        &self,
        installation: &Installation,
        session: &Session,
    ) -> Result<(), DiskError> {
        let catalog = installation.catalog();
        let id = id_of_host(&session.host).filter(|_| catalog.is_shared());
        let Some(id) = id else {
            return Ok(());
        };
        let mut hosts = catalog.hosts_called(id)?.into_iter();
        match hosts.find(|host| host.id == id && host.lives) {
            Some(host) => Err(CatalogError::HostLives {
                name: host.name,
                seen: host.seen,
            }
            .into()),
            None => Ok(()),
        }
    }
}

/// Whether somebody has the lock of the disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Held,
    Free,
}

/// Whether the row says that another host has the disk.
fn is_elsewhere(row: &AttachmentRecord) -> bool {
    row.has_disk() && !row.is_here()
}

fn advice(name: &str, (lives, seen): (Option<bool>, Option<OffsetDateTime>), lock: Lock) -> String {
    let seen = seen.map(|seen| format!(" has not been heard of since {}", moment(seen)));
    match (lives, lock, seen) {
        (Some(false), _, Some(seen)) => format!(
            "that host{seen}; if it is off, take the disk over with `sealdisk disk takeover {name}`"
        ),
        (_, Lock::Held, _) => {
            "detach it there, or have its guest move here (`attach --incoming`)".into()
        }
        (Some(true), Lock::Free, _) => {
            "its attach there was not let go of in order, and its guest may live: attach it there again, and detach it or \
             have its guest move"
                .into()
        }
        (_, Lock::Free, _) => format!(
            "it was not let go of in order; attach it there again, or, if that host is off, take the disk over with \
             `sealdisk disk takeover {name}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::session::tests::attached;

    fn row(disk: &Disk, host: &str, state: AttachmentState) -> AttachmentRecord {
        AttachmentRecord {
            disk: disk.id(),
            host: host.into(),
            host_name: "node1".into(),
            epoch: 4,
            state,
            attach: Uuid::new_v4(),
            since: OffsetDateTime::UNIX_EPOCH,
            storage_client: None,
            host_lives: Some(true),
            host_seen: Some(OffsetDateTime::UNIX_EPOCH),
        }
    }

    #[test]
    fn a_disk_is_refused_by_the_name_of_the_host_that_has_it_and_has_not_let_go_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(&dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let mut header = disk.header_file().unwrap().read().unwrap().claims().clone();
        let refuse = |row: &AttachmentRecord, header: &HeaderPayload, is_left_here| {
            disk.refuse_other_host(Some(row), header, is_left_here)
        };
        let mut open = row(&disk, "other", AttachmentState::Open);
        let said = refuse(&open, &header, false).unwrap_err().to_string();
        assert!(
            said.contains("on the host node1") && said.contains("guest may live"),
            "{said}"
        );
        open.host_lives = Some(false);
        let said = refuse(&open, &header, false).unwrap_err().to_string();
        assert!(said.contains("disk takeover d"), "{said}");
        // It had another name when it was attached here.
        refuse(&open, &header, true).unwrap();
        for state in [AttachmentState::Closed, AttachmentState::Evicted] {
            refuse(&row(&disk, "other", state), &header, false).unwrap();
        }
        let here = row(&disk, installation::this_host_id(), AttachmentState::Open);
        refuse(&here, &header, false).unwrap();
        header.session = None;
        refuse(&open, &header, false).unwrap();
        // There is none in a file.
        assert!(disk.attachment(&installation).unwrap().is_none());
    }

    #[test]
    fn only_what_an_evicted_host_has_left_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(&dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let header = disk.header_file().unwrap().read().unwrap().claims().clone();
        let own = installation::this_host_id();
        let evicted = row(&disk, own, AttachmentState::Evicted);
        assert!(is_given_up(Some(&evicted), &header));
        assert!(!is_given_up(None, &header));
        for (host, state) in [
            (own, AttachmentState::Open),
            ("other", AttachmentState::Evicted),
        ] {
            assert!(!is_given_up(Some(&row(&disk, host, state)), &header));
        }
    }
}
