//! Deaths at the very store with which a chain is taken or returned: the page that is stored to is taken away, and
//! the data plane dies of SIGBUS there. A kill from outside hits these moments once in many thousand times.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::fs::ftruncate;
use rustix::process::Signal;
use test_support::frontend::client::{NO_STATUS, Pending, Status, kind};
use test_support::frontend::device::{Frontend, Setup, feature};
use test_support::frontend::inflight::InflightRegion;
use test_support::frontend::queue::{Queue, Seg};
use test_support::frontend::vmm::Vmm;
use test_support::rng::Rng;
use test_support::{AttachOptions, Backend, Daemon, Disk, PATIENCE, await_end, stop};

use crate::MIB;

const PAGE: u64 = 4096;

/// Requests at once, each of a MiB, so that they are under way for a while.
const REQUESTS: u64 = 20;

/// Entries of the queue: a page of the used ring, and more than a page of the in-flight region.
const ENTRIES: u16 = 512;

/// Its entry of the in-flight region, and those after it, are not on the first page.
const ON_SECOND_PAGE: u16 = 256;

/// A store on the way of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    /// Into its entry of the in-flight region, when it is taken.
    Mark,
    /// The same, when it is returned.
    Next,
    /// Its entry of the used ring.
    UsedEntry,
    /// The used ring's index.
    UsedIndex,
}

impl Store {
    fn is_in_the_region(self) -> bool {
        matches!(self, Self::Mark | Self::Next)
    }
}

/// A frontend with one queue, of which what is stored to lies at the end of a file. With EVENT_IDX nothing else is
/// stored to these pages.
fn connect(daemon: &Daemon, store: Store) -> (Frontend, Setup) {
    let setup = Setup {
        queue_size: ENTRIES,
        queues: 1,
        ..Setup::default().with(feature::EVENT_IDX)
    };
    let setup = setup.with_inflight();
    let mut frontend = daemon.connect_with(&setup);
    frontend.stop_queue(0).unwrap();
    let [first, second, ..] = frontend.mem.regions() else {
        panic!("two regions")
    };
    assert_eq!(first.end(), second.gpa, "they touch");
    let queue = &mut frontend.queues[0];
    match store {
        // The entries are the last page of a region; flags and index are before it.
        Store::UsedEntry => queue.used = first.end() - PAGE - 4,
        // Flags and index are the last bytes of a region, and the entries are in the next.
        Store::UsedIndex => queue.used = first.end() - 4,
        Store::Mark | Store::Next => {}
    }
    // One that the frontend has made can be made shorter.
    let region = InflightRegion::new(1, ENTRIES);
    frontend.set_inflight(&region).unwrap();
    frontend.inflight = Some(region);
    frontend.start_queue(0).unwrap();
    frontend.barrier().unwrap();
    (frontend, setup)
}

/// The end of a file, which is taken away for a while.
struct Tail<'a> {
    file: BorrowedFd<'a>,
    from: u64,
    content: Vec<u8>,
}

impl<'a> Tail<'a> {
    /// What is stored to.
    fn of(frontend: &'a Frontend, store: Store) -> Self {
        let region = frontend.inflight.as_ref().unwrap();
        let memory = &frontend.mem.regions()[0];
        let (file, from, len) = match store.is_in_the_region() {
            true => (region.fd(), PAGE, region.size),
            false => (memory.fd(), memory.size - PAGE, memory.size),
        };
        let mut content = vec![0; (len - from) as usize];
        let read = rustix::io::pread(file, &mut content[..], from).unwrap();
        assert_eq!(read, content.len());
        Self {
            file,
            from,
            content,
        }
    }

    fn take_away(&self) {
        ftruncate(self.file, self.from).unwrap();
    }

    fn put_back(&self) {
        ftruncate(self.file, self.from + self.content.len() as u64).unwrap();
        let written = rustix::io::pwrite(self.file, &self.content, self.from).unwrap();
        assert_eq!(written, self.content.len());
    }
}

type Write = (Pending, Vec<u8>);

/// Begins writes, each of a content of its own, all at once.
fn begin(frontend: &mut Frontend, store: Store, seed: u64) -> Vec<Write> {
    let queue = &mut frontend.queues[0];
    queue.arena.reset();
    if store.is_in_the_region() {
        queue.use_last(ENTRIES - ON_SECOND_PAGE);
    }
    let write = |n: u64| {
        let data = Rng::new(seed + n).bytes(MIB as usize);
        let at = queue.arena.alloc(MIB, PAGE);
        queue.mem.write(at, &data);
        let segs = [Seg::out(at, MIB as u32)];
        (queue.prepare(kind::OUT, n * MIB / 512, &segs), data)
    };
    let writes: Vec<Write> = (0..REQUESTS).map(write).collect();
    for (pending, _) in &writes {
        queue.push(pending.head);
    }
    queue.kick_if_wanted(REQUESTS as u16);
    writes
}

/// Stops the data plane while requests are in flight, and gives these.
fn stop_midway(daemon: &Daemon, frontend: &mut Frontend, store: Store, seed: u64) -> Vec<Write> {
    let data_plane = daemon.data_plane();
    if store == Store::Mark {
        stop(data_plane);
        return begin(frontend, store, seed);
    }
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let writes = begin(frontend, store, seed);
        let last = writes.last().unwrap().0.head;
        let region = frontend.inflight.as_ref().unwrap();
        let queue = &mut frontend.queues[0];
        let out = |queue: &Queue| queue.avail_idx.wrapping_sub(queue.used_idx());
        while !region.is_marked(0, last) && out(queue) > 0 {}
        stop(data_plane);
        // Of the last one alone it would not show that another was lost.
        if out(queue) > 3 {
            return writes;
        }
        // It was faster: once more.
        daemon.signal_all(&[data_plane], Signal::CONT);
        for (pending, _) in writes {
            queue.complete(pending);
        }
    }
    panic!("no request stays in flight for long enough");
}

fn survives(store: Store) {
    if Backend::chosen() != Backend::Sealdisk {
        return;
    }
    let disk = Disk::new(64 * MIB);
    let mut daemon = disk.attach(&AttachOptions::default());
    for seed in [100, 200, 300] {
        let (mut frontend, setup) = connect(&daemon, store);
        let writes = stop_midway(&daemon, &mut frontend, store, seed);
        let data_plane = daemon.data_plane();
        let tail = Tail::of(&frontend, store);
        tail.take_away();
        daemon.signal_all(&[data_plane], Signal::CONT);
        await_end(data_plane);
        tail.put_back();
        daemon.kill();

        let marked = frontend.inflight.as_ref().unwrap().marked(0).len();
        eprintln!("a death at {store:?}: {marked} marked");
        let (mut vmm, mut queues) = Vmm::of(frontend, &setup);
        daemon = disk.attach(&AttachOptions::default());
        vmm.reconnect(daemon.socket()).unwrap();
        let queue = &mut queues[0];
        for (pending, _) in &writes {
            assert_eq!(queue.complete(*pending).status, Status::Ok, "{pending:?}");
            queue.mem.write(pending.status, &[NO_STATUS]);
        }
        // None comes once more, nor is done once more.
        assert_eq!(queue.next_within(Duration::from_millis(50)), None);
        for (pending, _) in &writes {
            assert_eq!(queue.mem.read(pending.status, 1), [NO_STATUS]);
        }
        for ((_, data), n) in writes.iter().zip(0..) {
            let written = queue.read(n * MIB / 512, data.len());
            assert!(written.as_ref() == Ok(data), "write {n}");
        }
    }
}

#[test]
fn a_death_before_a_chain_is_marked_loses_nothing_and_does_nothing_twice() {
    survives(Store::Mark);
}

#[test]
fn a_death_before_a_chain_is_the_last_one_returned_loses_nothing_and_does_nothing_twice() {
    survives(Store::Next);
}

#[test]
fn a_death_at_the_used_entry_loses_nothing_and_does_nothing_twice() {
    survives(Store::UsedEntry);
}

#[test]
fn a_death_at_the_used_index_loses_nothing_and_does_nothing_twice() {
    survives(Store::UsedIndex);
}
