//! An attached disk: its size and its layers as the data plane has them, and how both change.
//!
//! The disk's header says first what is to be; this brings the data plane there.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::begin::map_lock::{await_map, lock_map};
use crate::begin::setup::stack_of;
use crate::serve::kept_keys::KeptKeys;
use crate::serve::passed::{Parcel, Passed};
use crate::serve::turn::Turns;
use disks::{self, Disk, DiskError, NewLayers, SwapVolume, Unattached};
use installation::envelope::{FailedSync, HeaderKey, HeaderPayload, LayerRecord, SyncedFile};
use protocol::{Commands, DiskFiles, Limits, ProtocolError, Setup};
use traces::Span;
use volume::pipeline::PipelineError;
use volume::store::{LayerFile, Witness};
use volume::{CacheMode, FailedSync as FailedSyncOf, RuntimeMap};

/// An attached disk, of which one thing is changed at a time.
pub(crate) struct AttachedDisk {
    disk: Arc<Disk>,
    commands: Arc<Commands>,
    keys: Arc<KeptKeys>,
    runtime_path: PathBuf,
    now: Mutex<Now>,
    turns: Arc<Turns>,
}

/// What the data plane has.
pub(crate) struct Now {
    pub(crate) top: Uuid,
    /// Bytes.
    pub(crate) size: u64,
    /// Authenticates headers of that top layer; there is none before the disk was taken once.
    pub(crate) key: Option<Arc<HeaderKey>>,
    /// What this process has of the disk; nothing while another attach may have it.
    pub(crate) held: Option<Held>,
    /// The header as the data plane serves it. The next one serves the same, whoever has the file locked.
    pub(crate) header: HeaderPayload,
    /// What the disk may do at most.
    pub(crate) limits: Limits,
}

/// What an attach has of a disk that it holds.
pub(crate) struct Held {
    /// The top layer's.
    pub(crate) runtime: RuntimeMap,
    /// A second handle of its data file. The lock is both processes': it is given up when this one has
    /// put everything away, or when both have ended.
    pub(crate) claim: LayerFile,
    /// Knows what a data plane was told of and could not say any more; nothing where it could not be opened.
    pub(crate) witness: Option<Witness>,
}

impl Held {
    /// Of a disk whose header that is, from now on.
    pub(crate) fn of(
        disk: &Disk,
        header: &HeaderPayload,
        runtime: RuntimeMap,
        claim: LayerFile,
    ) -> Self {
        let path = header.top().map(|top| disk.layer_paths(top).data);
        let witness = path.map(|path| Witness::open(&path)).transpose();
        let witness = witness.unwrap_or_else(|error| {
            log::warn!("what the kernel loses of the disk is not asked for: {error}");
            None
        });
        Self {
            runtime,
            claim,
            witness,
        }
    }
}

/// What the next data plane is given of a disk.
pub(crate) struct OpenedAgain {
    pub(crate) setup: Setup,
    pub(crate) files: DiskFiles,
    /// The layers, from the top down.
    pub(crate) layers: Vec<Uuid>,
    /// The size is another than what the last one served.
    pub(crate) resized: bool,
}

/// What the next program of this process is told of a disk.
pub(crate) struct ServedDisk {
    pub(crate) header: HeaderPayload,
    pub(crate) top: Uuid,
    pub(crate) size: u64,
    pub(crate) limits: Limits,
    pub(crate) runtime: Passed,
    pub(crate) claim: Passed,
    pub(crate) witness: Option<Passed>,
}

impl AttachedDisk {
    /// The disk as it was attached.
    pub(crate) fn new(
        disk: Arc<Disk>,
        commands: Arc<Commands>,
        keys: Arc<KeptKeys>,
        runtime_path: PathBuf,
        now: Now,
    ) -> Self {
        Self {
            disk,
            commands,
            keys,
            runtime_path,
            now: Mutex::new(now),
            turns: Arc::default(),
        }
    }

    /// For whoever changes the disk's layers or its job, or relies on that neither changes.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Changes what the disk may do at most, in this data plane and in those that follow it.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub(crate) fn set_limits(&self, limits: Limits) -> Result<(), ProtocolError> {
        self.now().limits = limits;
        match self.commands.set_limits(limits) {
            Err(ProtocolError::Ended(_)) => Ok(()),
            told => told,
        }
    }

    /// What the disk may do at most.
    pub(crate) fn limits(&self) -> Limits {
        self.now().limits
    }

    /// Opens again all that a data plane is given, of the disk as it was served last; `first` is what the first
    /// one was told. Nobody may be changing the disk. `None` while something of the last one is still under way.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn open_again(&self, first: &Setup) -> Result<Option<OpenedAgain>, DiskError> {
        let now = self.now();
        let held = self.held(&now)?;
        let header = &now.header;
        let paths = |layer: &LayerRecord| self.disk.layer_paths(layer);
        let data = held.claim.try_clone().map_err(PipelineError::from)?;
        let cache = held.runtime.cache()?;
        let write_through = cache.map_or(header.write_through, |c| c == CacheMode::WriteThrough);
        let stack = stack_of(header)?;
        let files = disks::open_files(data, header, paths)?;
        if !lock_map(&files).map_err(|e| self.failed(e.to_string()))? {
            return Ok(None);
        }
        self.note_lost(held)?;
        Ok(Some(OpenedAgain {
            layers: stack.layers.iter().map(|layer| layer.id).collect(),
            resized: header.size != now.size,
            setup: Setup {
                stack,
                limits: now.limits,
                write_through,
                ..first.clone()
            },
            files: DiskFiles {
                files,
                lower_maps: disks::lower_maps(header, paths)?,
                runtime: held.runtime.try_clone()?,
            },
        }))
    }

    /// Notes a sync that failed and of which the last data plane was told without a moment left to say it. The next one
    /// finds the note: its flushes fail, and it tells that.
    fn note_lost(&self, held: &Held) -> Result<(), DiskError> {
        // First: the kernel tells once.
        if held.runtime.failed_sync()?.is_some() {
            return Ok(());
        }
        let Some(why) = held.witness.as_ref().and_then(Witness::lost_write) else {
            return Ok(());
        };
        log::error!(
            "the kernel has lost writes of the disk {}, and its data plane has died over that: {why}",
            self.name()
        );
        Ok(held.runtime.note_failed_sync(FailedSyncOf::Data)?)
    }

    /// Notes it for the next attach, when the data plane has not ended in order and no other one follows: the witness
    /// ends with this process.
    pub(crate) fn note_lost_at_end(&self) {
        let now = self.now();
        let Some(held) = &now.held else {
            return;
        };
        // A sync of it may still be under way. What is known by then is noted all the same.
        if let Err(error) = self.await_last(&now, held) {
            log::warn!("something of the last data plane may be under way: {error}");
        }
        if let Err(error) = self.note_lost(held) {
            log::error!("it is not noted whether the kernel has lost writes: {error}");
        }
    }

    /// Waits for what the kernel still does for the last data plane.
    fn await_last(&self, now: &Now, held: &Held) -> Result<(), DiskError> {
        let data = held.claim.try_clone().map_err(PipelineError::from)?;
        let paths = |layer: &LayerRecord| self.disk.layer_paths(layer);
        let files = disks::open_files(data, &now.header, paths)?;
        await_map(&files).map_err(|error| self.failed(error.to_string()))
    }

    /// The data plane serves the disk as it was opened last.
    pub(crate) fn served_again(&self) {
        let mut now = self.now();
        now.size = now.header.size;
    }

    /// For the next program: the disk as it is served.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn served(&self, parcel: &mut Parcel) -> io::Result<ServedDisk> {
        let now = self.now();
        let held = now.held.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(ServedDisk {
            header: now.header.clone(),
            top: now.top,
            size: now.size,
            limits: now.limits,
            runtime: parcel.put(&held.runtime)?,
            claim: parcel.put(held.claim.file())?,
            witness: held.witness.as_ref().map(|it| parcel.put(it)).transpose()?,
        })
    }

    /// Writes the key of the header and the DEKs that are kept into a socket of the next program; of which layers
    /// these are, if there are any.
    ///
    /// # Errors
    /// [`DiskError::Key`].
    pub(crate) fn send_keys(&self, to: &mut impl Write) -> Result<Option<Vec<Uuid>>, DiskError> {
        let key = self.now().key.clone();
        key.ok_or_else(|| self.not_held())?.send(to)?;
        Ok(self.keys.send(to)?)
    }

    /// The top layer that is served.
    pub(crate) fn top(&self) -> Uuid {
        self.now().top
    }

    /// Has the disk served with the size that its header says.
    ///
    /// # Errors
    /// Why it is served with the old size.
    fn serve_size(&self, header: &HeaderPayload) -> Result<(), String> {
        let mut now = self.now();
        let Some(top) = header.top().filter(|top| top.id == now.top) else {
            return Err("the disk's header does not name the layer that is attached".into());
        };
        let geometry = disks::geometry(header, top).map_err(|e| e.to_string())?;
        let held = self.held(&now).map_err(|e| e.to_string())?;
        held.runtime.grow(&geometry).map_err(|e| e.to_string())?;
        match self.commands.resize(header.size) {
            Ok(()) => now.size = header.size,
            // The next data plane serves what the header says.
            Err(ProtocolError::Ended(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
        now.header = header.clone();
        Ok(())
    }

    /// Has the header say something else, while nobody can be asked for the disk's key.
    ///
    /// # Errors
    /// [`DiskError`]; the header says what it said.
    fn note(&self, change: impl FnOnce(&mut HeaderPayload)) -> Result<(), DiskError> {
        let file = self.disk.header_file()?;
        let mut lock = file.lock()?;
        let now = self.now();
        self.held(&now)?;
        let key = now.key.as_ref().ok_or_else(|| self.not_held())?;
        let mut header = lock.read()?.authenticate_by(key)?;
        self.disk.refuse_taken_over(&header, now.header.attach)?;
        change(&mut header);
        Ok(lock.write(&header, &**key)?)
    }

    /// Has the header say that a sync failed, until the disk is repaired. The first failure counts.
    ///
    /// # Errors
    /// [`DiskError`]; the runtime map says so in any case.
    pub(crate) fn note_failed_sync(&self, file: SyncedFile, why: &str) -> Result<(), DiskError> {
        let claims = self.disk.header_file()?.read()?;
        if claims.claims().failed_sync.is_some() {
            return Ok(());
        }
        self.note(|header| {
            if let Some(top) = header.top().map(|top| top.id) {
                header.failed_sync = Some(FailedSync::new(top, Some(file), why));
            }
        })
    }

    /// The disk's name.
    pub(crate) fn name(&self) -> &str {
        self.disk.name()
    }

    /// Where the runtime map is.
    pub(crate) fn runtime_path(&self) -> &Path {
        &self.runtime_path
    }

    /// After the end of the data plane: has the header say that the disk was detached in order, since all
    /// that was completed is durable. Only then the runtime map goes.
    ///
    /// # Errors
    /// [`DiskError`]; the map stays, so that the disk can be attached again.
    pub(crate) fn detached(&self) -> Result<(), DiskError> {
        let mut now = self.now();
        let (Some(held), Some(key)) = (&now.held, &now.key) else {
            // Another attach may have it.
            return Ok(());
        };
        let (attach, path) = (now.header.attach, &self.runtime_path);
        let ended = self.disk.end_session(key, attach, &held.runtime, path);
        let attach = ended.map_err(|error| {
            self.failed(format!(
                "all that it was given is durable, but its header cannot say that it was detached \
                 ({error}); attach and detach it again"
            ))
        })?;
        now.header.attach = attach;
        Ok(())
    }

    /// Gives up the claim of the disk, if this process has it. `before` is called right before that.
    pub(crate) fn let_go(&self, before: impl FnOnce()) {
        let Some(held) = self.now().held.take() else {
            return;
        };
        before();
        if let Err(error) = flock(held.claim.file(), FlockOperation::Unlock) {
            log::warn!("the claim of the disk ends with this process only: {error}");
        }
    }

    /// Whether this process has the disk.
    pub(crate) fn is_held(&self) -> bool {
        self.now().held.is_some()
    }

    /// That this process has the disk.
    ///
    /// # Errors
    /// [`DiskError::Attached`].
    pub(crate) fn check_held(&self) -> Result<(), DiskError> {
        self.held(&self.now()).map(drop)
    }

    /// The top layer as it was last, and the key of its headers, if the disk was taken once.
    pub(crate) fn known(&self) -> Option<(Uuid, Arc<HeaderKey>)> {
        let now = self.now();
        Some((now.top, now.key.clone()?))
    }

    /// The disk as it was served last, or as it was found when this process began to wait for it.
    pub(crate) fn header(&self) -> HeaderPayload {
        self.now().header.clone()
    }

    /// This process has the disk from now on.
    pub(crate) fn hold(&self, header: HeaderPayload, key: Arc<HeaderKey>, held: Held) {
        let mut now = self.now();
        if let Some(top) = header.top() {
            now.top = top.id;
        }
        now.size = header.size;
        now.key = Some(key);
        now.held = Some(held);
        now.header = header;
    }

    fn held<'a>(&self, now: &'a Now) -> Result<&'a Held, DiskError> {
        now.held.as_ref().ok_or_else(|| self.not_held())
    }

    fn not_held(&self) -> DiskError {
        self.failed("another attach has it, or may have it; ask there".into())
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // A holder that panicked has left a map that counts, as a crash there does.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: String) -> DiskError {
        DiskError::Attached {
            name: self.disk.name().into(),
            why,
        }
    }

    /// Opens all that the data plane needs of other layers, and has it swap them.
    fn hand_over(&self, layers: NewLayers<'_>) -> Result<(), DiskError> {
        let mut now = self.now();
        let NewLayers {
            header,
            deks,
            claim,
        } = layers;
        let top = header
            .top()
            .ok_or_else(|| self.failed("its header has no layer".into()))?;
        let paths = |layer: &LayerRecord| self.disk.layer_paths(layer);
        let is_new = claim.is_some();
        let held = self.held(&now)?;
        let runtime = match claim {
            // Stamped for the layer, so that what was left at the path counts no more.
            Some(_) => {
                let geometry = disks::geometry(header, top)?;
                let (ids, cache) = ([header.attach; 2], held.runtime.cache()?);
                RuntimeMap::open_with(&self.runtime_path, &geometry, ids, cache)?.0
            }
            None => held.runtime.try_clone()?,
        };
        let data = match claim {
            Some(claim) => claim,
            // The data plane keeps what it has of it.
            None => LayerFile::open(&paths(top).data).map_err(PipelineError::from)?,
        };
        let kept = data.try_clone().map_err(PipelineError::from)?;
        let key = HeaderKey::of(deks.top())?;
        let files = DiskFiles {
            files: disks::open_files(data, header, paths)?,
            lower_maps: disks::lower_maps(header, paths)?,
            runtime: runtime.try_clone()?,
        };
        // Of a layer that it has already the data plane goes on with its own.
        if is_new && !lock_map(&files.files).map_err(|e| self.failed(e.to_string()))? {
            return Err(self.failed("the map of its new layer is in use".into()));
        }
        if top.id != now.top {
            let claim = kept;
            (now.top, now.key) = (top.id, Some(Arc::new(key)));
            now.held = Some(Held::of(&self.disk, header, runtime, claim));
        }
        now.header = header.clone();
        let layers = header.layers.iter().rev().map(|layer| layer.id);
        self.keys.exchange(layers.collect(), deks);
        match self.commands.swap_volume(stack_of(header)?, &files, deks) {
            Err(error @ ProtocolError::Ended(_)) => {
                log::warn!(
                    "{error} while its layers were swapped; the next one serves the new ones"
                );
                Ok(())
            }
            swapped => swapped.map_err(|why| self.failed(why.to_string())),
        }
    }
}

impl SwapVolume for &AttachedDisk {
    fn still_has(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
        let attach = self.now().header.attach;
        self.disk.refuse_taken_over(header, attach)
    }

    fn quiesce(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
        let now = self.now();
        self.held(&now)?;
        self.disk.refuse_taken_over(header, now.header.attach)?;
        if header.top().is_none_or(|top| top.id != now.top) {
            return Err(
                self.failed("its header names another top layer than what is served".into())
            );
        }
        if header.size != now.size {
            return Err(self.failed(format!(
                "its header says {} bytes, and {} are served; resize it again",
                header.size, now.size
            )));
        }
        drop(now);
        let _span = Span::begin("quiesce data plane");
        self.commands
            .quiesce()
            .map_err(|why| self.failed(format!("it is not quiesced, and its guest goes on: {why}")))
    }

    fn swap(&mut self, layers: NewLayers<'_>) -> Result<(), DiskError> {
        let _span = Span::begin("swap layers");
        self.hand_over(layers).map_err(|error| {
            self.end();
            self.failed(format!(
                "its layers are changed, but it has ended, since its data plane did not swap them: \
                 {error}; attach it again"
            ))
        })
    }

    fn resume(&mut self) {
        match self.commands.resume() {
            // The next one is not quiesced.
            Ok(()) | Err(ProtocolError::Ended(_)) => {}
            Err(why) => {
                log::error!("the data plane does not resume: {why}");
                self.end();
            }
        }
    }

    fn end(&mut self) {
        // One that cannot be told is at its end.
        if let Err(error) = self.commands.end() {
            log::warn!("the data plane cannot be told to end: {error}");
        }
    }

    fn grow(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
        let _span = Span::begin("tell data plane its size");
        self.serve_size(header)
            .map_err(|reason| DiskError::SizeNotServed {
                name: self.name().into(),
                size: header.size,
                reason,
            })
    }

    fn unattached(&mut self) -> Option<&mut Unattached> {
        None
    }
}
