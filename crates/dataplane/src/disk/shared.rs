//! What all queues of a disk share.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use keys::units::{SECTOR_SIZE, Sector};
use protocol::{Discard, DiskFiles, OnFull, Setup, Stack, StackLayer};
use volume::store::{
    BufferBudget, BufferPool, OWN_BUFFERS, Pages, StackFiles, StoreError, UringStore,
};
use volume::{LayerMap, LowerLayer, RuntimeMap, Volume, check_data_file};

use crate::request::{ChainLimits, Disk};

use crate::DataplaneError;
use crate::counters::Counters;

use super::full_storage::FullStorage;
use super::key::SharedKey;
use super::limiter::Limiter;
use super::memory::{MemoryPlan, most_workers};
use super::ring_news::RingNews;
use super::rings::Rings;
use super::sharing::MemoryNews;
use super::sync_alarm::SyncAlarm;

/// What changes when the disk grows or gets other layers, as a whole and for all queues at once.
pub(crate) struct Extent {
    pub(crate) volume: Arc<Volume>,
    pub(crate) files: Arc<StackFiles>,
    /// The runtime map of the top layer.
    pub(crate) runtime: RuntimeMap,
    pub(crate) disk: Disk,
}

impl Extent {
    /// The ids of the disk's layers, from the top down.
    pub(crate) fn layers(&self) -> impl Iterator<Item = Uuid> {
        let lower = self.volume.lower().iter();
        std::iter::once(self.volume.geometry().layer)
            .chain(lower.map(|layer| layer.geometry().layer))
    }

    /// The same disk with another stack, which its header names already and which was opened. What it
    /// has of the top layer is used only when that is a new one.
    ///
    /// # Errors
    /// [`DataplaneError`] when it is no stack that the disk can go on with.
    pub(crate) fn swapped(&self, stack: &Stack, opened: DiskFiles) -> Result<Self, DataplaneError> {
        let (top, beneath) = split(stack)?;
        let now = self.volume.geometry();
        let geometry = top.geometry()?;
        if geometry.size != now.size {
            return Err(DataplaneError::Setup(format!(
                "the new stack has {} bytes, the disk {}",
                geometry.size, now.size
            )));
        }
        let DiskFiles {
            mut files,
            mut runtime,
            lower_maps,
        } = opened;
        // A merge may have filled a layer that stays, so that what is known of its map is old.
        let known = match stack.layers.len() > self.files.layers() {
            true => self.volume.lower(),
            false => &[],
        };
        let lower = open_lower(beneath, &files, lower_maps, known)?;
        let volume = if top.id == now.layer {
            files.data = self.files.data.try_clone()?;
            files.map = self.files.map.try_clone()?;
            runtime = self.runtime.try_clone()?;
            self.volume.over(lower)?
        } else {
            check_data_file(files.data.file(), &geometry)?;
            let map = files.map.try_clone()?.into_file();
            Volume::open_runtime(LayerMap::new(geometry, map), lower, &runtime)?
        };
        files.map_memory(volume.geometry().data_len())?;
        Ok(Self {
            volume: Arc::new(volume),
            files: Arc::new(files),
            runtime,
            disk: self.disk.clone(),
        })
    }
}

/// The top layer, and those beneath it.
pub(crate) fn split(stack: &Stack) -> Result<(&StackLayer, &[StackLayer]), DataplaneError> {
    let layer = stack.layers.split_first();
    layer.ok_or_else(|| DataplaneError::Setup("a disk has a layer".into()))
}

/// The layers beneath the top, with their maps; one that is `known` already is taken as it is.
pub(crate) fn open_lower(
    layers: &[StackLayer],
    files: &StackFiles,
    maps: Vec<File>,
    known: &[Arc<LowerLayer>],
) -> Result<Vec<Arc<LowerLayer>>, DataplaneError> {
    let mut lower = Vec::new();
    for ((layer, map), data) in layers.iter().zip(maps).zip(&files.lower) {
        let geometry = layer.geometry()?;
        check_data_file(data.file(), &geometry)?;
        lower.push(
            match known.iter().find(|known| *known.geometry() == geometry) {
                Some(known) => known.clone(),
                None => LowerLayer::open(LayerMap::new(geometry, map))?,
            },
        );
    }
    Ok(lower)
}

/// What all queues of the disk share.
pub(crate) struct Shared {
    extent: Mutex<Arc<Extent>>,
    pub(crate) key: SharedKey,
    pub(crate) limits: ChainLimits,
    /// The longest time that a queue busy-polls before it sleeps.
    pub(crate) poll: Duration,
    /// What the queues count.
    pub(crate) counters: Counters,
    /// What all queues together may do at most.
    pub(crate) limiter: Limiter,
    /// What becomes of discarded blocks.
    pub(crate) discard: Discard,
    /// What becomes of requests that find the host's storage full.
    pub(crate) on_full: OnFull,
    /// Whether there are any.
    pub(crate) storage: Arc<FullStorage>,
    /// Whether a sync has failed.
    pub(crate) sync_alarm: SyncAlarm,
    /// What is to be told of the frontend's memory.
    pub(crate) memory_news: MemoryNews,
    /// What is to be told of the rings.
    pub(crate) ring_news: RingNews,
    /// A guest has asked for something since the copier last looked.
    pub(crate) in_use: AtomicBool,
    /// Writes are to be durable before they complete.
    pub(crate) write_through: AtomicBool,
    /// Buffers that each queue has for good, and what all have together beyond that.
    own_buffers: usize,
    budget: Arc<BufferBudget>,
    /// What works on the disk's files.
    pub(crate) io_rings: Rings,
    /// What processes before this one died of may be a request: those that are done again are named.
    pub(crate) names_again: bool,
    /// Rings of the guest that are being served.
    pub(crate) rings: AtomicU32,
    /// Threads of the kernel that work for all of them at once.
    workers: u32,
    /// The CPUs that queues run on.
    cpus: Vec<u16>,
}

impl Shared {
    /// The disk of `extent`, served as `setup` says and written through for now.
    ///
    /// # Errors
    /// [`DataplaneError::Io`].
    pub(crate) fn new(
        extent: Arc<Extent>,
        key: SharedKey,
        (io_rings, counters): (Rings, Counters),
        limits: ChainLimits,
        setup: &Setup,
    ) -> Result<Self, DataplaneError> {
        let fail = |source| DataplaneError::Io {
            what: "make an eventfd",
            source,
        };
        let storage = FullStorage::new().map_err(fail)?;
        let sync_alarm = SyncAlarm::new().map_err(fail)?;
        let plan = MemoryPlan::new(setup.memory, setup.num_queues);
        let pages = match setup.huge_pages {
            true => Pages::SetAside,
            false => Pages::Ordinary,
        };
        Ok(Self {
            extent: Mutex::new(extent),
            key,
            limits,
            poll: Duration::from_micros(setup.poll_us.into()),
            counters,
            limiter: Limiter::new(&setup.limits),
            discard: setup.discard,
            on_full: setup.on_full,
            storage: Arc::new(storage),
            sync_alarm,
            memory_news: MemoryNews::new().map_err(fail)?,
            ring_news: RingNews::new().map_err(fail)?,
            in_use: false.into(),
            write_through: true.into(),
            own_buffers: plan.own_buffers,
            budget: BufferBudget::new(plan.shared, pages),
            io_rings,
            names_again: setup.restart.is_some_and(|restart| restart.short_lives > 0),
            rings: 0.into(),
            workers: most_workers(),
            cpus: setup.cpus.clone(),
        })
    }

    /// The CPU that the thread of queue `index` is to run on, if that was said.
    pub(crate) fn cpu_of(&self, index: usize) -> Option<u16> {
        let place = index.checked_rem(self.cpus.len())?;
        self.cpus.get(place).copied()
    }

    /// The buffers of a queue.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn queue_pool(&self) -> Result<BufferPool, StoreError> {
        BufferPool::new(self.own_buffers, &self.budget)
    }

    /// Buffers for what else works on the disk for a while.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn other_pool(&self) -> Result<BufferPool, StoreError> {
        BufferPool::new(OWN_BUFFERS, &self.budget)
    }

    /// A store of these files on a ring that is lent, for what else works on the disk for a while.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(crate) fn lent_store(&self, files: Arc<StackFiles>) -> Result<UringStore, StoreError> {
        UringStore::on(self.io_rings.lend()?, files)
    }

    /// How many threads of the kernel may work for a ring at once, while `rings` are served.
    pub(crate) fn workers_of(&self, rings: u32) -> u32 {
        (self.workers / rings.max(1)).max(1)
    }

    /// The disk as it is now.
    pub(crate) fn extent(&self) -> Arc<Extent> {
        self.lock_extent().clone()
    }

    /// Makes the disk `size` bytes large, while no queue has a request under way. Its files and its
    /// runtime map have grown already.
    pub(crate) fn grow(&self, size: u64) -> Result<Arc<Extent>, DataplaneError> {
        let now = self.extent();
        let volume = now.volume.grown(size, &now.runtime)?;
        check_data_file(now.files.data.file(), volume.geometry())?;
        let mut files = now.files.try_clone()?;
        files.map_grown(volume.geometry().data_len())?;
        let grown = Arc::new(Extent {
            volume: Arc::new(volume),
            files: Arc::new(files),
            runtime: now.runtime.try_clone()?,
            disk: Disk {
                capacity: Sector(size / SECTOR_SIZE),
                ..now.disk.clone()
            },
        });
        self.replace(grown.clone());
        Ok(grown)
    }

    /// Makes the disk another, while no queue has a request under way.
    pub(crate) fn replace(&self, extent: Arc<Extent>) {
        *self.lock_extent() = extent;
    }

    fn lock_extent(&self) -> MutexGuard<'_, Arc<Extent>> {
        // It is replaced as a whole, so one whose holder panicked is whole too.
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
