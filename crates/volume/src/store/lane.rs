//! A store behind shared memory: another process does the I/O, and this one has neither the files nor a network.
//!
//! Buffers are parts of the shared memory, so that ciphertext is encrypted to where the store process writes it from.
//! Completions wake the thread by an eventfd that its io_uring watches, like the kick of its queue; the ring has no
//! other operations.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{SendError, Sender};

use slab::Slab;
use store_ring::{ClientLane, Completion, DEPTH, Data, Operation, RingError, Side, Target};

use super::uring::{BareRing, Entered, EventRing, is_batch, verb};
use super::{
    Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag, Wait, WaitingStore, WatchId,
};

/// The eventfd of completions among what is watched.
const COMPLETIONS: WatchId = WatchId(u32::MAX);

/// What is known of a disk's layers that another process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneFiles {
    /// How many there are.
    pub layers: usize,
    /// The granularity in bytes of offsets and lengths in their data.
    pub alignment: u64,
    /// Whether a write can be durable by itself, as [`Store::writes_durably`] has it.
    pub writes_durably: bool,
}

/// A lane, for one thread. Dropped, it goes back to who lent it.
pub struct DiskLane {
    lane: ManuallyDrop<ClientLane>,
    home: Option<Sender<DiskLane>>,
}

impl DiskLane {
    /// A lane that is its user's for good.
    pub fn new(lane: ClientLane) -> Self {
        Self {
            lane: ManuallyDrop::new(lane),
            home: None,
        }
    }

    /// A lane for one thread after another, which each of them gives back to `home`.
    pub fn lent_by(lane: ClientLane, home: Sender<Self>) -> Self {
        Self {
            lane: ManuallyDrop::new(lane),
            home: Some(home),
        }
    }

    /// Has nobody use it again: the other side may still be at what it was given.
    fn give_up(&mut self) {
        self.home = None;
    }
}

impl Deref for DiskLane {
    type Target = ClientLane;

    fn deref(&self) -> &ClientLane {
        &self.lane
    }
}

impl DerefMut for DiskLane {
    fn deref_mut(&mut self) -> &mut ClientLane {
        &mut self.lane
    }
}

impl Drop for DiskLane {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after this.
        let lane = unsafe { ManuallyDrop::take(&mut self.lane) };
        let Some(home) = self.home.take() else {
            return;
        };
        let lent = Self::lent_by(lane, home.clone());
        if let Err(SendError(mut unwanted)) = home.send(lent) {
            unwanted.home = None;
        }
    }
}

/// An operation that is under way.
struct InFlight {
    tag: Tag,
    op: StoreOp,
}

/// A lane and eventfds behind one io_uring.
pub struct LaneStore {
    events: EventRing,
    lane: DiskLane,
    files: LaneFiles,
    /// By slots of the lane.
    in_flight: Slab<InFlight>,
    finished: VecDeque<StoreCompletion>,
    /// What went wrong where it could not be told.
    failed: Option<RingError>,
    /// Something went wrong, after which nothing is right any more.
    is_broken: bool,
}

impl LaneStore {
    /// A store on a ring that was made before. It must be used by the thread that calls this.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn on(ring: BareRing, lane: DiskLane, files: LaneFiles) -> Result<Self, StoreError> {
        let mut store = Self {
            events: EventRing::on(ring)?,
            lane,
            files,
            in_flight: Slab::with_capacity(DEPTH),
            finished: VecDeque::with_capacity(DEPTH),
            failed: None,
            is_broken: false,
        };
        store.events.test()?;
        let fd = store.lane.woken_by().as_raw_fd();
        store.events.watch(COMPLETIONS, fd)?;
        Ok(store)
    }

    /// Lets the other side have what is queued if it has too little to do, as [`UringStore`](super::UringStore) does
    /// with a device.
    fn publish_batch(&mut self) {
        let queued = self.lane.queued();
        let under_way = self.in_flight.len().saturating_sub(queued);
        if is_batch(queued, under_way)
            && let Err(error) = self.lane.publish()
        {
            self.failed = Some(error);
        }
    }

    /// Where in the shared memory a buffer is; `None` for one of other memory.
    fn data_of(&self, op: &StoreOp) -> Option<Data> {
        match op {
            StoreOp::Read { buffer, len, .. } | StoreOp::Write { buffer, len, .. } => {
                self.lane.memory().data_of(buffer.ptr(), *len)
            }
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => Some(Data { at: 0, len: 0 }),
        }
    }

    /// Looks at what has happened.
    ///
    /// # Errors
    /// As [`LaneStore::collect`].
    fn look(&mut self) -> Result<(), StoreError> {
        // The ring has nothing but watches.
        while self.events.next_completion().is_some() {}
        // It says no more than what is looked at now.
        self.events.forget(COMPLETIONS);
        self.collect()
    }

    /// Takes what has completed.
    ///
    /// # Errors
    /// [`StoreError::Lane`]: the other side does not keep to the rules.
    fn collect(&mut self) -> Result<(), StoreError> {
        while let Some(Completion { slot, result }) = self.lane.next_completion()? {
            let Some(flight) = self.in_flight.try_remove(slot as usize) else {
                return Err(RingError::Violation {
                    by: Side::StoreProcess,
                    what: "it has completed what is not under way",
                }
                .into());
            };
            self.finish(flight, result);
        }
        Ok(())
    }

    fn finish(&mut self, flight: InFlight, result: Result<(), i32>) {
        let InFlight { tag, op } = flight;
        let result = result.map_err(|errno| StoreError::Io {
            what: verb(&op),
            source: io::Error::from_raw_os_error(errno),
        });
        let buffer = match op {
            StoreOp::Read { buffer, .. } | StoreOp::Write { buffer, .. } => Some(buffer),
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        };
        self.finished.push_back(StoreCompletion {
            tag,
            result,
            buffer,
        });
    }

    /// As [`WaitingStore::enter`].
    fn submit_and_wait(&mut self, wait: Wait) -> Result<(), StoreError> {
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        self.lane.publish()?;
        self.look()?;
        let (wait, _) = self.events.begin_again(wait)?;
        // Without anything under way nothing can complete, and nobody has to be told of the sleep.
        let sleeps = !matches!(wait, Wait::No)
            && !self.has_news()
            && (self.in_flight.is_empty() || self.lane.may_sleep());
        let entered = self.events.enter(wait, sleeps)?;
        if sleeps {
            self.lane.awake();
        }
        if let Entered::Refused(error) = entered {
            let time = self.events.pause_for(&error);
            self.look()?;
            if self.has_news() {
                return Ok(());
            }
            self.events.sit_out(time)?;
        }
        self.look()
    }

    /// Waits until the other side uses no buffer any more: one that was given to somebody else could still be written
    /// to.
    fn drain(&mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            self.enter(Wait::Forever)?;
            self.finished.clear();
            self.events.forget_all();
        }
        Ok(())
    }
}

/// The operation for the other side.
fn operation(op: &StoreOp, data: Data) -> Operation {
    match *op {
        StoreOp::Read { file, at, .. } => Operation::Read {
            target: target(file),
            at,
            data,
        },
        StoreOp::Write {
            file, at, durable, ..
        } => Operation::Write {
            target: target(file),
            at,
            data,
            durable,
        },
        StoreOp::Sync { file } => Operation::Sync {
            target: target(file),
        },
        StoreOp::Punch { at, len } => Operation::Punch { at, len },
    }
}

fn target(file: StoreFile) -> Target {
    match file {
        StoreFile::Data(layer) => Target::Data(layer.0),
        StoreFile::Map => Target::Map,
    }
}

impl Store for LaneStore {
    fn alignment(&self) -> u64 {
        self.files.alignment
    }

    fn writes_durably(&self) -> bool {
        self.files.writes_durably
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < DEPTH
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        debug_assert!(self.has_room(), "submitted without room");
        let data = self.data_of(&op);
        debug_assert!(data.is_some(), "a buffer of other memory");
        let Some(data) = data else {
            return self.finish(InFlight { tag, op }, Err(libc::EFAULT));
        };
        let operation = operation(&op, data);
        // Slots are reused, so that there are never more of them than there is room for.
        let slot = self.in_flight.insert(InFlight { tag, op });
        self.lane.submit(slot as u32, &operation);
        self.publish_batch();
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.extend(self.finished.drain(..));
    }
}

impl WaitingStore for LaneStore {
    type Files = LaneFiles;

    fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        self.events.watch(id, fd)
    }

    fn unwatch(&mut self, id: WatchId) {
        self.events.unwatch(id);
    }

    fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        if self.is_broken {
            let what = "cannot be used any more";
            return Err(RingError::Memory { what }.into());
        }
        let entered = self.submit_and_wait(wait);
        self.is_broken = entered.is_err();
        entered
    }

    fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    fn has_news(&self) -> bool {
        !self.finished.is_empty() || self.events.has_happened()
    }

    fn take_events(&mut self, into: &mut Vec<WatchId>) {
        self.events.take_events(into);
    }

    fn swap_files(&mut self, files: LaneFiles) -> Result<(), StoreError> {
        debug_assert!(!self.is_busy(), "operations on the old layers");
        self.files = files;
        Ok(())
    }
}

impl Drop for LaneStore {
    /// Leaves nothing in flight.
    fn drop(&mut self) {
        if let Err(e) = self.drain() {
            // Buffers that may still be written to must never be somebody else's.
            log::error!("cannot wait for I/O in flight: {e}");
            self.events.ring.give_up();
            self.lane.give_up();
            for flight in self.in_flight.drain() {
                std::mem::forget(flight);
            }
            return;
        }
        if let Err(e) = self.events.end() {
            log::debug!("a ring is taken apart a little later: {e}");
        }
    }
}
