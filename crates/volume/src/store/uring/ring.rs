//! The default store: local files through io_uring.
//!
//! The ring also watches eventfds (a queue's kick, a worker's wake-up), so that a worker waits for
//! completions and kicks in one system call, which submits what was queued as well.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{cqueue, opcode, squeue};
use slab::Slab;

use crate::must_complete::lost;
use crate::store::locked::Pinned;
use crate::store::pause::Pause;
use crate::store::{MAX_CHUNKS, StackFiles, Store, StoreCompletion, StoreError, StoreOp, Tag};
use keys::units::LayerIndex;

use super::bare::{BareRing, DEPTH};
use super::entry::{InFlight, verb};
use super::retry::{Again, is_interrupted, is_not_begun, is_nothing, is_transient, patiently};
use super::watch::{IGNORED, WATCH_BIT, Watch, WatchId, Watches};

/// How long to wait for something to happen.
#[derive(Debug, Clone, Copy)]
pub enum Wait {
    /// Only submit.
    No,
    /// Until something happens or the time is over.
    AtMost(Duration),
    /// Until something happens.
    Forever,
}

/// Files and eventfds behind one io_uring.
///
/// A kernel that has no memory for the moment, or too much to do, refuses a submission, a wait or a single
/// operation. None of these is an error of the disk: what has completed is taken, and after a pause it is
/// tried again, for as long as it takes. Only a ring that does not work any more is given up.
pub struct UringStore {
    pub(super) ring: BareRing,
    pub(super) files: Arc<StackFiles>,
    /// Of all data files together.
    pub(super) alignment: u64,
    pub(super) in_flight: Slab<InFlight>,
    pub(super) finished: VecDeque<StoreCompletion>,
    pub(super) watches: Watches,
    events: Vec<WatchId>,
    /// Entries that the submission queue has no room for, after those that are in it.
    backlog: VecDeque<squeue::Entry>,
    /// What the kernel could not do for the moment, to be begun again.
    pub(super) again: Again,
    /// Between submissions that the kernel refuses.
    pause: Pause,
    /// Chunks of buffers that are registered with the kernel: pinned, and mapped once for all operations.
    pub(super) registered: [Option<Pinned>; MAX_CHUNKS],
}

/// `struct io_uring_getevents_arg` of linux/io_uring.h.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    /// Address of a timespec.
    timespec: u64,
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
        let fail = |what| move |source| StoreError::Setup { what, source };
        let files = files.into();
        let mut store = Self {
            ring,
            alignment: files.alignment(),
            files,
            in_flight: Slab::with_capacity(DEPTH),
            finished: VecDeque::with_capacity(DEPTH),
            watches: Watches::default(),
            events: Vec::new(),
            backlog: VecDeque::new(),
            again: Again::default(),
            pause: Pause::default(),
            registered: [const { None }; MAX_CHUNKS],
        };
        store
            .ring
            .enable()
            .and_then(|()| store.make_file_table())
            .map_err(fail("register with io_uring"))?;
        store.register_files()?;
        let nothing = opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE);
        store.push(nothing.user_data(IGNORED));
        patiently(|| store.ring.submit_and_wait(1)).map_err(fail("use io_uring"))?;
        store.collect();
        Ok(store)
    }

    /// Lets the kernel have at most `most` threads for operations of this ring that block.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn limit_workers(&mut self, most: u32) -> Result<(), StoreError> {
        // Those for files, and those for all else, which nothing here needs.
        let mut bounded_and_not = [most.max(1), 1];
        patiently(|| {
            self.ring
                .submitter()
                .register_iowq_max_workers(&mut bounded_and_not)
        })
        .map_err(|source| StoreError::Setup {
            what: "limit the threads of io_uring",
            source,
        })
    }

    /// Reports `id` whenever `fd` (an eventfd) is written to, until [`UringStore::unwatch`].
    ///
    /// The watch is edge-triggered, so the eventfd's counter is never read: that would be a system
    /// call for each kick. A counter that is not zero at the start is reported at once, so a kick
    /// that came before is not lost. The ring keeps the descriptor's file open until then.
    ///
    /// # Errors
    /// [`StoreError::Setup`]: the kernel does not take it, or too many are watched.
    pub fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        self.unwatch(id);
        let watch = self.watches.add(id)?;
        if let Err(error) = self.register_watched(watch, fd) {
            self.watches.remove(id);
            return Err(error);
        }
        self.arm(watch);
        Ok(())
    }

    /// Stops reporting `id`.
    pub fn unwatch(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.remove(id) {
            let entry = opcode::PollRemove::new(WATCH_BIT | u64::from(id.0)).build();
            let entry = entry.flags(squeue::Flags::FIXED_FILE);
            self.push(entry.user_data(IGNORED));
            self.unregister_watched(watch);
        }
    }

    /// Submits everything queued and waits as told. What has happened then comes from
    /// [`Store::reap`] and [`UringStore::take_events`]; it may be nothing.
    ///
    /// # Errors
    /// [`StoreError::Uring`] when the ring does not work any more.
    pub fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        self.collect();
        let wait = self.begin_again(wait)?;
        self.fill();
        let idle = !self.has_news() && self.backlog.is_empty();
        let result = match wait {
            Wait::AtMost(time) if idle => {
                let limit = Timespec::from(time);
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
            Wait::Forever if idle => self.ring.submit_and_wait(1),
            // The kernel posts completions of a ring of this kind only when it is asked to, and
            // says by a flag in shared memory that there are some: else this is no system call.
            _ if self.has_work_for_kernel() => self
                .ring
                .submitter()
                .submit_with_args(0, &SubmitArgs::new()),
            _ => Ok(0),
        };
        match result {
            // What it has not taken of several is submitted by the next call.
            Ok(_) => self.pause.end(),
            Err(e) if is_nothing(&e) => self.pause.end(),
            Err(e) if is_transient(&e) => return self.sit_out(&e),
            Err(e) => return Err(StoreError::Uring(e)),
        }
        self.collect();
        Ok(())
    }

    /// The kernel takes nothing for the moment: waits a little for a completion, which frees what it lacks,
    /// without submitting anything.
    fn sit_out(&mut self, error: &io::Error) -> Result<(), StoreError> {
        self.collect();
        let time = self.pause.next(error);
        if self.has_news() {
            return Ok(());
        }
        let limit = libc::timespec {
            tv_sec: 0,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_usec: 0,
            timespec: (&raw const limit).expose_provenance() as u64,
        };
        let flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        // SAFETY: nothing is submitted. The argument is what the flags announce, and it and the time that
        // it names live until the call returns.
        let waited = unsafe { self.ring.submitter().enter(0, 1, flags, Some(&arg)) };
        match waited {
            Ok(_) => {}
            Err(e) if is_nothing(&e) => {}
            Err(e) if is_transient(&e) => std::thread::sleep(time),
            Err(e) => return Err(StoreError::Uring(e)),
        }
        self.collect();
        Ok(())
    }

    /// Begins again what the kernel could not do, if the pause is over; else no wait is to be longer.
    ///
    /// # Errors
    /// [`StoreError::Uring`] when that is a watch: without it nobody would hear of a kick any more.
    fn begin_again(&mut self, wait: Wait) -> Result<Wait, StoreError> {
        let Some(at) = self.again.at else {
            return Ok(wait);
        };
        if let Some(error) = self.again.lost_watch.take() {
            return Err(StoreError::Uring(error));
        }
        let left = at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Ok(match wait {
                Wait::No => Wait::No,
                Wait::AtMost(time) => Wait::AtMost(time.min(left)),
                Wait::Forever => Wait::AtMost(left),
            });
        }
        self.again.at = None;
        while let Some(slot) = self.again.slots.pop() {
            self.start(slot);
        }
        while let Some(id) = self.again.watches.pop() {
            if let Some(watch) = self.watches.get(id) {
                self.arm(watch);
            }
        }
        Ok(wait)
    }

    fn has_work_for_kernel(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether operations are under way, for which it makes sense to ask again soon.
    pub fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether there is something for [`Store::reap`] or [`UringStore::take_events`].
    pub fn has_news(&self) -> bool {
        !self.finished.is_empty() || !self.events.is_empty()
    }

    /// The watches that fired since the last call, into `into`.
    pub fn take_events(&mut self, into: &mut Vec<WatchId>) {
        into.append(&mut self.events);
    }

    fn arm(&mut self, watch: Watch) {
        let entry = opcode::PollAdd::new(watch.file(), libc::POLLIN as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(WATCH_BIT | u64::from(watch.id.0)));
    }

    /// Queues an entry for the next [`UringStore::enter`].
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.fill();
    }

    /// Submits what is queued if the device has too little to do ([`is_batch`]), without waiting. What the kernel
    /// refuses stays queued, and [`UringStore::enter`] judges the error.
    fn submit_batch(&mut self) {
        let queued = self.ring.submission().len();
        let under_way = self.in_flight.len().saturating_sub(queued);
        if is_batch(queued, under_way) {
            let _ = self.ring.submitter().submit();
        }
    }

    /// Moves entries into the submission queue while there is room: once the kernel has taken those that
    /// are in it, there is.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: an entry names files that are registered, and a buffer in `self.in_flight`, which
            // lives until the completion, since `Drop` waits for all of them.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Puts the part of an operation that is not done yet on the ring.
    pub(super) fn start(&mut self, slot: usize) {
        let Some(flight) = self.in_flight.get(slot) else {
            return;
        };
        let is_registered = |chunk: usize| matches!(self.registered.get(chunk), Some(Some(_)));
        let entry = flight.entry(is_registered);
        self.push(entry.user_data(slot as u64));
    }

    /// Moves what the kernel has completed to `finished` and `events`.
    fn collect(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            if entry.user_data() == IGNORED {
                continue;
            }
            if entry.user_data() & WATCH_BIT != 0 {
                let id = WatchId((entry.user_data() & !WATCH_BIT) as u32);
                self.fired(id, entry.result(), cqueue::more(entry.flags()));
            } else {
                self.complete(entry.user_data() as usize, entry.result());
            }
        }
    }

    /// A watch has something to report, and may be at its end.
    pub(super) fn fired(&mut self, id: WatchId, result: i32, goes_on: bool) {
        let Some(watch) = self.watches.get(id) else {
            return;
        };
        if result == -libc::ECANCELED {
            return;
        }
        // An error is reported too: what is watched is looked at then.
        if !self.events.contains(&id) {
            self.events.push(id);
        }
        if goes_on {
            return;
        }
        let error = io::Error::from_raw_os_error(-result);
        if result >= 0 {
            self.arm(watch);
        } else if is_nothing(&error) || is_transient(&error) {
            self.again.watches.push(id);
            self.again.note(&error);
        } else {
            log::error!("io_uring watches a descriptor no more: {error}");
            self.again.at = Some(Instant::now());
            self.again.lost_watch = Some(error);
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
                    self.again.slots.push(slot);
                    return self.again.note(&source);
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
            self.again.pause.end();
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
pub(super) fn is_batch(queued: usize, under_way: usize) -> bool {
    queued >= under_way.clamp(1, MAX_BATCH)
}

const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;

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

impl UringStore {
    /// Waits until the kernel uses no buffer any more: freeing one before would let it write
    /// into memory that has another owner.
    fn drain(&mut self) -> Result<(), StoreError> {
        while !self.in_flight.is_empty() {
            // The kernel uses these no more.
            self.again.at = None;
            for slot in std::mem::take(&mut self.again.slots) {
                self.finish(slot, Ok(()));
            }
            if self.in_flight.is_empty() {
                return Ok(());
            }
            self.enter(Wait::Forever)?;
            self.finished.clear();
            self.events.clear();
        }
        Ok(())
    }
}

impl UringStore {
    /// Ends all watches, and waits for that. The kernel waits for whatever uses registered files before these are
    /// unregistered: Linux 6.1 for a watch too, which has no end of its own.
    fn end_watches(&mut self) -> io::Result<()> {
        // What has completed before does not count.
        self.collect();
        let ids = self.watches.ids();
        ids.iter().for_each(|id| self.unwatch(*id));
        while !self.backlog.is_empty() {
            self.ring.submit_and_wait(0)?;
            self.fill();
        }
        // Each removal completes once, when what it removes has ended.
        patiently(|| self.ring.submit_and_wait(ids.len())).map(drop)
    }
}

impl Drop for UringStore {
    /// Leaves nothing in flight, and no reference of the kernel to the files.
    fn drop(&mut self) {
        if let Err(e) = self.drain() {
            // Buffers that may still be written to must never be freed.
            log::error!("cannot wait for I/O in flight: {e}");
            self.ring.give_up();
            for flight in self.in_flight.drain() {
                std::mem::forget(flight);
            }
            return;
        }
        // The kernel takes a ring apart some time after its descriptor was closed. Until then the
        // claim of a registered data file would last, and the disk seem to be in use.
        let unregistered = self
            .end_watches()
            .and_then(|()| self.ring.submitter().unregister_files());
        if let Err(e) = unregistered {
            log::debug!("the claims of the files end a little later: {e}");
        }
        if self.ring.is_lent() {
            (0..MAX_CHUNKS).for_each(|chunk| self.unregister_memory(chunk));
        }
    }
}
