//! The default store: local files through io_uring.
//!
//! The ring also watches eventfds (a queue's kick, a worker's wake-up), so that a worker waits for
//! completions and kicks in one system call, which submits what was queued as well.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use slab::Slab;

use crate::must_complete::lost;
use crate::store::locked::Pinned;
use crate::store::{
    MAX_CHUNKS, StackFiles, Store, StoreCompletion, StoreError, StoreOp, Tag, Wait, WaitingStore,
    WatchId,
};
use keys::units::LayerIndex;

use super::bare::{BareRing, DEPTH};
use super::entry::{InFlight, verb};
use super::events::{Entered, EventRing};
use super::retry::{is_interrupted, is_not_begun, is_transient, patiently};

/// Files and eventfds behind one io_uring.
pub struct UringStore {
    pub(super) events: EventRing,
    pub(super) files: Arc<StackFiles>,
    /// Of all data files together.
    pub(super) alignment: u64,
    pub(super) in_flight: Slab<InFlight>,
    pub(super) finished: VecDeque<StoreCompletion>,
    /// Chunks of buffers that are registered with the kernel: pinned, and mapped once for all operations.
    pub(super) registered: [Option<Pinned>; MAX_CHUNKS],
}

impl UringStore {
    /// Sets up a ring, and tries it. It must be used by the thread that makes it.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn new(files: impl Into<Arc<StackFiles>>) -> Result<Self, StoreError> {
        Self::on(BareRing::for_one_thread()?, files)
    }

    /// The same on a ring that was made before. It must be used by the thread that calls this.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn on(ring: BareRing, files: impl Into<Arc<StackFiles>>) -> Result<Self, StoreError> {
        let files = files.into();
        let mut store = Self {
            events: EventRing::on(ring)?,
            alignment: files.alignment(),
            files,
            in_flight: Slab::with_capacity(DEPTH),
            finished: VecDeque::with_capacity(DEPTH),
            registered: [const { None }; MAX_CHUNKS],
        };
        store.register_files()?;
        store.events.test()?;
        Ok(store)
    }

    /// Submits what is queued if the device has too little to do ([`is_batch`]), without waiting. What the kernel
    /// refuses stays queued, and [`WaitingStore::enter`] judges the error.
    fn submit_batch(&mut self) {
        let queued = self.events.ring.submission().len();
        let under_way = self.in_flight.len().saturating_sub(queued);
        if is_batch(queued, under_way) {
            let _ = self.events.ring.submitter().submit();
        }
    }

    /// Puts the part of an operation that is not done yet on the ring.
    pub(super) fn start(&mut self, slot: usize) {
        let Some(flight) = self.in_flight.get(slot) else {
            return;
        };
        let is_registered = |chunk: usize| matches!(self.registered.get(chunk), Some(Some(_)));
        let entry = flight.entry(is_registered);
        self.events.push(entry.user_data(slot as u64));
    }

    /// Takes what the kernel has completed.
    fn collect(&mut self) {
        while let Some((slot, result)) = self.events.next_completion() {
            self.complete(slot, result);
        }
    }

    pub(super) fn complete(&mut self, slot: usize, result: i32) {
        let Some(flight) = self.in_flight.get_mut(slot) else {
            lost(&format_args!("operation {slot} of a store"));
        };
        let outcome = match (&flight.op, result) {
            (op, r) if r < 0 => {
                let source = io::Error::from_raw_os_error(-r);
                if is_interrupted(&source) {
                    return self.start(slot);
                }
                // A sync that has failed has dropped completed writes, whatever it says of why: another
                // one would succeed without them. One that was never begun has dropped nothing.
                let syncs = matches!(
                    op,
                    StoreOp::Sync { .. } | StoreOp::Write { durable: true, .. }
                );
                if is_not_begun(&source) || (is_transient(&source) && !syncs) {
                    self.events.again.slots.push(slot);
                    return self.events.again.note(&source);
                }
                let what = verb(op);
                Err(StoreError::Io { what, source })
            }
            (StoreOp::Read { at, .. }, 0) => Err(StoreError::Truncated {
                at: at + flight.done as u64,
            }),
            (StoreOp::Write { .. }, 0) => Err(StoreError::Io {
                what: "write ciphertext",
                source: io::ErrorKind::WriteZero.into(),
            }),
            (StoreOp::Read { len, .. } | StoreOp::Write { len, .. }, r) => {
                flight.done += r as usize;
                if flight.done < *len {
                    return self.start(slot);
                }
                Ok(())
            }
            (StoreOp::Sync { .. } | StoreOp::Punch { .. }, _) => Ok(()),
        };
        if outcome.is_ok() {
            self.events.again.pause.end();
        }
        self.finish(slot, outcome);
    }

    fn finish(&mut self, slot: usize, outcome: Result<(), StoreError>) {
        let Some(flight) = self.in_flight.try_remove(slot) else {
            lost(&format_args!("operation {slot} of a store"));
        };
        let buffer = match flight.op {
            StoreOp::Read { buffer, .. } | StoreOp::Write { buffer, .. } => Some(buffer),
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        };
        self.finished.push_back(StoreCompletion {
            tag: flight.tag,
            result: outcome,
            buffer,
        });
    }
}

/// The most operations that are kept back for the sake of one system call.
const MAX_BATCH: usize = 4;

/// Whether so many queued operations are submitted at once while the device has others under way: at least as many
/// as those, so that the device gets more to do before it is done with what it has, or as many as a batch is worth.
/// An idle device gets the first at once; docs/performance.md says more.
pub(in crate::store) fn is_batch(queued: usize, under_way: usize) -> bool {
    queued >= under_way.clamp(1, MAX_BATCH)
}

impl Store for UringStore {
    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn adopt(&mut self, chunk: usize, start: NonNull<u8>, len: usize) {
        self.register_memory(chunk, start, len);
    }

    fn disown(&mut self, chunk: usize) {
        self.unregister_memory(chunk);
    }

    fn mapped(&self, layer: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        self.files.mapped(layer, at, len)
    }

    fn mapped_to_write(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        self.files.mapped_to_write(at, len)
    }

    fn writes_durably(&self) -> bool {
        self.files.data.is_direct()
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < DEPTH
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        debug_assert!(self.has_room(), "submitted without room");
        let slot = self.in_flight.insert(InFlight { tag, op, done: 0 });
        self.start(slot);
        self.submit_batch();
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.extend(self.finished.drain(..));
    }
}

impl WaitingStore for UringStore {
    type Files = Arc<StackFiles>;

    fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        self.events.watch(id, fd)
    }

    fn unwatch(&mut self, id: WatchId) {
        self.events.unwatch(id);
    }

    fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        self.collect();
        let (wait, is_due) = self.events.begin_again(wait)?;
        if is_due {
            while let Some(slot) = self.events.again.slots.pop() {
                self.start(slot);
            }
        }
        let idle = self.finished.is_empty();
        if let Entered::Refused(error) = self.events.enter(wait, idle)? {
            self.collect();
            let time = self.events.pause_for(&error);
            if self.has_news() {
                return Ok(());
            }
            self.events.sit_out(time)?;
        }
        self.collect();
        Ok(())
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

    fn limit_workers(&mut self, most: u32) -> Result<(), StoreError> {
        // Those for files, and those for all else, which nothing here needs.
        let mut bounded_and_not = [most.max(1), 1];
        patiently(|| {
            self.events
                .ring
                .submitter()
                .register_iowq_max_workers(&mut bounded_and_not)
        })
        .map_err(|source| StoreError::Setup {
            what: "limit the threads of io_uring",
            source,
        })
    }

    fn swap_files(&mut self, files: Arc<StackFiles>) -> Result<(), StoreError> {
        debug_assert!(!self.is_busy(), "operations on the old files");
        self.files = files;
        self.alignment = self.files.alignment();
        self.register_files()
    }
}

impl UringStore {
    /// Waits until the kernel uses no buffer any more: freeing one before would let it write
    /// into memory that has another owner.
    fn drain(&mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            // The kernel uses these no more.
            self.events.again.at = None;
            for slot in std::mem::take(&mut self.events.again.slots) {
                self.finish(slot, Ok(()));
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            self.enter(Wait::Forever)?;
            self.finished.clear();
            self.events.forget_all();
        }
        Ok(())
    }
}

impl Drop for UringStore {
    /// Leaves nothing in flight, and no reference of the kernel to the files.
    fn drop(&mut self) {
        if let Err(e) = self.drain() {
            // Buffers that may still be written to must never be freed.
            log::error!("cannot wait for I/O in flight: {e}");
            self.events.ring.give_up();
            for flight in self.in_flight.drain() {
                std::mem::forget(flight);
            }
            return;
        }
        // The kernel takes a ring apart some time after its descriptor was closed. Until then the
        // claim of a registered data file would last, and the disk seem to be in use.
        if let Err(e) = self.events.end() {
            log::debug!("the claims of the files end a little later: {e}");
        }
        if self.events.ring.is_lent() {
            (0..MAX_CHUNKS).for_each(|chunk| self.unregister_memory(chunk));
        }
    }
}
