//! Taking a disk over from a host that is gone.

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::session::{Left, Unflushed};
use installation::envelope::{HeaderPayload, Session};
use vault::moment;

impl Disk {
    /// What gives up what the attach of this moment has left on `host`, as its header names it, and nothing that another
    /// attach will leave there: whoever says so has looked at this one.
    ///
    /// # Errors
    /// [`DiskError::Argument`] when the header names another host, or none.
    pub fn take_over_from(&self, host: &str) -> Result<Unflushed, DiskError> {
        let found = self.header_file()?.read()?;
        let header = found.claims();
        let where_it_is = match &header.session {
            Some(session) if [session.host_name(), session.host.as_str()].contains(&host) => {
                return Ok(Unflushed::TakenFrom(header.attach));
            }
            Some(session) => format!(
                "it was attached on {} since {}",
                session.host_name(),
                moment(session.since)
            ),
            None => "it was let go of in order".into(),
        };
        Err(DiskError::Argument(format!(
            "the disk {} is not to be taken over from {host}: {where_it_is}; leave --take-over-from away",
            self.name()
        )))
    }

    /// What the last user left is on another host, and not to be seen from here.
    pub(super) fn left_elsewhere(
        &self,
        header: &HeaderPayload,
        session: &Session,
        missing: Unflushed,
    ) -> Result<Left, DiskError> {
        if missing != Unflushed::TakenFrom(header.attach) {
            return Err(self.not_let_go(session));
        }
        log::warn!(
            "the disk {} is taken over from {}, where it was attached since {}: what was not flushed there is lost",
            self.name(),
            session.host_name(),
            moment(session.since)
        );
        Ok(Left::GivenUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::session::tests::attached;
    use installation::{Installation, runtime_map};
    use uuid::Uuid;

    #[test]
    fn a_disk_is_taken_over_from_the_host_that_is_named_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let [runtime, elsewhere] = [0; 2].map(|_| tempfile::tempdir_in("/dev/shm").unwrap());
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let file = disk.header_file().unwrap();
        let mut lock = file.lock().unwrap();
        let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
        let session = header.session.as_mut().unwrap();
        session.host = "other/0123456789abcdef".into();
        let hidden = runtime_map(&elsewhere.path().join("hidden"), disk.id());
        session.runtime_map = hidden.to_str().unwrap().into();
        lock.write(&header, &dek).unwrap();
        drop(lock);

        let third = disk.take_over_from("third");
        assert!(matches!(third, Err(DiskError::Argument(_))));
        let taken = disk.take_over_from("other").unwrap();
        assert_eq!(
            taken,
            disk.take_over_from("other/0123456789abcdef").unwrap()
        );
        let mut header = file.read().unwrap().claims().clone();
        let left =
            |header: &HeaderPayload, unflushed| disk.left(header, elsewhere.path(), unflushed);
        assert!(matches!(left(&header, taken), Ok(Left::GivenUp)));
        // Lost maps are something else.
        let lost = left(&header, Unflushed::GivenUp);
        assert!(matches!(lost, Err(DiskError::NotLetGo { .. })));
        // Another attach there, which nobody has looked at.
        header.attach = Uuid::new_v4();
        let later = left(&header, taken);
        assert!(matches!(later, Err(DiskError::NotLetGo { .. })));
    }
}
