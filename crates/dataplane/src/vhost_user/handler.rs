//! What one connection has set up: features, memory, rings.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vhost::vhost_user::{Error, Result, VhostUserVirtioFeatures};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use keys::DekStack;
use protocol::{Change, Kept, KeptRing, OnRevoke};

use crate::DataplaneError;
use crate::disk::rings::SignalRings;
use crate::disk::shared::Shared;
use crate::inflight::{InflightQueue, InflightRegion};
use crate::queue::command::{Command, Waiting};
use crate::queue::dirty_log::DirtyLog;
use crate::queue::notifier::Notifier;
use crate::queue::pulse::Watchdog;
use crate::queue::quiesce::{QuiescedQueues, await_destruction};
use crate::queue::ring::{RingAddresses, RingSetup};
use crate::queue::worker_handle::WorkerHandle;

use super::backend_channel::BackendChannel;
use super::config_space::ConfigSpace;
use super::guest_memory::GuestMemory;
use super::keeper::Keeper;

/// How long quiescing the queues for a new size may take.
const GROWTH_PATIENCE: Duration = Duration::from_secs(25);

/// What was said of a ring so far.
#[derive(Default)]
pub(super) struct RingState {
    pub(super) size: u16,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) next_avail: u16,
    pub(super) kick: Option<File>,
    pub(super) call: Option<File>,
    pub(super) err: Option<File>,
    pub(super) enabled: bool,
    pub(super) running: bool,
    pub(super) worker: Option<WorkerHandle>,
}

impl RingState {
    /// What it is started with, if everything was said that it needs, and it does not run.
    pub(super) fn is_to_run(&self) -> Option<(&File, RingAddresses)> {
        let said = self.kick.as_ref().zip(self.addresses);
        said.filter(|_| self.enabled && !self.running)
    }
}

/// Serves the messages of one connection after another.
pub(crate) struct BlockHandler {
    pub(super) shared: Arc<Shared>,
    pub(super) config: ConfigSpace,
    /// Has kept what is set up.
    pub(crate) keeper: Arc<Keeper>,
    pub(super) features: u64,
    /// What the frontend said last, which counts until the device is reset.
    pub(super) acknowledged: u64,
    pub(super) memory: GuestMemory,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) rings: Vec<RingState>,
    /// What the frontend keeps of requests in flight, to give it to the next back-end.
    pub(super) inflight: Option<Arc<InflightRegion>>,
    /// The same for a frontend that keeps nothing. Whoever starts this process has it.
    kept: Arc<InflightRegion>,
    /// Whether it takes that region along with a guest that is migrated.
    pub(super) moves_in_flight: bool,
    /// Whether the frontend acknowledges messages of its back-end.
    pub(super) acknowledges: bool,
    /// What may become the channel, if the next message says so.
    pub(super) offered_channel: Option<UnixStream>,
    pub(super) channel: Option<BackendChannel>,
    /// No ring is started any more.
    finished: bool,
    /// Another attach has the disk: rings that are to run wait for it.
    pub(super) vacant: bool,
}

impl BlockHandler {
    /// Starts a thread for each queue, with all that it needs.
    ///
    /// # Errors
    /// [`DataplaneError`] when some of it is unavailable.
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: ConfigSpace,
        num_queues: u16,
        (keeper, kept): (Arc<Keeper>, InflightRegion),
    ) -> std::result::Result<Self, DataplaneError> {
        let ring = |index| {
            let worker = WorkerHandle::spawn(shared.clone(), index)?;
            Ok(RingState {
                worker: Some(worker),
                ..RingState::default()
            })
        };
        let rings = (0..usize::from(num_queues))
            .map(ring)
            .collect::<std::result::Result<_, DataplaneError>>()?;
        let memory = GuestMemory::default();
        Ok(Self {
            shared,
            config,
            keeper,
            features: 0,
            acknowledged: 0,
            memory,
            log: None,
            rings,
            inflight: None,
            kept: Arc::new(kept),
            moves_in_flight: false,
            acknowledges: false,
            offered_channel: None,
            channel: None,
            finished: false,
            vacant: false,
        })
    }

    /// Has every ring complete what it has, all at the same time, with the guest told; none takes
    /// anything from then on. The connection is to be ended only after that: a frontend that sees its
    /// end may look at the rings, and hand them to another process.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        let waiting = self.waiting();
        let asked: Vec<_> = self
            .rings
            .iter_mut()
            .filter_map(|ring| {
                let running = std::mem::take(&mut ring.running);
                let worker = ring.worker.as_ref().filter(|_| running)?;
                Some((&mut ring.next_avail, worker.ask(Command::Stop(waiting))))
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
    pub(crate) fn disconnect(&mut self) {
        self.reset_rings();
        self.forget_features();
        self.log = None;
        self.memory = GuestMemory::default();
        self.inflight = None;
        self.moves_in_flight = false;
        self.acknowledges = false;
        self.channel = None;
        // The next frontend says where the rings go on.
        self.forget_in_flight();
        self.keeper.forget(Change::ForgetSetup);
    }

    /// Has the next message, if it announces a channel for messages to the frontend, mean this one.
    pub(crate) fn offer_channel(&mut self, channel: Option<UnixStream>) {
        self.offered_channel = channel;
    }

    /// Serves the disk, whose files and runtime map have grown, with `size` bytes: every queue
    /// completes what it took, and none goes on before all have the new size. Then the frontend is
    /// told, if it has a channel for that.
    ///
    /// # Errors
    /// Why the disk keeps its size.
    pub(crate) fn grow(&mut self, size: u64) -> std::result::Result<(), String> {
        if size == self.shared.extent().volume.geometry().size {
            return Ok(());
        }
        let queues = self.quiesce(GROWTH_PATIENCE)?;
        let grown = self.shared.grow(size).map_err(|e| e.to_string())?;
        queues.serve(&grown);
        self.config.set_size(size);
        self.tell_of_new_size();
        Ok(())
    }

    /// Tells the frontend that the disk has another size, if it has a channel for that.
    pub(crate) fn tell_of_new_size(&self) {
        match &self.channel {
            Some(channel) => channel.config_changed(self.acknowledges),
            None => log::info!("no frontend wants to be told of the disk's new size"),
        }
    }

    /// What watches the queues' threads.
    pub(crate) fn watchdogs(&self) -> Vec<Watchdog> {
        self.workers().map(WorkerHandle::watchdog).collect()
    }

    /// Quiesces every queue, until what is returned says how it goes on; as before when that is dropped.
    ///
    /// # Errors
    /// Why they go on.
    pub(crate) fn quiesce(
        &mut self,
        patience: Duration,
    ) -> std::result::Result<QuiescedQueues, String> {
        QuiescedQueues::quiesce(self.workers(), patience)
    }

    /// Takes the key away: every queue completes what it took and destroys its cipher, all at the
    /// same time, and then the DEK is zeroed. Rings are set up, stopped and reset as ever meanwhile.
    ///
    /// Should a queue not let go of its key, the process ends: its memory is gone then in any case.
    pub(crate) fn suspend(&mut self, mode: OnRevoke) {
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
    pub(crate) fn resume(&mut self, deks: DekStack) -> std::result::Result<(), String> {
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

    pub(super) fn reset_rings(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.stop(index) {
                log::warn!("queue {index}: {error}");
            }
            let worker = self.rings[index].worker.take();
            self.rings[index] = RingState {
                worker,
                ..RingState::default()
            };
            let ring = index as u16;
            self.keeper.forget(Change::ForgetRing { ring });
        }
    }

    /// Forgets that a flush was negotiated, so that a driver which does not say anything of features
    /// is written through. What it chose through `writeback` stays.
    pub(super) fn forget_features(&mut self) {
        self.features = 0;
        self.publish_write_through();
        self.keep_features(false);
    }

    pub(super) fn keep_features(&self, in_use: bool) {
        let acknowledged = self.acknowledged;
        let features = Kept::Features {
            acknowledged,
            in_use,
        };
        self.keeper.put(features, None);
    }

    /// Has a ring kept as it is now.
    pub(super) fn keep_ring(&self, index: usize) {
        let Some(ring) = self.rings.get(index) else {
            return;
        };
        let addresses = ring
            .addresses
            .map(|at| [at.descriptors, at.avail, at.used].map(|address| address.0));
        let kept = KeptRing {
            index: index as u16,
            size: ring.size,
            addresses,
            next_avail: ring.next_avail,
            enabled: ring.enabled,
        };
        self.keeper.put(Kept::Ring(kept), None);
    }

    pub(super) fn ring(&mut self, index: usize) -> Result<&mut RingState> {
        self.rings
            .get_mut(index)
            .ok_or_else(|| refused("there is no such queue"))
    }

    /// Stops a ring, if it runs; afterwards `next_avail` is where it was.
    pub(super) fn stop(&mut self, index: usize) -> Result<()> {
        let waiting = self.waiting();
        let ring = self.ring(index)?;
        if std::mem::take(&mut ring.running)
            && let Some(worker) = &ring.worker
        {
            let stopped = worker.tell(Command::Stop(waiting));
            ring.next_avail = stopped.map_err(internal)?;
            // Nothing is in flight: the frontend says where the ring goes on.
            if let Some(mut queue) = InflightQueue::of(&self.kept, index) {
                queue.forget();
            }
        }
        Ok(())
    }

    /// What becomes of requests that wait when their ring is stopped. While pages are logged the guest is
    /// on its way to another host, which gets the ring, and the in-flight region from some frontends only.
    fn waiting(&self) -> Waiting {
        let is_kept = self.active_log().is_none() || self.moves_in_flight;
        match self.inflight.is_some() && is_kept {
            true => Waiting::StayInFlight,
            false => Waiting::Fail,
        }
    }

    /// Where the requests of a ring that are in flight are noted.
    fn inflight_of(&self, index: usize) -> Result<InflightQueue> {
        let region = self.inflight.as_ref().unwrap_or(&self.kept);
        InflightQueue::of(region, index)
            .ok_or_else(|| refused("the in-flight region does not have that queue"))
    }

    /// Whether a ring is served.
    pub(crate) fn is_running(&self) -> bool {
        self.rings.iter().any(|ring| ring.running)
    }

    /// Forgets what is in flight: the device was reset, and nobody waits for it.
    pub(super) fn forget_in_flight(&mut self) {
        for index in 0..self.rings.len() {
            for region in self.inflight.iter().chain([&self.kept]) {
                if let Some(mut queue) = InflightQueue::of(region, index) {
                    queue.forget();
                }
            }
        }
    }

    /// Starts a ring, if everything that it needs was said. A ring is started by its kick
    /// descriptor and stopped by `GET_VRING_BASE`; it is served while it is enabled.
    pub(super) fn start(&mut self, index: usize) -> Result<()> {
        if self.finished || self.vacant {
            return Ok(());
        }
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let (memory, log) = (self.memory.current(), self.active_log());
        let signals = self.shared.io_rings.signals().clone();
        self.ring(index)?;
        let inflight = self.inflight_of(index)?;
        let ring = self.ring(index)?;
        let Some((kick, addresses)) = ring.is_to_run() else {
            return Ok(());
        };
        let setup = RingSetup {
            size: ring.size,
            addresses,
            next_avail: ring.next_avail,
            inflight,
            event_idx,
            kick: kick.try_clone().map_err(Error::ReqHandlerError)?,
            call: notifier(&signals, ring.call.as_ref())?,
            err: duplicate(ring.err.as_ref())?,
            signals,
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
    pub(super) fn change(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut RingState),
    ) -> Result<()> {
        self.stop(index)?;
        change(self.ring(index)?);
        self.keep_ring(index);
        self.start(index)
    }

    /// Has a ring be at these addresses of the guest.
    pub(super) fn set_ring_addresses(
        &mut self,
        index: usize,
        addresses: RingAddresses,
    ) -> Result<()> {
        let RingAddresses {
            descriptors,
            avail,
            used,
        } = addresses;
        // virtio 1.2 §2.7: the alignment of the three parts.
        if descriptors.0 % 16 != 0 || avail.0 % 2 != 0 || used.0 % 4 != 0 {
            return Err(refused("a ring that is not aligned"));
        }
        let ring = self.ring(index)?;
        if ring.addresses == Some(addresses) {
            return Ok(());
        }
        let size = ring.size;
        if !self.ring_is_there(addresses, size) {
            return Err(refused("a ring that leaves guest memory"));
        }
        self.change(index, |ring| ring.addresses = Some(addresses))
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
    pub(super) fn publish_memory(&self) -> Result<()> {
        self.tell_running(|| Command::Memory(self.memory.current()))
    }

    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        let wanted = self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.log.clone().filter(|_| wanted)
    }

    pub(super) fn publish_log(&self) -> Result<()> {
        self.tell_running(|| Command::Log(self.active_log()))
    }

    pub(super) fn publish_write_through(&self) {
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

pub(super) fn internal(error: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

/// A message that cannot be granted. If the frontend asked for an acknowledgement it is told, and
/// the connection goes on.
pub(super) fn refused(why: &'static str) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// What signals the frontend through a descriptor, if there is one. It must be an eventfd: nothing
/// else can be signalled, or waited for, without the risk that a queue hangs.
pub(super) fn notifier(
    signals: &Arc<SignalRings>,
    file: Option<&File>,
) -> Result<Option<Notifier>> {
    let notifier = file.map(|file| Notifier::new(signals, file));
    notifier.transpose().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => refused("a kick, call or error descriptor is no eventfd"),
        _ => Error::ReqHandlerError(error),
    })
}

pub(super) fn duplicate(file: Option<&File>) -> Result<Option<File>> {
    let duplicate = file.map(File::try_clone).transpose();
    duplicate.map_err(Error::ReqHandlerError)
}
