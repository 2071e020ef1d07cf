//! What the kernel may refuse, refused by a real kernel: a seccomp filter on the test's own thread fails
//! calls of io_uring_enter. Completions that say so are given to the store by hand.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use test_support::seccomp;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use io_uring::{opcode, squeue, types};

use super::bare::BareRing;
use super::entry::InFlight;
use super::ring::{UringStore, is_batch};
use super::watch::{IGNORED, MAX_WATCHES};
use crate::store::{
    BufferPool, IoBuffer, LayerFile, StackFiles, Store, StoreCompletion, StoreError, StoreFile,
    StoreOp, Tag, Wait, WaitingStore, WatchId,
};

struct Fixture {
    store: UringStore,
    pool: BufferPool,
    directory: TempDir,
}

const LEN: u64 = 1 << 20;

impl Fixture {
    fn new() -> Self {
        Self::on(BareRing::for_one_thread().unwrap())
    }

    fn on(ring: BareRing) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = directory.path().join(name);
            File::create(&path).unwrap().set_len(LEN).unwrap();
            LayerFile::open(&path).unwrap()
        };
        let files = StackFiles::new(open("data"), open("map"), Vec::new());
        let mut store = UringStore::on(ring, files).unwrap();
        let pool = BufferPool::alone().unwrap();
        pool.introduce(&mut store);
        Self {
            store,
            pool,
            directory,
        }
    }

    fn buffer(&mut self) -> IoBuffer {
        if let Some(buffer) = self.pool.take() {
            return buffer;
        }
        self.pool.tend(&mut self.store);
        self.pool.take().unwrap()
    }

    fn write(&mut self, at: u64, byte: u8) -> StoreOp {
        let mut buffer = self.buffer();
        buffer.as_mut_slice().fill(byte);
        StoreOp::Write {
            file: StoreFile::TOP,
            at,
            len: 4096,
            durable: false,
            buffer,
        }
    }

    /// Waits until so many operations have completed.
    fn finish(&mut self, count: usize) -> Result<Vec<StoreCompletion>, StoreError> {
        let mut done = Vec::new();
        while done.len() < count {
            self.store.enter(Wait::Forever)?;
            self.store.reap(&mut done);
        }
        Ok(done)
    }

    /// What is in the data file at `at`.
    fn byte(&mut self, at: u64) -> u8 {
        let buffer = self.buffer();
        let op = StoreOp::Read {
            file: StoreFile::TOP,
            at,
            len: 4096,
            buffer,
        };
        self.store.submit(Tag(99), op);
        let done = self.finish(1).unwrap().pop().unwrap();
        done.result.unwrap();
        let buffer = done.buffer.unwrap();
        let bytes = &buffer.as_slice()[..4096];
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        let byte = bytes[0];
        self.pool.put(buffer);
        byte
    }
}

#[test]
fn a_refused_submission_or_wait_is_tried_again() {
    for errno in [libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EINTR] {
        std::thread::spawn(move || {
            let mut fixture = Fixture::new();
            let calls = Arc::new(AtomicU32::new(0));
            let counted = calls.clone();
            let supervisor = seccomp::supervise_this_thread(libc::SYS_io_uring_enter, move |_| {
                (counted.fetch_add(1, Ordering::Relaxed) < 12).then_some(errno)
            });
            for i in 0..8 {
                let op = fixture.write(4096 * i, i as u8 + 1);
                fixture.store.submit(Tag(i as u32), op);
            }
            let done = fixture.finish(8).unwrap();
            assert!(done.iter().all(|done| done.result.is_ok()));
            done.into_iter()
                .for_each(|done| fixture.pool.put(done.buffer.unwrap()));
            assert!(calls.load(Ordering::Relaxed) > 12);
            assert!((0..8).all(|i| fixture.byte(4096 * i) == i as u8 + 1));
            supervisor
        })
        .join()
        .unwrap()
        .join();
    }
}

/// Waiting a little for what has been submitted, without submitting more, frees what the kernel lacks.
#[test]
fn completions_are_taken_while_submissions_are_refused() {
    std::thread::spawn(|| {
        let mut fixture = Fixture::new();
        let first = fixture.write(0, 1);
        fixture.store.submit(Tag(1), first);
        fixture.store.enter(Wait::No).unwrap();
        // The second argument is how many entries are to be submitted.
        let supervisor = seccomp::supervise_this_thread(libc::SYS_io_uring_enter, |arguments| {
            (arguments[1] > 0).then_some(libc::EAGAIN)
        });
        let second = fixture.write(4096, 2);
        fixture.store.submit(Tag(2), second);
        let done = fixture.finish(1).unwrap();
        assert_eq!(done[0].tag, Tag(1));
        // It can never be submitted, so nobody waits for it.
        fixture.store.in_flight.clear();
        supervisor
    })
    .join()
    .unwrap()
    .join();
}

#[test]
fn a_broken_ring_is_an_error() {
    for errno in [libc::EBADF, libc::ENXIO, libc::EFAULT] {
        std::thread::spawn(move || {
            let mut fixture = Fixture::new();
            let op = fixture.write(0, 1);
            fixture.store.submit(Tag(1), op);
            let calls = AtomicU32::new(0);
            let supervisor = seccomp::supervise_this_thread(libc::SYS_io_uring_enter, move |_| {
                (calls.fetch_add(1, Ordering::Relaxed) == 0).then_some(errno)
            });
            let result = fixture.store.enter(Wait::Forever);
            assert!(matches!(result, Err(StoreError::Uring(_))), "{errno}");
            fixture.finish(1).unwrap();
            supervisor
        })
        .join()
        .unwrap()
        .join();
    }
}

/// The kernel stops a submission at an entry that makes no sense, and has taken those before it.
#[test]
fn what_was_not_taken_of_several_entries_is_submitted_next() {
    let mut fixture = Fixture::new();
    let first = fixture.write(0, 1);
    fixture.store.submit(Tag(1), first);
    let unknown = opcode::Nop::new().build().personality(777);
    let unknown = unknown.flags(squeue::Flags::FIXED_FILE);
    fixture.store.events.push(unknown.user_data(IGNORED));
    for i in 1..4 {
        let op = fixture.write(4096 * i, 1);
        fixture.store.submit(Tag(1), op);
    }
    let done = fixture.finish(4).unwrap();
    assert!(done.iter().all(|done| done.result.is_ok()));
}

#[test]
fn an_idle_device_gets_an_operation_at_once_and_a_busy_one_gets_batches() {
    let grows: Vec<_> = (0..8)
        .map(|under_way| (1..9).find(|queued| is_batch(*queued, under_way)))
        .collect();
    let batches = [1, 1, 2, 3, 4, 4, 4, 4].map(Some);
    assert_eq!(grows, batches);

    let mut fixture = Fixture::new();
    let write = fixture.write(0, 7);
    fixture.store.submit(Tag(1), write);
    assert!(
        fixture.store.events.ring.submission().is_empty(),
        "it waits for nothing"
    );
    fixture.finish(1).unwrap();
}

#[test]
fn more_entries_than_the_ring_has_room_for_wait_for_their_turn() {
    let mut fixture = Fixture::new();
    let fds: Vec<_> = (0..400)
        .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
        .collect();
    for (n, fd) in (0..).zip(&fds) {
        let id = WatchId(n % MAX_WATCHES as u32);
        fixture.store.watch(id, fd.as_raw_fd()).unwrap();
    }
    let watched = &fds[fds.len() - MAX_WATCHES..];
    watched.iter().for_each(|fd| fd.write(1).unwrap());
    let mut fired = Vec::new();
    while fired.len() < watched.len() {
        fixture.store.enter(Wait::Forever).unwrap();
        fixture.store.take_events(&mut fired);
        fired.sort_by_key(|id| id.0);
        fired.dedup();
    }
}

#[test]
fn what_cannot_be_watched_is_an_error_and_takes_no_place() {
    let mut fixture = Fixture::new();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    for id in 0..2 * MAX_WATCHES as u32 {
        assert!(fixture.store.watch(WatchId(id), 9999).is_err());
    }
    for id in 0..MAX_WATCHES as u32 {
        fixture.store.watch(WatchId(id), fd.as_raw_fd()).unwrap();
    }
    assert!(fixture.store.watch(WatchId(77), fd.as_raw_fd()).is_err());
    fixture.store.unwatch(WatchId(0));
    fixture.store.watch(WatchId(77), fd.as_raw_fd()).unwrap();
}

/// What a ring may not do, the kernel refuses, whoever submits it; and what it may, on registered files alone.
#[test]
fn a_ring_does_nothing_but_what_a_store_asks_of_it() {
    let mut fixture = Fixture::new();
    let fd = types::Fd(fixture.store.files.data.file().as_raw_fd());
    let path = c"/".as_ptr();
    let mut byte = 0u8;
    let refused = [
        opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
        opcode::Connect::new(fd, std::ptr::null(), 0).build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path).build(),
        opcode::Fsync::new(fd).build(),
        opcode::Read::new(fd, &raw mut byte, 1).build(),
        opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
        opcode::Close::new(fd).build(),
        opcode::Nop::new().build(),
        // With other flags as well.
        opcode::Fsync::new(types::Fixed(0))
            .build()
            .flags(squeue::Flags::ASYNC | squeue::Flags::FIXED_FILE),
        opcode::UringCmd16::new(types::Fixed(0), 0).build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path)
            .build()
            .flags(squeue::Flags::FIXED_FILE),
    ];
    for entry in refused {
        // SAFETY: what it names lives until the completion, which is waited for.
        unsafe { fixture.store.events.ring.submission().push(&entry) }.unwrap();
        fixture.store.events.ring.submit_and_wait(1).unwrap();
        let done = fixture.store.events.ring.completion().next().unwrap();
        assert_eq!(done.result(), -libc::EACCES, "{entry:?}");
    }
    let submitter = fixture.store.events.ring.submitter();
    let refused = [
        submitter.register_personality().map(drop),
        submitter.register_eventfd(0),
        submitter.register_restrictions(&mut []),
        submitter.register_enable_rings(),
    ];
    for result in refused {
        let error = result.unwrap_err().raw_os_error();
        assert!(
            matches!(error, Some(libc::EACCES | libc::EBADFD)),
            "{error:?}"
        );
    }
    let op = fixture.write(0, 3);
    fixture.store.submit(Tag(1), op);
    assert!(fixture.finish(1).unwrap()[0].result.is_ok());
}

/// It is as good as new, whichever thread has it.
#[test]
fn a_ring_that_was_lent_comes_back() {
    let (home, rings) = std::sync::mpsc::channel();
    drop(BareRing::lent_by(home).unwrap());
    for round in 0..3 {
        let ring = rings.recv().unwrap();
        let use_it = move || {
            let mut fixture = Fixture::on(ring);
            let op = fixture.write(0, round + 1);
            fixture.store.submit(Tag(1), op);
            assert!(fixture.finish(1).unwrap()[0].result.is_ok());
            assert_eq!(fixture.byte(0), round + 1);
        };
        std::thread::spawn(use_it).join().unwrap();
    }
    drop(rings.recv().unwrap());
    drop(rings);
}

/// Has an operation that was not submitted complete with a result.
fn completed(fixture: &mut Fixture, op: StoreOp, result: i32) -> Option<StoreCompletion> {
    let tag = Tag(7);
    let slot = fixture
        .store
        .in_flight
        .insert(InFlight { tag, op, done: 0 });
    fixture.store.complete(slot, result);
    fixture.store.finished.pop_front()
}

#[test]
fn an_operation_that_the_kernel_has_no_memory_for_is_done_later() {
    for errno in [
        libc::EAGAIN,
        libc::ENOMEM,
        libc::EBUSY,
        libc::ECANCELED,
        libc::EINTR,
        512,
    ] {
        let mut fixture = Fixture::new();
        let op = fixture.write(8192, 5);
        assert!(completed(&mut fixture, op, -errno).is_none(), "{errno}");
        let punch = StoreOp::Punch {
            at: 65536,
            len: 65536,
        };
        assert!(completed(&mut fixture, punch, -errno).is_none());
        let done = fixture.finish(2).unwrap();
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!(fixture.byte(8192), 5, "{errno}");
    }
}

/// Linux tells of an error of writing back once: the next sync would succeed without what was lost.
#[test]
fn a_sync_that_failed_is_not_tried_again() {
    for errno in [libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EIO] {
        let mut fixture = Fixture::new();
        let file = StoreFile::TOP;
        let done = completed(&mut fixture, StoreOp::Sync { file }, -errno).unwrap();
        assert!(matches!(done.result, Err(StoreError::Io { .. })), "{errno}");
    }
}

/// Of these the kernel has begun nothing: no thread was to be had for it, or a signal came before.
#[test]
fn a_sync_that_was_not_begun_is_begun_again() {
    for errno in [libc::ECANCELED, libc::EINTR] {
        let mut fixture = Fixture::new();
        let file = StoreFile::TOP;
        assert!(completed(&mut fixture, StoreOp::Sync { file }, -errno).is_none());
        assert!(fixture.finish(1).unwrap()[0].result.is_ok());
        let mut write = fixture.write(4096, 6);
        if let StoreOp::Write { durable, .. } = &mut write {
            *durable = true;
        }
        assert!(completed(&mut fixture, write, -errno).is_none());
        let done = fixture.finish(1).unwrap().pop().unwrap();
        assert!(done.result.is_ok(), "{errno}");
        fixture.pool.put(done.buffer.unwrap());
        assert_eq!(fixture.byte(4096), 6, "{errno}");
    }
}

#[test]
fn a_short_write_goes_on_where_it_ended() {
    let mut fixture = Fixture::new();
    for at in [0, 512] {
        let op = fixture.write(at, 1);
        fixture.store.submit(Tag(1), op);
    }
    fixture.finish(2).unwrap();
    // 512 bytes of it are said to be done that are not.
    let op = fixture.write(0, 9);
    assert!(completed(&mut fixture, op, 512).is_none());
    assert!(fixture.finish(1).unwrap()[0].result.is_ok());
    let buffer = fixture.buffer();
    fixture.store.submit(
        Tag(2),
        StoreOp::Read {
            file: StoreFile::TOP,
            at: 0,
            len: 4096,
            buffer,
        },
    );
    let done = fixture.finish(1).unwrap().pop().unwrap();
    let buffer = done.buffer.unwrap();
    assert_eq!(buffer.as_slice()[..512], [1; 512]);
    assert_eq!(buffer.as_slice()[512..4096], [9; 3584]);
}

/// A kick that nobody watches for any more would hang a guest.
#[test]
fn a_watch_that_the_kernel_has_no_memory_for_is_armed_again() {
    let mut fixture = Fixture::new();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    let id = WatchId(3);
    let watch = fixture.store.events.watches.add(id).unwrap();
    fixture
        .store
        .register_watched(watch, fd.as_raw_fd())
        .unwrap();
    fixture.store.events.fired(id, -libc::ENOMEM, false);
    let mut events = Vec::new();
    fixture.store.take_events(&mut events);
    assert_eq!(events, [id], "what came meanwhile is looked for");
    fd.write(1).unwrap();
    events.clear();
    while events.is_empty() {
        fixture.store.enter(Wait::Forever).unwrap();
        fixture.store.take_events(&mut events);
    }
    assert_eq!(events, [id]);
}

/// Nor may the wait go on for one that is gone for good.
#[test]
fn a_watch_that_is_lost_is_an_error() {
    let mut fixture = Fixture::new();
    let fd = EventFd::new(EFD_NONBLOCK).unwrap();
    let id = WatchId(3);
    fixture.store.watch(id, fd.as_raw_fd()).unwrap();
    fixture.store.events.fired(id, -libc::EINVAL, false);
    let result = fixture.store.enter(Wait::Forever);
    assert!(matches!(result, Err(StoreError::Uring(_))), "{result:?}");

    // One that nobody wants any more may end as it likes.
    fixture.store.unwatch(id);
    fixture.store.events.fired(id, -libc::EINVAL, false);
    fixture.store.enter(Wait::No).unwrap();
}

/// Dropping a store waits for the kernel, and for nothing that the kernel does not have.
#[test]
fn a_store_with_operations_to_be_tried_again_can_be_dropped() {
    let mut fixture = Fixture::new();
    let op = fixture.write(0, 1);
    assert!(completed(&mut fixture, op, -libc::ENOMEM).is_none());
    let op = fixture.write(4096, 1);
    fixture.store.submit(Tag(1), op);
}

/// Who uses a disk holds a lock of its data file, which must not outlive the store.
#[test]
fn a_claim_ends_with_the_store() {
    use rustix::fs::{FlockOperation::NonBlockingLockExclusive, flock};
    for _ in 0..20 {
        let mut fixture = Fixture::new();
        flock(fixture.store.files.data.file(), NonBlockingLockExclusive).unwrap();
        let op = fixture.write(0, 1);
        fixture.store.submit(Tag(1), op);
        fixture.finish(1).unwrap();
        let Fixture {
            store, directory, ..
        } = fixture;
        drop(store);
        let another = File::open(directory.path().join("data")).unwrap();
        flock(another, NonBlockingLockExclusive).unwrap();
    }
}
