//! The default store: local files through io_uring.
//!
//! The ring also watches eventfds (a queue's kick, a worker's wake-up), so that a worker waits for
//! completions and kicks in one system call, which submits what was queued as well.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use keys::units::{LayerIndex, MAX_LAYERS};

use super::locked::Pinned;
use super::pause::Pause;
use super::{MOST_CHUNKS, StackFiles, Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag};

/// Operations in flight at once; further ones wait above.
const DEPTH: u32 = 256;

/// Registered files: those of all layers and a map. While layers are pushed and dropped there may be
/// some more for a moment.
const MOST_FILES: usize = MAX_LAYERS + 8;

/// How often what makes or changes a ring is tried while the kernel lacks memory, and the time between.
const TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// User data of a watched descriptor has this bit set; that of an operation does not.
const WATCH_BIT: u64 = 1 << 63;

/// User data of the removal of a watch, whose completion says nothing.
const IGNORED: u64 = WATCH_BIT | (1 << 62);

/// A descriptor that the ring watches for readability, as the watcher calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchId(pub u32);

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

/// Numbers of the registered files; the data of the layers beneath the top follow.
const DATA: Fixed = Fixed(0);
const MAP: Fixed = Fixed(1);

struct InFlight {
    tag: Tag,
    op: StoreOp,
    done: usize,
}

struct Watch {
    id: WatchId,
    fd: RawFd,
}

/// Files and eventfds behind one io_uring.
///
/// A kernel that has no memory for the moment, or too much to do, refuses a submission, a wait or a single
/// operation. None of these is an error of the disk: what has completed is taken, and after a pause it is
/// tried again, for as long as it takes. Only a ring that does not work any more is given up.
pub struct UringStore {
    ring: IoUring,
    files: Arc<StackFiles>,
    /// Of all data files together.
    alignment: u64,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    finished: VecDeque<StoreCompletion>,
    watches: Vec<Watch>,
    events: Vec<WatchId>,
    /// Entries that the submission queue has no room for, after those that are in it.
    backlog: VecDeque<squeue::Entry>,
    /// What the kernel could not do for the moment, to be begun again.
    again: Again,
    /// Between submissions that the kernel refuses.
    pause: Pause,
    /// Chunks of buffers that are registered with the kernel: pinned, and mapped once for all operations.
    registered: [Option<Pinned>; MOST_CHUNKS],
}

/// Operations and watches that are begun again later.
#[derive(Default)]
struct Again {
    slots: Vec<u32>,
    watches: Vec<WatchId>,
    at: Option<Instant>,
    pause: Pause,
}

impl Again {
    fn note(&mut self, error: &io::Error) {
        if self.at.is_none() {
            self.at = Some(Instant::now() + self.pause.next(error));
        }
    }
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
    /// Sets up the ring, and tries it. It must be used by the thread that makes it.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn new(files: impl Into<Arc<StackFiles>>) -> Result<Self, StoreError> {
        let fail = |what| move |source| StoreError::Setup { what, source };
        let files = files.into();
        let ring = patiently(|| {
            IoUring::builder()
                .setup_single_issuer()
                .setup_coop_taskrun()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .build(DEPTH)
        })
        .map_err(fail(StoreError::MAKE_RING))?;
        let mut store = Self {
            ring,
            alignment: files.alignment(),
            files,
            in_flight: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            finished: VecDeque::with_capacity(DEPTH as usize),
            watches: Vec::new(),
            events: Vec::new(),
            backlog: VecDeque::new(),
            again: Again::default(),
            pause: Pause::default(),
            registered: [const { None }; MOST_CHUNKS],
        };
        let submitter = store.ring.submitter();
        patiently(|| submitter.register_files_sparse(MOST_FILES as u32))
            .and_then(|()| patiently(|| submitter.register_buffers_sparse(MOST_CHUNKS as u32)))
            .map_err(fail("register with io_uring"))?;
        store.register_files()?;
        store.push(opcode::Nop::new().build().user_data(IGNORED));
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

    /// Uses `files` from now on. No operation may be under way.
    ///
    /// # Errors
    /// [`StoreError::Setup`], after which the store cannot be used.
    pub fn exchange(&mut self, files: impl Into<Arc<StackFiles>>) -> Result<(), StoreError> {
        debug_assert!(!self.is_busy(), "operations on the old files");
        self.files = files.into();
        self.alignment = self.files.alignment();
        self.register_files()
    }

    /// In the order of the numbers; what the others were is let go of.
    fn register_files(&self) -> Result<(), StoreError> {
        let fail = |source| StoreError::Setup {
            what: "register files with io_uring",
            source,
        };
        let mut numbers = [-1; MOST_FILES];
        let descriptors = descriptors(&self.files);
        let into = numbers
            .get_mut(..descriptors.len())
            .ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
        into.copy_from_slice(&descriptors);
        let mut done = 0;
        while done < numbers.len() {
            let submitter = self.ring.submitter();
            let update = || submitter.register_files_update(done as u32, &numbers[done..]);
            match patiently(update).map_err(fail)? {
                0 => return Err(fail(io::ErrorKind::Other.into())),
                some => done += some,
            }
        }
        Ok(())
    }

    /// Reports `id` whenever `fd` (an eventfd) is written to, until [`UringStore::unwatch`].
    ///
    /// The watch is edge-triggered, so the eventfd's counter is never read: that would be a system
    /// call for each kick. A counter that is not zero at the start is reported at once, so a kick
    /// that came before is not lost.
    pub fn watch(&mut self, id: WatchId, fd: RawFd) {
        self.unwatch(id);
        self.watches.push(Watch { id, fd });
        self.arm(id, fd);
    }

    /// Stops reporting `id`.
    pub fn unwatch(&mut self, id: WatchId) {
        if let Some(index) = self.watches.iter().position(|watch| watch.id == id) {
            self.watches.swap_remove(index);
            let entry = opcode::PollRemove::new(WATCH_BIT | u64::from(id.0)).build();
            self.push(entry.user_data(IGNORED));
        }
    }

    /// Submits everything queued and waits as told. What has happened is then to be had from
    /// [`Store::reap`] and [`UringStore::take_events`]; it may be nothing.
    ///
    /// # Errors
    /// [`StoreError::Uring`] when the ring does not work any more.
    pub fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        self.collect();
        let wait = self.begin_again(wait);
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
    fn begin_again(&mut self, wait: Wait) -> Wait {
        let Some(at) = self.again.at else {
            return wait;
        };
        let left = at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return match wait {
                Wait::No => Wait::No,
                Wait::AtMost(time) => Wait::AtMost(time.min(left)),
                Wait::Forever => Wait::AtMost(left),
            };
        }
        self.again.at = None;
        while let Some(slot) = self.again.slots.pop() {
            self.start(slot);
        }
        while let Some(id) = self.again.watches.pop() {
            if let Some(fd) = self.watched(id) {
                self.arm(id, fd);
            }
        }
        wait
    }

    fn has_work_for_kernel(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether operations are under way, for which it makes sense to ask again soon.
    pub fn is_busy(&self) -> bool {
        self.free.len() < self.in_flight.len()
    }

    /// Whether there is something for [`Store::reap`] or [`UringStore::take_events`].
    pub fn has_news(&self) -> bool {
        !self.finished.is_empty() || !self.events.is_empty()
    }

    /// The watches that fired since the last call, into `into`.
    pub fn take_events(&mut self, into: &mut Vec<WatchId>) {
        into.append(&mut self.events);
    }

    fn register_buffer(&mut self, chunk: usize, memory: libc::iovec) -> io::Result<()> {
        let submitter = self.ring.submitter();
        // SAFETY: the memory is mapped for as long as any buffer of it is, and the kernel pins its pages:
        // nothing depends on it staying mapped.
        unsafe { submitter.register_buffers_update(chunk as u32, &[memory], None) }
    }

    fn arm(&mut self, id: WatchId, fd: RawFd) {
        let entry = opcode::PollAdd::new(io_uring::types::Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(WATCH_BIT | u64::from(id.0)));
    }

    /// Queues an entry for the next [`UringStore::enter`].
    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.fill();
    }

    /// Moves entries into the submission queue while there is room: once the kernel has taken those that
    /// are in it, there is.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: an entry names either an eventfd that its owner keeps open while it is watched,
            // or a file of `self.files` and a buffer in `self.in_flight`; both live until the
            // completion, since `Drop` waits for all of them.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Puts the part of an operation that is not done yet on the ring.
    fn start(&mut self, slot: u32) {
        let Some(Some(flight)) = self.in_flight.get(slot as usize) else {
            return;
        };
        let done = flight.done;
        let fixed = |file: &StoreFile| match file {
            &StoreFile::TOP => DATA,
            StoreFile::Data(layer) => Fixed(MAP.0 + u32::from(layer.0)),
            StoreFile::Map => MAP,
        };
        let entry = match &flight.op {
            StoreOp::Read {
                file,
                at,
                len,
                buffer,
            } => {
                let (into, len) = (buffer.ptr().wrapping_add(done), (len - done) as u32);
                let (file, at) = (fixed(file), at + done as u64);
                match self.registered.get(buffer.slot()) {
                    Some(Some(_)) => opcode::ReadFixed::new(file, into, len, buffer.slot() as u16)
                        .offset(at)
                        .build(),
                    _ => opcode::Read::new(file, into, len).offset(at).build(),
                }
            }
            StoreOp::Write {
                file,
                at,
                len,
                durable,
                buffer,
            } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let (from, len) = (buffer.ptr().wrapping_add(done), (len - done) as u32);
                let (file, at) = (fixed(file), at + done as u64);
                match self.registered.get(buffer.slot()) {
                    Some(Some(_)) => opcode::WriteFixed::new(file, from, len, buffer.slot() as u16)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                    _ => opcode::Write::new(file, from, len)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                }
            }
            StoreOp::Sync { file } => opcode::Fsync::new(fixed(file))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            StoreOp::Punch { at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(DATA, *len)
                    .offset(*at)
                    .mode(mode)
                    .build()
            }
        };
        self.push(entry.user_data(u64::from(slot)));
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
                self.complete(entry.user_data() as u32, entry.result());
            }
        }
    }

    fn watched(&self, id: WatchId) -> Option<RawFd> {
        let mut watches = self.watches.iter();
        watches.find(|watch| watch.id == id).map(|watch| watch.fd)
    }

    /// A watch has something to report, and may be at its end.
    fn fired(&mut self, id: WatchId, result: i32, goes_on: bool) {
        let Some(fd) = self.watched(id) else {
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
            self.arm(id, fd);
        } else if is_nothing(&error) || is_transient(&error) {
            self.again.watches.push(id);
            self.again.note(&error);
        } else {
            log::error!("io_uring watches a descriptor no more: {error}");
        }
    }

    fn complete(&mut self, slot: u32, result: i32) {
        let Some(flight) = self
            .in_flight
            .get_mut(slot as usize)
            .and_then(Option::as_mut)
        else {
            return;
        };
        let outcome = match (&flight.op, result) {
            (op, r) if r < 0 => {
                let source = io::Error::from_raw_os_error(-r);
                if is_interrupted(&source) {
                    return self.start(slot);
                }
                // A sync that has failed has dropped completed writes, whatever it says of why: another
                // one would succeed without them.
                let syncs = matches!(
                    op,
                    StoreOp::Sync { .. } | StoreOp::Write { durable: true, .. }
                );
                if is_transient(&source) && !syncs {
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

    fn finish(&mut self, slot: u32, outcome: Result<(), StoreError>) {
        let Some(flight) = self.in_flight[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
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

const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;

/// Nothing has happened within the time, or before a signal.
fn is_nothing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETIME) || is_interrupted(error)
}

/// Interrupted before anything was done. Those from 512 on the kernel means for itself (ERESTARTSYS and
/// its like), and lets some of them through.
fn is_interrupted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | 512..=514 | 516))
}

/// What passes: no memory for the moment, or too much to do (io_uring_enter(2)).
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// Tries what makes or changes a ring again for a while where the kernel only lacks something for now.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if is_interrupted(&error) || is_transient(&error) => {
                std::thread::sleep(TRY_AGAIN);
            }
            result => return result,
        }
    }
    attempt()
}

/// In the order of the numbers.
fn descriptors(files: &StackFiles) -> Vec<RawFd> {
    let top = [files.data.file().as_raw_fd(), files.map.file().as_raw_fd()];
    let lower = files.lower.iter().map(|file| file.file().as_raw_fd());
    top.into_iter().chain(lower).collect()
}

fn verb(op: &StoreOp) -> &'static str {
    match op {
        StoreOp::Read {
            file: StoreFile::Data(_),
            ..
        } => "read ciphertext",
        StoreOp::Read {
            file: StoreFile::Map,
            ..
        } => "read the block map",
        StoreOp::Write {
            file: StoreFile::Data(_),
            ..
        } => "write ciphertext",
        StoreOp::Write {
            file: StoreFile::Map,
            ..
        } => "write the block map",
        StoreOp::Sync {
            file: StoreFile::Data(_),
        } => "sync the data file",
        StoreOp::Sync {
            file: StoreFile::Map,
        } => "sync the block map",
        StoreOp::Punch { .. } => "punch a hole into the data file",
    }
}

impl Store for UringStore {
    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn adopt(&mut self, chunk: usize, start: NonNull<u8>, len: usize) {
        let memory = libc::iovec {
            iov_base: start.as_ptr().cast(),
            iov_len: len,
        };
        // An ordinary user may lock less memory than that: it works all the same.
        let Some(pinned) = Pinned::new(len) else {
            return warn_unregistered(&io::ErrorKind::OutOfMemory.into());
        };
        match self.register_buffer(chunk, memory) {
            Ok(()) => self.registered[chunk] = Some(pinned),
            Err(error) => warn_unregistered(&error),
        }
    }

    fn disown(&mut self, chunk: usize) {
        if self.registered[chunk].take().is_some() {
            let nothing = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            if let Err(error) = self.register_buffer(chunk, nothing) {
                // Its pages stay pinned until other memory takes its place.
                log::warn!("memory of buffers stays registered with io_uring: {error}");
            }
        }
    }

    fn mapped(&self, layer: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        self.files.mapped(layer, at, len)
    }

    fn writes_durably(&self) -> bool {
        self.files.data.is_direct()
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        let Some(slot) = self.free.pop() else {
            debug_assert!(false, "submitted without room");
            return;
        };
        self.in_flight[slot as usize] = Some(InFlight { tag, op, done: 0 });
        self.start(slot);
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.extend(self.finished.drain(..));
    }
}

/// Says once what more locked memory would be good for.
fn warn_unregistered(error: &io::Error) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        log::warn!(
            "buffers are not registered with io_uring, which costs some CPU time: {error}; raise \
             RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= of a systemd unit)"
        );
    });
}

impl UringStore {
    /// Waits until the kernel has let go of every buffer: freeing one before would let it write
    /// into memory that belongs to somebody else.
    fn drain(&mut self) -> Result<(), StoreError> {
        while self.free.len() < self.in_flight.len() {
            // These the kernel has let go of.
            self.again.at = None;
            for slot in std::mem::take(&mut self.again.slots) {
                self.finish(slot, Ok(()));
            }
            if self.free.len() == self.in_flight.len() {
                return Ok(());
            }
            self.enter(Wait::Forever)?;
            self.finished.clear();
            self.events.clear();
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
            for flight in self.in_flight.drain(..) {
                std::mem::forget(flight);
            }
            return;
        }
        // The kernel takes a ring apart some time after its descriptor was closed. Until then the
        // claim of a registered data file would last, and the disk seem to be in use.
        if let Err(e) = self.ring.submitter().unregister_files() {
            log::debug!("the claims of the files end a little later: {e}");
        }
    }
}

#[cfg(test)]
mod tests;
