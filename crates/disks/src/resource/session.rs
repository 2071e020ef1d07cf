//! What the last user of a disk may have left: writes that were completed and not flushed, of which
//! only the runtime map knows.
//!
//! # The session in the header
//!
//! An attach writes into the header that it has begun, under which boot of the kernel, and where its
//! runtime map is; an orderly detach takes that out again. In this order:
//!
//! 1. *Attach*: the runtime map is stamped with the new attach id and the one before; then one write of
//!    the header has the new attach id and the session. A crash in between leaves a map that counts
//!    for the id that the header still has. It is empty, or it is the map that counted before.
//! 2. *Detach*: the last flush; then one write of the header takes the session out and gives it an
//!    attach id that no map has; then the map is removed. A crash before the header leaves a session and
//!    its map, which agrees with the durable one; one after it leaves a map that counts for nothing.
//! 3. *What a daemon that died left* is made durable, when a command has to ([`Disk::settle`]), in the
//!    order of a detach.
//! 4. *Another top layer* ([`super::layers`]): what was completed is flushed, the header names the new
//!    layers, and only then a new map takes the old one's place. A crash in between leaves the map of a
//!    layer that the header has beneath its top: nothing of it is needed any more.
//!
//! So within one boot a session without its map is never what a crash left. Somebody took the map
//! away, or looks in another directory, and to go on would lose what guests were told is written.
//!
//! # Of another host
//!
//! The session is the mark that a disk is not clean, and of whom: only the host that it names recovers it. Another one is
//! refused, whatever the locks say: the guest may live though its daemon died, which takes the lock along, and waits for
//! another daemon there. Whoever knows that the host is gone, and the guest with it, says so (`--take-over-from`), and
//! takes the disk over as it was flushed last. A map that counts tells more than the name of a host, which may have
//! been given another one: what the last user left is here then, in whatever directory, and nobody gives it up.
//!
//! On a file system that one host has mounted at a time, another host under another boot is how a disk looks that was
//! moved here, or a host that has another id since: what the power leaves is there, as after any boot.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use crate::resource::open::{geometry, layer_map, lower_layers, open_files};
use crate::resource::shared::may_be_shared;
use installation::envelope::{Header, HeaderKey, HeaderLock, HeaderPayload, LayerRecord, Session};
use installation::{Installation, runtime_map, this_host};
use vault::moment;
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::LayerFile;
use volume::{CacheMode, Found, Geometry, RuntimeMap, Volume, boot_id, check_data_file};

/// What becomes of a disk whose runtime map is needed and not to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    /// It is refused.
    Needed,
    /// What was completed and not flushed is given up. A map that is found counts all the same, and what is on another
    /// host is none that is lost.
    GivenUp,
    /// What the attach of that id has left on another host is given up ([`Disk::take_over_from`]).
    TakenFrom(Uuid),
}

/// What the last user of a disk left on this boot.
#[derive(Debug)]
pub enum Left {
    /// Nothing: it was detached in order.
    Nothing,
    /// What was flushed: the power went since, or the disk was moved to this host.
    OtherBoot(Session),
    /// A runtime map that counts.
    Map(RuntimeMap),
    /// The map of a layer that was frozen since: all of it is durable.
    Frozen(RuntimeMap),
    /// A map that is missing, or on another host, which was given up.
    GivenUp,
}

impl Left {
    /// The map that counts.
    pub fn map(self) -> Option<RuntimeMap> {
        match self {
            Self::Map(map) => Some(map),
            Self::Nothing | Self::OtherBoot(_) | Self::Frozen(_) | Self::GivenUp => None,
        }
    }

    /// What the guest chose last, where it was not carried over into the header.
    ///
    /// # Errors
    /// [`DiskError::Volume`].
    pub fn cache(&self) -> Result<Option<CacheMode>, DiskError> {
        match self {
            Self::Map(map) | Self::Frozen(map) => Ok(map.cache()?),
            Self::Nothing | Self::OtherBoot(_) | Self::GivenUp => Ok(None),
        }
    }
}

/// Logs that a disk was attached under another boot of the kernel.
pub fn log_other_boot(disk: &str, session: &Session) {
    log::warn!(
        "the disk {disk} was attached on {} since {} and not detached; the power went, or it was moved: \
         what was flushed is there, and what was not may be lost",
        session.host_name(),
        moment(session.since)
    );
}

impl Disk {
    /// That an attach on another host, or under another boot, has not let go of the disk in order.
    pub fn not_let_go(&self, session: &Session) -> DiskError {
        DiskError::NotLetGo {
            name: self.name().into(),
            host: session.host_name().into(),
            since: moment(session.since),
        }
    }
}

/// Whether a disk's attach was under this boot of the kernel.
///
/// # Errors
/// [`DiskError::File`] when the kernel does not tell.
pub(crate) fn is_of_this_boot(session: &Session) -> Result<bool, DiskError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(boot_id().map_err(DiskError::file("read", path))? == session.boot)
}

/// What a header says after all that was completed is durable.
pub fn ended(header: &mut HeaderPayload, cache: Option<CacheMode>) {
    header.session = None;
    // No runtime map counts for it.
    header.attach = Uuid::new_v4();
    if let Some(cache) = cache {
        header.write_through = cache == CacheMode::WriteThrough;
    }
}

impl Disk {
    /// What the last user of the disk left, whose header that is. The caller has claimed the disk. What that user
    /// was copying into a data file that is memory is finished.
    ///
    /// # Errors
    /// [`DiskError::RuntimeMapElsewhere`], [`DiskError::RuntimeMapMissing`], [`DiskError::NotLetGo`].
    pub fn left(
        &self,
        header: &HeaderPayload,
        runtime_dir: &Path,
        missing: Unflushed,
    ) -> Result<Left, DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let geometry = geometry(header, top)?;
        let path = absolute(&runtime_map(runtime_dir, header.disk));
        let found = RuntimeMap::look(&path, &geometry, header.attach)?;
        let Some(session) = &header.session else {
            // An attach that died before its header was written leaves an empty one, and one of an
            // earlier version of this program had no session.
            return Ok(match found {
                Found::Counts(map) => Left::Map(self.finished(map, &geometry, top)?),
                _ => Left::Nothing,
            });
        };
        let is_elsewhere = session.is_of_this_host() == Some(false);
        if !is_of_this_boot(session)? {
            return match is_elsewhere && may_be_shared(self.directory()) {
                true => self.left_elsewhere(header, session, missing),
                false => Ok(Left::OtherBoot(session.clone())),
            };
        }
        let why = match found {
            Found::Counts(map) => return Ok(Left::Map(self.finished(map, &geometry, top)?)),
            Found::OfLayer(layer, map) if is_beneath(header, layer) => {
                return Ok(Left::Frozen(map));
            }
            Found::OfLayer(..) => "is of another layer",
            Found::Missing => "is not there",
            Found::Foreign(why) => why,
        };
        self.missing(header, session, (&path, why), missing)
    }

    /// The map that a process left, whose writes into a data file that is memory are finished.
    fn finished(
        &self,
        map: RuntimeMap,
        geometry: &Geometry,
        top: &LayerRecord,
    ) -> Result<RuntimeMap, DiskError> {
        if map.has_unfinished(geometry)? {
            let path = self.layer_paths(top).data;
            let data = OpenOptions::new().read(true).write(true).open(&path);
            let data = data.map_err(DiskError::file("open", &path))?;
            map.finish_writes(geometry, &data)?;
        }
        Ok(map)
    }

    /// The map is not at `path`; it may be where the header says.
    fn missing(
        &self,
        header: &HeaderPayload,
        session: &Session,
        (path, mut why): (&Path, &'static str),
        missing: Unflushed,
    ) -> Result<Left, DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let there = session.runtime_map();
        if there != path {
            why = match RuntimeMap::look(there, &geometry(header, top)?, header.attach) {
                Ok(Found::Counts(_) | Found::OfLayer(..)) => {
                    return Err(DiskError::RuntimeMapElsewhere {
                        name: self.name().into(),
                        directory: there.parent().unwrap_or(Path::new("/")).into(),
                        path: there.into(),
                    });
                }
                Ok(Found::Missing) => "is not there",
                Ok(Found::Foreign(why)) => why,
                Err(error) => return Err(error.into()),
            };
        }
        if session.is_of_this_host() == Some(false) {
            return self.left_elsewhere(header, session, missing);
        }
        let error = DiskError::RuntimeMapMissing {
            name: self.name().into(),
            path: there.into(),
            why,
            since: moment(session.since),
            host: session.host_name().into(),
        };
        match missing {
            Unflushed::Needed | Unflushed::TakenFrom(_) => Err(error),
            Unflushed::GivenUp => {
                log::warn!("given up: {error}");
                Ok(Left::GivenUp)
            }
        }
    }

    /// Makes durable what the last user of a claimed disk left, and has the header say so. That takes
    /// the disk's key, if there is anything.
    ///
    /// # Errors
    /// As [`Disk::left`], and what unlocking and flushing fail with; the disk is as before then.
    pub fn settle(
        &self,
        installation: &Installation,
        claim: &LayerFile,
        runtime_dir: &Path,
    ) -> Result<(), DiskError> {
        let file = self.header_file()?;
        let mut lock = file.lock()?;
        self.settle_under(
            installation,
            &mut lock,
            claim,
            (runtime_dir, Unflushed::Needed),
        )
        .map(drop)
    }

    /// As [`Disk::settle`] under the header's lock; the header as it is then, if it was changed.
    pub(crate) fn settle_under(
        &self,
        installation: &Installation,
        lock: &mut HeaderLock<'_>,
        claim: &LayerFile,
        (runtime_dir, missing): (&Path, Unflushed),
    ) -> Result<Option<Header>, DiskError> {
        let found = lock.read()?;
        self.check_claim(found.claims(), claim)?;
        let left = self.left(found.claims(), runtime_dir, missing)?;
        if matches!(left, Left::Nothing | Left::OtherBoot(_)) {
            return Ok(None);
        }
        if let Some(failed) = self.failed_sync(found.claims(), &left)? {
            return Err(self.sync_failed(failed));
        }
        let (mut header, dek) = self.unlock(installation, found)?;
        let cache = left.cache()?;
        if let Left::Map(runtime) = &left {
            let flushed = self.flush_left(&header, claim, runtime);
            flushed.inspect_err(|error| self.keep_failed_sync(installation, lock, error))?;
        }
        let before = header.session.take();
        ended(&mut header, cache);
        lock.write(&header, &dek)?;
        self.remove_maps(before.as_ref(), runtime_dir);
        Ok(Some(header))
    }

    /// Makes durable what a runtime map that counts has. That takes no key.
    pub(crate) fn flush_left(
        &self,
        header: &HeaderPayload,
        claim: &LayerFile,
        runtime: &RuntimeMap,
    ) -> Result<(), DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        self.check_claim(header, claim)?;
        check_data_file(claim.file(), &geometry(header, top)?)?;
        let same_claim = claim.try_clone().map_err(PipelineError::from)?;
        let paths = |layer: &LayerRecord| self.layer_paths(layer);
        let files = open_files(same_claim, header, paths)?;
        let map = layer_map(header, top, &paths(top))?;
        let volume = Volume::open_runtime(map, lower_layers(header, paths)?, runtime)?;
        Ok(DiskIo::open_to_flush(Arc::new(volume), files)?.flush()?)
    }

    /// After everything is durable, or when nothing was served: has the header say that the disk was
    /// detached in order, by the key of its top layer's headers. Only then its runtime map goes. `attach` is what the
    /// header had of the attach that ends; what it has then.
    ///
    /// # Errors
    /// [`DiskError`]; the session and the map stay, so that the disk can be attached again.
    pub fn end_session(
        &self,
        key: &HeaderKey,
        attach: Uuid,
        runtime: &RuntimeMap,
        path: &Path,
    ) -> Result<Uuid, DiskError> {
        let cache = runtime.cache()?;
        let file = self.header_file()?;
        let mut lock = file.lock()?;
        let mut header = lock.read()?.authenticate_by(key)?;
        // Else it is ended: storage had failed to say that it has written that, or whoever took the disk over has let go.
        if header.session.is_some() || header.attach == attach {
            self.refuse_taken_over(&header, attach)?;
            ended(&mut header, cache);
            lock.write(&header, key)?;
        } else {
            lock.make_durable()?;
        }
        drop(lock);
        if let Err(error) = std::fs::remove_file(path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
        Ok(header.attach)
    }

    /// Refuses an attach, as the header had it, that another one has taken the disk over from: it was frozen say, storage
    /// has taken its lock away, and whoever knew no better has told another host that it is gone.
    ///
    /// # Errors
    /// [`DiskError::Attached`].
    pub fn refuse_taken_over(&self, header: &HeaderPayload, attach: Uuid) -> Result<(), DiskError> {
        if header.attach == attach {
            return Ok(());
        }
        let why = match &header.session {
            Some(session) => format!(
                "an attach on {} has taken it over at {}; end this one",
                session.host_name(),
                moment(session.since)
            ),
            None => "another attach has taken it over, and let go of it since; end this one".into(),
        };
        Err(DiskError::Attached {
            name: self.name().into(),
            why,
        })
    }

    /// Removes the files of layers that an authentic header says are gone, which a crash has left. They
    /// cost nothing but space.
    pub fn sweep_gone(&self, header: &Header) {
        for layer in &header.gone {
            if let Err(error) = layer_files::remove(self.directory(), *layer) {
                log::warn!("what a dropped layer left stays: {error}");
            }
        }
    }

    /// Removes runtime maps that count no more, which costs nothing but space when it fails.
    pub(crate) fn remove_maps(&self, session: Option<&Session>, runtime_dir: &Path) {
        let here = runtime_map(runtime_dir, self.id());
        let there = session.map(Session::runtime_map);
        // A header tells only of the disk's own file.
        let there = there.filter(|path| path.file_name() == here.file_name());
        for path in [Some(here.as_path()), there].into_iter().flatten() {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {e}", path.display());
                }
                _ => {}
            }
        }
    }
}

/// The session that an attach begins whose runtime map is in `runtime_dir`, which is there.
///
/// # Errors
/// [`DiskError::File`], [`DiskError::Argument`] for a directory that a header cannot name.
pub fn begun(runtime_dir: &Path, disk: Uuid) -> Result<Session, DiskError> {
    let path = absolute(&runtime_map(runtime_dir, disk));
    let boot = boot_id().map_err(DiskError::file("read the kernel's boot id for", &path))?;
    Session::new(boot, this_host(), &path).map_err(|why| {
        DiskError::Argument(format!(
            "{} cannot be noted in the disk's header: {why}; choose another --runtime-dir",
            path.display()
        ))
    })
}

/// The path with its directory as the kernel names it, so that one directory has one name.
fn absolute(path: &Path) -> PathBuf {
    let named = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    named()
        .or_else(|| std::path::absolute(path).ok())
        .unwrap_or_else(|| path.to_owned())
}

/// Whether the header has a layer beneath its top.
fn is_beneath(header: &HeaderPayload, layer: Uuid) -> bool {
    let is_top = header.top().is_some_and(|top| top.id == layer);
    !is_top && header.layer(layer).is_some()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::import::Cancel;
    use crate::layers::{LayerOp, NewLayers, SnapshotRequest, SwapVolume, Unattached};
    use crate::lifecycle::create::{CreateRequest, create};
    use crate::resource::disk::claim_data;
    use installation::envelope::ResourceKind;

    /// An attach that dies when the header names other layers.
    struct Dies;

    impl SwapVolume for Dies {
        fn quiesce(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
            Ok(())
        }

        fn swap(&mut self, _: NewLayers<'_>) -> Result<(), DiskError> {
            Ok(())
        }

        fn resume(&mut self) {}

        fn end(&mut self) {}

        fn grow(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
            Ok(())
        }

        fn unattached(&mut self) -> Option<&mut Unattached> {
            None
        }
    }

    /// A disk "d" whose attach died before it served anything.
    pub(crate) fn attached(installation: &Installation, runtime: &Path) -> Disk {
        let request = CreateRequest {
            name: "d".into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: None,
            sector_size: 4096,
            logical_sector_size: None,
            data_dir: None,
        };
        create(installation, &request, &Cancel::default(), |_| |_| {}).unwrap();
        let disk = Disk::find(installation, "d").unwrap();
        let file = disk.header_file().unwrap();
        let mut lock = file.lock().unwrap();
        let (mut header, dek) = disk.unlock(installation, lock.read().unwrap()).unwrap();
        let (path, next) = (runtime_map(runtime, header.disk), Uuid::new_v4());
        let geometry = geometry(&header, header.top().unwrap()).unwrap();
        let ids = [header.attach, next];
        let cache = Some(CacheMode::WriteThrough);
        drop(RuntimeMap::open_with(&path, &geometry, ids, cache).unwrap());
        header.attach = next;
        header.session = Some(begun(runtime, header.disk).unwrap());
        lock.write(&header, &dek).unwrap();
        drop(lock);
        disk
    }

    #[test]
    fn an_attach_that_dies_between_two_stacks_leaves_a_disk_that_opens() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let read = || disk.header_file().unwrap().read().unwrap().claims().clone();
        let left = |header: &HeaderPayload| disk.left(header, runtime.path(), Unflushed::Needed);
        assert!(matches!(left(&read()), Ok(Left::Map(_))));
        let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: "s".into(),
            incremental: false,
            data_dir: None,
        });
        snapshot.apply(&installation, &disk, &mut Dies).unwrap();

        let header = read();
        assert!(header.session.is_some());
        let found = left(&header).unwrap();
        assert!(matches!(found, Left::Frozen(_)));
        assert_eq!(found.cache().unwrap(), Some(CacheMode::WriteThrough));
        // Whoever comes next has the header say that there is nothing, and what the guest chose.
        let top = header.top().unwrap();
        let claim = claim_data("d", &disk.layer_paths(top).data).unwrap();
        disk.settle(&installation, &claim, runtime.path()).unwrap();
        let settled = read();
        assert!(settled.session.is_none() && settled.write_through);
        assert_ne!(settled.attach, header.attach);
        assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_left_on_another_host_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let [runtime, elsewhere] = [0; 2].map(|_| tempfile::tempdir_in("/dev/shm").unwrap());
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let mut header = disk.header_file().unwrap().read().unwrap().claims().clone();
        let said = |host: &str, boot: Option<Uuid>, header: &mut HeaderPayload| {
            let session = header.session.as_mut().unwrap();
            session.host = host.into();
            session.boot = boot.unwrap_or(session.boot);
        };
        let left = |header: &HeaderPayload, missing| disk.left(header, elsewhere.path(), missing);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        for boot in [None, Some(Uuid::new_v4())] {
            said("other/0123456789abcdef", boot, &mut header);
            // Unless the map is here: this host was given another name.
            let here = disk.left(&header, runtime.path(), Unflushed::Needed);
            assert_eq!(boot.is_none(), matches!(here, Ok(Left::Map(_))));
            if boot.is_none() {
                for missing in [Unflushed::Needed, Unflushed::GivenUp] {
                    let there = left(&header, missing);
                    assert!(matches!(there, Err(DiskError::RuntimeMapElsewhere { .. })));
                }
                let hidden = runtime_map(&elsewhere.path().join("hidden"), disk.id());
                header.session.as_mut().unwrap().runtime_map = text(&hidden);
            }
            let refused = left(&header, Unflushed::Needed);
            // The disk was moved here, or this host is called otherwise since it was booted.
            if boot.is_some() && !may_be_shared(disk.directory()) {
                assert!(matches!(refused, Ok(Left::OtherBoot(_))));
                continue;
            }
            assert!(matches!(refused, Err(DiskError::NotLetGo { .. })));
            // It is not lost.
            let given_up = left(&header, Unflushed::GivenUp);
            assert!(matches!(given_up, Err(DiskError::NotLetGo { .. })));
        }
        // The power went, as far as that can be told of a header of before.
        for host in [this_host(), "other"] {
            said(host, None, &mut header);
            let gone = left(&header, Unflushed::Needed);
            assert!(matches!(gone, Ok(Left::OtherBoot(_))), "{host}");
        }
    }

    #[test]
    fn an_attach_from_which_the_disk_was_taken_over_ends_no_session() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let found = disk.header_file().unwrap().read().unwrap();
        let (header, dek) = disk.unlock(&installation, found).unwrap();
        let key = HeaderKey::of(&dek).unwrap();
        let left = disk.left(&header, runtime.path(), Unflushed::Needed);
        let map = left.unwrap().map().unwrap();
        let path = runtime_map(runtime.path(), disk.id());
        let end = |attach| disk.end_session(&key, attach, &map, &path);
        let refused = end(Uuid::new_v4());
        assert!(matches!(refused, Err(DiskError::Attached { .. })));
        assert!(path.exists());
        let after = end(header.attach).unwrap();
        assert!(!path.exists());
        // What has no session is not the old attach's either, which has nothing to end in it.
        let now = disk.header_file().unwrap().read().unwrap().claims().clone();
        let refused = disk.refuse_taken_over(&now, header.attach);
        assert!(matches!(refused, Err(DiskError::Attached { .. })));
        assert_eq!(end(header.attach).unwrap(), after);
    }

    #[test]
    fn a_map_of_a_layer_that_the_disk_has_not_is_none_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let mut header = disk.header_file().unwrap().read().unwrap().claims().clone();
        header.layers[0].id = Uuid::new_v4();
        let left = disk.left(&header, runtime.path(), Unflushed::Needed);
        assert!(matches!(left, Err(DiskError::RuntimeMapMissing { .. })));
    }
}
