//! The messages of one connection: features, memory, rings.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use keys::DekStack;
use protocol::OnRevoke;

use super::FrontendError;
use super::backend_channel::BackendChannel;
use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::guest_memory::GuestMemory;
use super::notifier::Notifier;
use super::ring::{RingAddresses, RingSetup};
use super::shared::Shared;
use super::standing::{Standing, await_destruction};
use super::worker::{Command, WorkerHandle};

/// Entries of a queue at most. QEMU's virtio-mmio machines ask for this many, and so does its
/// `queue-size=1024`; vhost-user has no message that would have them ask for fewer.
const MAX_QUEUE_SIZE: u16 = 1024;

/// Memory regions that a frontend may have: as many as the kernel's vhost takes.
const MAX_MEMORY_SLOTS: u64 = 509;

/// How long queues may take until they stand still for a new size.
const GROWTH_PATIENCE: Duration = Duration::from_secs(25);

/// What was said of a ring so far.
#[derive(Default)]
struct RingState {
    size: u16,
    addresses: Option<RingAddresses>,
    next_avail: u16,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    enabled: bool,
    running: bool,
    worker: Option<WorkerHandle>,
}

/// Serves the messages of one connection after another.
pub(super) struct BlockHandler {
    shared: Arc<Shared>,
    config: ConfigSpace,
    features: u64,
    memory: GuestMemory,
    log: Option<Arc<DirtyLog>>,
    rings: Vec<RingState>,
    /// Whether the frontend acknowledges messages of its back-end.
    acknowledges: bool,
    /// What may become the channel, if the next message says so.
    offered_channel: Option<UnixStream>,
    channel: Option<BackendChannel>,
    /// No ring is started any more.
    finished: bool,
}

impl BlockHandler {
    /// Starts a thread for each queue, with all that it needs.
    ///
    /// # Errors
    /// [`FrontendError`] for what of it cannot be had.
    pub(super) fn new(
        shared: Arc<Shared>,
        config: ConfigSpace,
        num_queues: u16,
    ) -> std::result::Result<Self, FrontendError> {
        let ring = |index| {
            let worker = WorkerHandle::spawn(shared.clone(), index)?;
            Ok(RingState {
                worker: Some(worker),
                ..RingState::default()
            })
        };
        let rings = (0..usize::from(num_queues))
            .map(ring)
            .collect::<std::result::Result<_, FrontendError>>()?;
        let memory = GuestMemory::default();
        Ok(Self {
            shared,
            config,
            features: 0,
            memory,
            log: None,
            rings,
            acknowledges: false,
            offered_channel: None,
            channel: None,
            finished: false,
        })
    }

    /// Has every ring complete what it has, all at the same time, with the guest told; none takes
    /// anything from then on. The connection is to be ended only after that: a frontend that sees its
    /// end may look at the rings, and hand them to another process.
    pub(super) fn finish(&mut self) {
        self.finished = true;
        let asked: Vec<_> = self
            .rings
            .iter_mut()
            .filter_map(|ring| {
                let running = std::mem::take(&mut ring.running);
                let worker = ring.worker.as_ref().filter(|_| running)?;
                Some((&mut ring.next_avail, worker.ask(Command::Stop)))
            })
            .collect();
        for (next_avail, asked) in asked {
            match asked.and_then(|answer| answer.recv().map_err(|e| e.to_string())?) {
                Ok(next) => *next_avail = next,
                Err(error) => log::warn!("a queue does not complete what it has: {error}"),
            }
        }
    }

    /// Stops every ring, completing what it has, and forgets everything of the frontend.
    pub(super) fn disconnect(&mut self) {
        self.reset_rings();
        self.forget_features();
        self.log = None;
        self.memory = GuestMemory::default();
        self.acknowledges = false;
        self.channel = None;
    }

    /// Has the next message, if it announces a channel for messages to the frontend, mean this one.
    pub(super) fn offer_channel(&mut self, channel: Option<UnixStream>) {
        self.offered_channel = channel;
    }

    /// Serves the disk, whose files and runtime map have grown, with `size` bytes: every queue
    /// completes what it took, and none goes on before all have the new size. Then the frontend is
    /// told, if it has a channel for that.
    ///
    /// # Errors
    /// Why the disk keeps its size.
    pub(super) fn grow(&mut self, size: u64) -> std::result::Result<(), String> {
        if size == self.shared.extent().volume.geometry().size {
            return Ok(());
        }
        let standing = self.stand_still(GROWTH_PATIENCE)?;
        let grown = self.shared.grow(size).map_err(|e| e.to_string())?;
        standing.go_on(&grown);
        self.config.set_size(size);
        match &self.channel {
            Some(channel) => channel.config_changed(self.acknowledges),
            None => log::info!("no frontend wants to be told of the disk's new size"),
        }
        Ok(())
    }

    /// Has every queue complete what it took and stand still, until what is returned says how it goes
    /// on; as before when that is dropped.
    ///
    /// # Errors
    /// Why they go on.
    pub(super) fn stand_still(
        &mut self,
        patience: Duration,
    ) -> std::result::Result<Standing, String> {
        Standing::of(self.workers(), patience)
    }

    /// Takes the key away: every queue completes what it took and destroys its cipher, all at the
    /// same time, and then the DEK is zeroed. Rings are set up, stopped and reset as ever meanwhile.
    ///
    /// Should a queue not let go of its key, the process ends: its memory is gone then in any case.
    pub(super) fn suspend(&mut self, mode: OnRevoke) {
        let asked: Vec<_> = self
            .workers()
            .map(|worker| worker.ask(Command::Suspend(mode)))
            .collect();
        await_destruction(asked);
        self.shared.key.destroy(mode);
    }

    /// Serves again, with these DEKs.
    ///
    /// # Errors
    /// Why a queue got no cipher; the key was taken away from all of them again.
    pub(super) fn resume(&mut self, deks: DekStack) -> std::result::Result<(), String> {
        let revoked = self.shared.key.hold(deks);
        let resumed = self
            .workers()
            .try_for_each(|worker| worker.tell(Command::Resume).map(drop));
        if let (Err(_), Some(mode)) = (&resumed, revoked) {
            self.suspend(mode);
        }
        resumed
    }

    fn workers(&self) -> impl Iterator<Item = &WorkerHandle> {
        self.rings.iter().filter_map(|ring| ring.worker.as_ref())
    }

    fn reset_rings(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.stop(index) {
                log::warn!("queue {index}: {error}");
            }
            let worker = self.rings[index].worker.take();
            self.rings[index] = RingState {
                worker,
                ..RingState::default()
            };
        }
    }

    /// Nobody has asked for a flush any more, so that a driver which does not say anything of features
    /// is written through. What it chose through `writeback` stays.
    fn forget_features(&mut self) {
        self.features = 0;
        self.publish_write_through();
    }

    fn ring(&mut self, index: usize) -> Result<&mut RingState> {
        self.rings
            .get_mut(index)
            .ok_or_else(|| refused("there is no such queue"))
    }

    /// Stops a ring, if it runs; afterwards `next_avail` is where it was.
    fn stop(&mut self, index: usize) -> Result<()> {
        let ring = self.ring(index)?;
        if std::mem::take(&mut ring.running)
            && let Some(worker) = &ring.worker
        {
            ring.next_avail = worker.tell(Command::Stop).map_err(internal)?;
        }
        Ok(())
    }

    /// Starts a ring, if everything that it needs was said. A ring is started by its kick
    /// descriptor and stopped by `GET_VRING_BASE`; it is served while it is enabled.
    fn start(&mut self, index: usize) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let (memory, log) = (self.memory.current(), self.active_log());
        let ring = self.ring(index)?;
        let (Some(kick), Some(addresses), true, false) =
            (&ring.kick, ring.addresses, ring.enabled, ring.running)
        else {
            return Ok(());
        };
        let setup = RingSetup {
            size: ring.size,
            addresses,
            next_avail: ring.next_avail,
            event_idx,
            kick: kick.try_clone().map_err(Error::ReqHandlerError)?,
            call: notifier(ring.call.as_ref())?,
            err: duplicate(ring.err.as_ref())?,
            memory,
            log,
        };
        if let Some(worker) = &ring.worker {
            worker
                .tell(Command::Start(Box::new(setup)))
                .map_err(internal)?;
            ring.running = true;
        }
        Ok(())
    }

    /// Changes a ring that may be running.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut RingState)) -> Result<()> {
        self.stop(index)?;
        change(self.ring(index)?);
        self.start(index)
    }

    fn tell_running(&self, command: impl Fn() -> Command) -> Result<()> {
        for ring in self.rings.iter().filter(|ring| ring.running) {
            if let Some(worker) = &ring.worker {
                worker.tell(command()).map_err(internal)?;
            }
        }
        Ok(())
    }

    /// New requests use the new memory; those under way keep what they started with.
    fn publish_memory(&self) -> Result<()> {
        self.tell_running(|| Command::Memory(self.memory.current()))
    }

    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        let wanted = self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.log.clone().filter(|_| wanted)
    }

    fn publish_log(&self) -> Result<()> {
        self.tell_running(|| Command::Log(self.active_log()))
    }

    fn publish_write_through(&self) {
        let write_through = self.config.is_write_through(self.features);
        self.shared
            .write_through
            .store(write_through, Ordering::Release);
    }

    /// Whether all three parts of a ring of `size` entries lie in guest memory.
    fn ring_is_there(&self, addresses: RingAddresses, size: u16) -> bool {
        let size = usize::from(size);
        self.memory.has(addresses.descriptors, 16 * size)
            && self.memory.has(addresses.avail, 6 + 2 * size)
            && self.memory.has(addresses.used, 6 + 8 * size)
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

/// A message that cannot be granted. If the frontend asked for an acknowledgement it is told, and
/// the connection goes on.
fn refused(why: &'static str) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// A message whose only reply is a success. A frontend that waits for it must not wait for ever, so
/// the connection ends.
fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidMessage)
}

/// What signals the frontend through a descriptor, if there is one. It must be an eventfd: nothing
/// else can be signalled, or waited for, without the risk that a queue hangs.
fn notifier(file: Option<&File>) -> Result<Option<Notifier>> {
    let notifier = file.map(Notifier::new).transpose();
    notifier.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => refused("a kick, call or error descriptor is no eventfd"),
        _ => Error::ReqHandlerError(error),
    })
}

fn duplicate(file: Option<&File>) -> Result<Option<File>> {
    let duplicate = file.map(File::try_clone).transpose();
    duplicate.map_err(Error::ReqHandlerError)
}

impl VhostUserBackendReqHandlerMut for BlockHandler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.disconnect();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_rings();
        self.forget_features();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.config.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.config.features() != 0 {
            return Err(refused("features that were not offered"));
        }
        self.features = features;
        self.publish_write_through();
        self.publish_log()?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // Without the protocol features there is no message to enable rings: they all are.
            for index in 0..self.rings.len() {
                self.rings[index].enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory
            .replace(regions, files)
            .map_err(Error::ReqHandlerError)?;
        self.shared.memory_news.announced(self.memory.files());
        self.publish_memory()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| refused("the queue is too large"))?;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(refused(
                "a queue's size must be a power of two, and 1024 at most",
            ));
        }
        self.change(index as usize, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        // The frontend translates addresses of its guest's memory, so a ring that is in none is in
        // memory that it could not announce: without a file there is nothing to share. QEMU goes on
        // as if nothing were wrong, with a guest that waits for ever.
        let at = |user| {
            self.memory.guest_address(user).ok_or_else(|| {
                self.shared.memory_news.not_shared();
                Error::InvalidMessage
            })
        };
        let (descriptors, avail, used) = (at(descriptor)?, at(available)?, at(used)?);
        // virtio 1.2 §2.7: the alignment of the three parts.
        if descriptors.0 % 16 != 0 || avail.0 % 2 != 0 || used.0 % 4 != 0 {
            return Err(refused("a ring that is not aligned"));
        }
        let addresses = RingAddresses {
            descriptors,
            avail,
            used,
        };
        let ring = self.ring(index as usize)?;
        if ring.addresses == Some(addresses) {
            return Ok(());
        }
        let size = ring.size;
        if !self.ring_is_there(addresses, size) {
            return Err(refused("a ring that leaves guest memory"));
        }
        self.change(index as usize, |ring| ring.addresses = Some(addresses))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next_avail = u16::try_from(base).map_err(|_| refused("an index beyond 16 bits"))?;
        self.change(index as usize, |ring| ring.next_avail = next_avail)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        // There is no reply that says no, so a wrong index ends the connection.
        self.stop(index as usize)
            .map_err(|_| Error::InvalidMessage)?;
        let ring = self
            .ring(index as usize)
            .map_err(|_| Error::InvalidMessage)?;
        ring.kick = None;
        ring.call = None;
        Ok(VhostUserVringState::new(index, u32::from(ring.next_avail)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        // A ring without a kick descriptor would have to be polled for ever.
        let file = file.ok_or_else(|| refused("a queue without a kick descriptor"))?;
        notifier(Some(&file))?;
        self.change(usize::from(index), |ring| ring.kick = Some(file))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let ring = self.ring(usize::from(index))?;
        let mut call = notifier(file.as_ref())?;
        ring.call = file;
        match (ring.running, &ring.worker) {
            (true, Some(worker)) => {
                let call = call.map(Box::new);
                worker.tell(Command::Call(call)).map_err(internal)?;
            }
            // As libvhost-user does: who waits for what another descriptor was told looks again.
            _ => call.iter_mut().for_each(Notifier::signal),
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let ring = self.ring(usize::from(index))?;
        notifier(file.as_ref())?;
        ring.err = file;
        if let (true, Some(worker)) = (ring.running, &ring.worker) {
            let err = duplicate(ring.err.as_ref())?;
            worker.tell(Command::Err(err)).map_err(internal)?;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(ConfigSpace::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !ConfigSpace::protocol_features().bits() != 0 {
            return Err(refused("protocol features that were not offered"));
        }
        self.acknowledges = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _: Backend) {
        self.channel = self.offered_channel.take().map(BackendChannel::new);
        if self.channel.is_none() {
            log::warn!("the frontend's channel was not understood; it is told nothing");
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(refused(
                "queues are enabled by themselves without protocol features",
            ));
        }
        let index = index as usize;
        self.ring(index)?.enabled = enable;
        if enable {
            self.start(index)
        } else {
            self.stop(index)
        }
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.config
            .read(offset, size)
            .ok_or_else(|| refused("outside the configuration space"))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        let Some(cache) = ConfigSpace::asks_for(offset, bytes) else {
            return Err(refused("a field that cannot be written"));
        };
        // First where it outlives this process: the guest relies on it once this returns.
        let kept = self.shared.extent().runtime.set_cache(cache);
        kept.map_err(internal)?;
        self.config.set_cache(cache);
        self.publish_write_through();
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEMORY_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory
            .add(region, file)
            .map_err(Error::ReqHandlerError)?;
        self.shared.memory_news.announced(self.memory.files());
        self.publish_memory()?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(region).map_err(Error::ReqHandlerError)?;
        self.publish_memory()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::new(file, log.mmap_offset, log.mmap_size);
        self.log = Some(Arc::new(log.map_err(|_| Error::InvalidMessage)?));
        self.publish_log()
    }
}
