//! The default store: local files through io_uring.
//!
//! The ring also watches eventfds (a queue's kick, a worker's wake-up), so that a worker waits for
//! completions and kicks in one system call, which submits what was queued as well.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::units::LayerIndex;

use super::{BufferPool, StackFiles, Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag};

/// Operations in flight at once; further ones wait above.
const DEPTH: u32 = 256;

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
/// The number of the registered memory.
const BUFFERS: u16 = 0;

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
pub struct UringStore {
    ring: IoUring,
    files: StackFiles,
    /// Of all data files together.
    alignment: u64,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<u32>,
    finished: VecDeque<StoreCompletion>,
    watches: Vec<Watch>,
    events: Vec<WatchId>,
    /// The addresses that are registered with the kernel: pinned, and mapped once for all operations.
    registered: Range<usize>,
}

impl UringStore {
    /// Sets up the ring. It must be used by the thread that makes it.
    ///
    /// # Errors
    /// [`StoreError::Uring`].
    pub fn new(files: StackFiles) -> Result<Self, StoreError> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(DEPTH)
            .map_err(StoreError::Uring)?;
        ring.submitter()
            .register_files(&descriptors(&files))
            .map_err(StoreError::Uring)?;
        Ok(Self {
            ring,
            alignment: files.alignment(),
            files,
            in_flight: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            finished: VecDeque::with_capacity(DEPTH as usize),
            watches: Vec::new(),
            events: Vec::new(),
            registered: 0..0,
        })
    }

    /// Uses `files` from now on. No operation may be under way.
    ///
    /// # Errors
    /// [`StoreError::Uring`], after which the store cannot be used.
    pub fn exchange(&mut self, files: StackFiles) -> Result<(), StoreError> {
        debug_assert!(!self.is_busy(), "operations on the old files");
        let submitter = self.ring.submitter();
        submitter.unregister_files().map_err(StoreError::Uring)?;
        submitter
            .register_files(&descriptors(&files))
            .map_err(StoreError::Uring)?;
        self.alignment = files.alignment();
        self.files = files;
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
    /// [`Store::reap`] and [`UringStore::take_events`].
    ///
    /// # Errors
    /// [`StoreError::Uring`] when the kernel refuses the ring itself.
    pub fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        self.collect();
        let idle = !self.has_news();
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
            Ok(_) => {}
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY)
                ) => {}
            Err(e) => return Err(StoreError::Uring(e)),
        }
        self.collect();
        Ok(())
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

    fn arm(&mut self, id: WatchId, fd: RawFd) {
        let entry = opcode::PollAdd::new(io_uring::types::Fd(fd), libc::POLLIN as u32)
            .multi(true)
            .build();
        self.push(entry.user_data(WATCH_BIT | u64::from(id.0)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: an entry names either an eventfd that its owner keeps open while it is watched,
        // or a file of `self.files` and a buffer in `self.in_flight`; both live until the
        // completion, since `Drop` waits for all of them.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The queue is full of entries not yet submitted. Submitting makes room; when the
            // kernel cannot take them now, trying again is all there is to do.
            if let Err(e) = self.ring.submit() {
                log::debug!("io_uring does not take entries: {e}");
            }
        }
    }

    /// Puts the part of an operation that is not done yet on the ring.
    fn start(&mut self, slot: u32) {
        let Some(Some(flight)) = self.in_flight.get(slot as usize) else {
            return;
        };
        let done = flight.done;
        let registered = |at: *mut u8| self.registered.contains(&at.addr());
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
                match registered(into) {
                    true => opcode::ReadFixed::new(file, into, len, BUFFERS)
                        .offset(at)
                        .build(),
                    false => opcode::Read::new(file, into, len).offset(at).build(),
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
                match registered(from) {
                    true => opcode::WriteFixed::new(file, from, len, BUFFERS)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                    false => opcode::Write::new(file, from, len)
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
                self.fired(&entry);
            } else {
                self.complete(entry.user_data() as u32, entry.result());
            }
        }
    }

    fn fired(&mut self, entry: &cqueue::Entry) {
        let id = WatchId((entry.user_data() & !WATCH_BIT) as u32);
        let Some(fd) = self
            .watches
            .iter()
            .find(|watch| watch.id == id)
            .map(|watch| watch.fd)
        else {
            return;
        };
        if entry.result() == -libc::ECANCELED {
            return;
        }
        if !self.events.contains(&id) {
            self.events.push(id);
        }
        if !cqueue::more(entry.flags()) && entry.result() >= 0 {
            self.arm(id, fd);
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
            (StoreOp::Read { .. } | StoreOp::Write { .. } | StoreOp::Sync { .. }, r)
                if r == -libc::EINTR || r == -libc::EAGAIN =>
            {
                return self.start(slot);
            }
            (op, r) if r < 0 => Err(StoreError::Io {
                what: verb(op),
                source: io::Error::from_raw_os_error(-r),
            }),
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

    fn adopt(&mut self, pool: &BufferPool) {
        let (start, len) = pool.memory();
        let whole = libc::iovec {
            iov_base: start.as_ptr().cast(),
            iov_len: len,
        };
        // SAFETY: the memory is mapped for as long as any buffer of the pool is, and the kernel pins
        // its pages: nothing depends on it staying mapped.
        match unsafe { self.ring.submitter().register_buffers(&[whole]) } {
            Ok(()) => self.registered = start.addr().get()..start.addr().get() + len,
            // An ordinary user may lock less memory than that.
            Err(error) => log::info!("the buffers are not registered with io_uring: {error}"),
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

impl Drop for UringStore {
    /// Waits until the kernel has let go of every buffer: freeing one before would let it write
    /// into memory that belongs to somebody else.
    fn drop(&mut self) {
        while self.free.len() < self.in_flight.len() {
            if let Err(e) = self.enter(Wait::Forever) {
                // Buffers that may still be written to must never be freed.
                log::error!("cannot wait for I/O in flight: {e}");
                for flight in self.in_flight.drain(..) {
                    std::mem::forget(flight);
                }
                return;
            }
            self.finished.clear();
            self.events.clear();
        }
    }
}
