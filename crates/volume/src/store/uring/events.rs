//! A ring as what a thread waits on: it watches descriptors, and its owner puts operations of its own on it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{cqueue, opcode, squeue};

use crate::store::pause::Pause;
use crate::store::{StoreError, Wait, WatchId};

use super::bare::BareRing;
use super::entry::MAX_FILES;
use super::retry::{Again, is_nothing, is_transient, patiently};
use super::watch::{IGNORED, MAX_WATCHES, WATCH_BIT, Watch, Watches};

/// A ring with its watches, and what the kernel could not take for the moment.
///
/// A kernel that has no memory for the moment, or too much to do, refuses a submission, a wait or a single
/// operation. None of these is an error of the disk: what has completed is taken, and after a pause it is
/// tried again, for as long as it takes. Only a ring that does not work any more is given up.
pub(in crate::store) struct EventRing {
    pub(in crate::store) ring: BareRing,
    pub(super) watches: Watches,
    /// Watches that fired, until somebody takes them.
    happened: Vec<WatchId>,
    /// Entries that the submission queue has no room for, after those that are in it.
    backlog: VecDeque<squeue::Entry>,
    /// What the kernel could not do for the moment, to be begun again.
    pub(super) again: Again,
    /// Between submissions that the kernel refuses.
    pause: Pause,
}

/// What became of a submission and a wait.
pub(in crate::store) enum Entered {
    /// They are done, as far as they go now.
    Done,
    /// The kernel takes nothing for the moment: the owner takes what has completed, and sits it out
    /// ([`EventRing::sit_out`]) if that was nothing.
    Refused(io::Error),
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

const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;

impl EventRing {
    /// Puts a ring to use. It must be used by the thread that calls this.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(in crate::store) fn on(ring: BareRing) -> Result<Self, StoreError> {
        let mut events = Self {
            ring,
            watches: Watches::default(),
            happened: Vec::new(),
            backlog: VecDeque::new(),
            again: Again::default(),
            pause: Pause::default(),
        };
        events
            .ring
            .enable()
            .and_then(|()| events.make_file_table())
            .map_err(|source| StoreError::Setup {
                what: "register with io_uring",
                source,
            })?;
        Ok(events)
    }

    /// Makes the table of registered files, all of it empty.
    fn make_file_table(&self) -> io::Result<()> {
        let submitter = self.ring.submitter();
        patiently(|| submitter.register_files_sparse((MAX_FILES + MAX_WATCHES) as u32))
    }

    /// Tries the ring, before anything depends on it.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub(in crate::store) fn test(&mut self) -> Result<(), StoreError> {
        let nothing = opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE);
        self.push(nothing.user_data(IGNORED));
        patiently(|| self.ring.submit_and_wait(1)).map_err(|source| StoreError::Setup {
            what: "use io_uring",
            source,
        })?;
        // It is not told of.
        let _ = self.next_completion();
        Ok(())
    }

    /// As [`WaitingStore::watch`](crate::store::WaitingStore::watch).
    ///
    /// # Errors
    /// [`StoreError::Setup`]: the kernel does not take it, or too many are watched.
    pub(in crate::store) fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        self.unwatch(id);
        let watch = self.watches.add(id)?;
        if let Err(error) = self.register_watched(watch, fd) {
            self.watches.remove(id);
            return Err(error);
        }
        self.arm(watch);
        Ok(())
    }

    /// As [`WaitingStore::unwatch`](crate::store::WaitingStore::unwatch).
    pub(in crate::store) fn unwatch(&mut self, id: WatchId) {
        if let Some(watch) = self.watches.remove(id) {
            let entry = opcode::PollRemove::new(WATCH_BIT | u64::from(id.0)).build();
            let entry = entry.flags(squeue::Flags::FIXED_FILE);
            self.push(entry.user_data(IGNORED));
            self.unregister_watched(watch);
        }
    }

    /// Registers the descriptor that a watch is of.
    fn register_watched(&self, watch: Watch, fd: RawFd) -> Result<(), StoreError> {
        let update = || {
            let submitter = self.ring.submitter();
            submitter.register_files_update(watch.file().0, &[fd])
        };
        let what = "watch a descriptor with io_uring";
        patiently(update)
            .map(drop)
            .map_err(|source| StoreError::Setup { what, source })
    }

    /// Takes it out again.
    fn unregister_watched(&self, watch: Watch) {
        if let Err(error) = self.register_watched(watch, -1) {
            // The next one takes its place.
            log::debug!("a descriptor that is not watched stays registered: {error}");
        }
    }

    fn arm(&mut self, watch: Watch) {
        let entry = opcode::PollAdd::new(watch.file(), libc::POLLIN as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(WATCH_BIT | u64::from(watch.id.0)));
    }

    /// Queues an entry for the next [`EventRing::enter`].
    pub(in crate::store) fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.fill();
    }

    /// Moves entries into the submission queue while there is room: once the kernel has taken those that
    /// are in it, there is.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: an entry names files that are registered, and a buffer that its owner keeps until the
            // completion, since it waits for all of these before it is dropped.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// The next operation of the owner that the kernel has completed, by its user data, with its result. Watches
    /// that fired are noted on the way.
    pub(in crate::store) fn next_completion(&mut self) -> Option<(usize, i32)> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() == IGNORED {
                continue;
            }
            if entry.user_data() & WATCH_BIT == 0 {
                return Some((entry.user_data() as usize, entry.result()));
            }
            let id = WatchId((entry.user_data() & !WATCH_BIT) as u32);
            self.fired(id, entry.result(), cqueue::more(entry.flags()));
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
        if !self.happened.contains(&id) {
            self.happened.push(id);
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

    /// Watches what could not be watched, if the pause is over, when the owner begins its operations again too; else
    /// no wait is to be longer. How to wait, and whether it is.
    ///
    /// # Errors
    /// [`StoreError::Uring`] when a watch has ended for good: without it nobody would hear of a kick any more.
    pub(in crate::store) fn begin_again(&mut self, wait: Wait) -> Result<(Wait, bool), StoreError> {
        let Some(at) = self.again.at else {
            return Ok((wait, false));
        };
        if let Some(error) = self.again.lost_watch.take() {
            return Err(StoreError::Uring(error));
        }
        let left = at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            let wait = match wait {
                Wait::No => Wait::No,
                Wait::AtMost(time) => Wait::AtMost(time.min(left)),
                Wait::Forever => Wait::AtMost(left),
            };
            return Ok((wait, false));
        }
        self.again.at = None;
        while let Some(id) = self.again.watches.pop() {
            if let Some(watch) = self.watches.get(id) {
                self.arm(watch);
            }
        }
        Ok((wait, true))
    }

    /// Submits everything queued, and waits as told, if the owner has nothing to do by now (`idle`).
    ///
    /// # Errors
    /// [`StoreError::Uring`] when the ring does not work any more.
    pub(in crate::store) fn enter(
        &mut self,
        wait: Wait,
        idle: bool,
    ) -> Result<Entered, StoreError> {
        self.fill();
        let idle = idle && !self.has_happened() && self.backlog.is_empty();
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
            Err(e) if is_transient(&e) => return Ok(Entered::Refused(e)),
            Err(e) => return Err(StoreError::Uring(e)),
        }
        Ok(Entered::Done)
    }

    /// How long to sit out that the kernel takes nothing, because of this error.
    pub(in crate::store) fn pause_for(&mut self, error: &io::Error) -> Duration {
        self.pause.next(error)
    }

    /// Waits a little for a completion, which frees what the kernel lacks, without submitting anything.
    ///
    /// # Errors
    /// As [`EventRing::enter`].
    pub(in crate::store) fn sit_out(&mut self, time: Duration) -> Result<(), StoreError> {
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
        Ok(())
    }

    fn has_work_for_kernel(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether a watch fired that nobody has taken.
    pub(in crate::store) fn has_happened(&self) -> bool {
        !self.happened.is_empty()
    }

    /// The watches that fired since the last call, into `into`.
    pub(in crate::store) fn take_events(&mut self, into: &mut Vec<WatchId>) {
        into.append(&mut self.happened);
    }

    /// Forgets that this one fired.
    pub(in crate::store) fn forget(&mut self, id: WatchId) {
        self.happened.retain(|happened| *happened != id);
    }

    /// Forgets what fired.
    pub(in crate::store) fn forget_all(&mut self) {
        self.happened.clear();
    }

    /// Ends all watches, waits for that, and lets go of all registered files. The kernel waits for whatever uses these
    /// before they are unregistered: Linux 6.1 for a watch too, which has no end of its own. No operation of the
    /// owner may be under way.
    ///
    /// # Errors
    /// What the kernel says.
    pub(in crate::store) fn end(&mut self) -> io::Result<()> {
        // What has completed before does not count.
        while self.next_completion().is_some() {}
        let ids = self.watches.ids();
        ids.iter().for_each(|id| self.unwatch(*id));
        while !self.backlog.is_empty() {
            self.ring.submit_and_wait(0)?;
            self.fill();
        }
        // Each removal completes once, when what it removes has ended.
        patiently(|| self.ring.submit_and_wait(ids.len()))?;
        self.ring.submitter().unregister_files()
    }
}
