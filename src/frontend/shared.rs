//! What all queues of a disk share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::request::{ChainLimits, Disk};
use crate::store::StackFiles;
use crate::units::{SECTOR_SIZE, Sector};
use crate::volume::{RuntimeMap, Volume, check_data_file};

use super::key::SharedKey;
use super::limits::Limiter;
use super::stalled::FullStorage;
use super::{Discard, FrontendError, OnFull, Setup};

/// What changes when the disk grows, as a whole and for all queues at once.
pub(super) struct Extent {
    pub(super) volume: Arc<Volume>,
    pub(super) files: StackFiles,
    pub(super) disk: Disk,
}

/// What all queues of the disk share.
pub(super) struct Shared {
    extent: Mutex<Arc<Extent>>,
    pub(super) runtime: RuntimeMap,
    pub(super) key: SharedKey,
    pub(super) limits: ChainLimits,
    /// The longest time that a queue looks busily for work before it sleeps.
    pub(super) poll: Duration,
    /// What all queues together may do at most.
    pub(super) limiter: Limiter,
    /// What becomes of discarded blocks.
    pub(super) discard: Discard,
    /// What becomes of requests that find the host's storage full.
    pub(super) on_full: OnFull,
    /// Whether there are any.
    pub(super) storage: Arc<FullStorage>,
    /// Writes are to be durable before they complete.
    pub(super) write_through: AtomicBool,
}

impl Shared {
    /// The disk of `extent`, served as `setup` says and written through for now.
    ///
    /// # Errors
    /// [`FrontendError::Io`].
    pub(super) fn new(
        extent: Extent,
        runtime: RuntimeMap,
        key: SharedKey,
        limits: ChainLimits,
        setup: &Setup,
    ) -> Result<Self, FrontendError> {
        let storage = FullStorage::new().map_err(|source| FrontendError::Io {
            what: "make an eventfd",
            source,
        })?;
        Ok(Self {
            extent: Mutex::new(Arc::new(extent)),
            runtime,
            key,
            limits,
            poll: Duration::from_micros(setup.poll_us.into()),
            limiter: Limiter::new(&setup.limits),
            discard: setup.discard,
            on_full: setup.on_full,
            storage: Arc::new(storage),
            write_through: true.into(),
        })
    }

    /// The disk as it is now.
    pub(super) fn extent(&self) -> Arc<Extent> {
        self.lock_extent().clone()
    }

    /// Makes the disk `size` bytes large, while no queue has a request under way. Its files and its
    /// runtime map have grown already.
    pub(super) fn grow(&self, size: u64) -> Result<Arc<Extent>, FrontendError> {
        let now = self.extent();
        let volume = now.volume.grown(size, &self.runtime)?;
        check_data_file(now.files.data.file(), volume.geometry())?;
        let mut files = now.files.try_clone()?;
        files.map_grown(volume.geometry().data_len())?;
        let grown = Arc::new(Extent {
            volume: Arc::new(volume),
            files,
            disk: Disk {
                capacity: Sector(size / SECTOR_SIZE),
                ..now.disk.clone()
            },
        });
        *self.lock_extent() = grown.clone();
        Ok(grown)
    }

    fn lock_extent(&self) -> MutexGuard<'_, Arc<Extent>> {
        // It is replaced as a whole, so one whose holder panicked is whole too.
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
