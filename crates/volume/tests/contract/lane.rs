//! A lane whose other side is a thread with a disk in memory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};

use store_ring::{
    CHUNK_LEN, ClientLane, Data, LaneBells, LaneMemory, Layout, Operation, ServerLane, Taken,
    Target,
};
use test_support::rng::Rng;
use volume::store::{
    BareRing, BufferBudget, BufferPool, DiskLane, DiskStorage, DiskStore, LaneFiles, LaneStore,
    Store, StoreFile, StoreOp, Tag, Wait, WaitingStore,
};

use super::suite::{LEN, Subject, keeps_to_the_contract};

const LAYOUT: Layout = Layout {
    lanes: 1,
    small: 2,
    chunks: 3,
};

const FILES: LaneFiles = LaneFiles {
    layers: 1,
    alignment: 512,
    writes_durably: true,
};

/// The other side, until nobody has the memory any more.
struct Server {
    lane: ServerLane,
    client: Weak<LaneMemory>,
    /// The disk is another from now on.
    swapped: Arc<AtomicBool>,
    data: Vec<u8>,
    map: Vec<u8>,
    rng: Rng,
}

impl Server {
    fn run(mut self) {
        let mut waiting = Vec::new();
        while self.client.strong_count() > 0 {
            self.lane.awake();
            while let Some(taken) = self.lane.take().unwrap() {
                waiting.push(taken);
            }
            if self.swapped.swap(false, Ordering::SeqCst) {
                self.data.fill(0);
            }
            // In any order, and some of them later.
            for _ in 0..self.rng.within(0..waiting.len() as u64 + 1) {
                let index = self.rng.within(0..waiting.len() as u64) as usize;
                let Taken { slot, operation } = waiting.swap_remove(index);
                self.apply(operation);
                assert!(self.lane.complete(slot, Ok(())));
            }
            self.lane.publish().unwrap();
            if waiting.is_empty() && self.lane.may_sleep() {
                self.sleep();
            }
        }
    }

    fn apply(&mut self, operation: Operation) {
        let bytes = |data: Data| {
            let start = self.lane.memory().address_of(data);
            // SAFETY: the client is not at the bytes of an operation before it has ended.
            unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), data.len) }
        };
        match operation {
            Operation::Read { target, at, data } => {
                let file = match target {
                    Target::Data(_) => &self.data,
                    Target::Map => &self.map,
                };
                bytes(data).copy_from_slice(&file[at as usize..][..data.len]);
            }
            Operation::Write {
                target, at, data, ..
            } => {
                let from = bytes(data);
                let file = match target {
                    Target::Data(_) => &mut self.data,
                    Target::Map => &mut self.map,
                };
                file[at as usize..][..data.len].copy_from_slice(from);
            }
            Operation::Punch { at, len } => self.data[at as usize..][..len as usize].fill(0),
            Operation::Sync { .. } => {}
        }
    }

    /// Waits for the eventfd, and looks now and then whether anybody is left.
    fn sleep(&self) {
        let fd = self.lane.woken_by();
        let mut watched = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the only element lives through the call.
        let ready = unsafe { libc::poll(&mut watched, 1, 50) };
        if ready == 1 {
            let mut count = 0u64;
            // SAFETY: reads 8 bytes at most, into as many.
            unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        }
    }
}

/// A lane, its memory, and what has the other side begin an empty disk.
fn lane(seed: u64) -> (ClientLane, Arc<LaneMemory>, Box<dyn FnOnce()>) {
    let (client, server, _) = ends();
    let memory = client.memory().clone();
    let swapped = Arc::new(AtomicBool::new(false));
    let server = Server {
        lane: server,
        client: Arc::downgrade(&memory),
        swapped: swapped.clone(),
        data: vec![0; LEN as usize],
        map: vec![0; LEN as usize],
        rng: Rng::new(seed),
    };
    std::thread::spawn(move || server.run());
    let swap = Box::new(move || swapped.store(true, Ordering::SeqCst));
    (client, memory, swap)
}

/// Both ends of a lane, each with a mapping of its own, and the memory as a file.
fn ends() -> (ClientLane, ServerLane, File) {
    let file = LaneMemory::make(LAYOUT).unwrap();
    let bells = LaneBells::make().unwrap();
    let [ours, theirs] = [0, 1].map(|_| LaneMemory::map(&file, LAYOUT).unwrap());
    let server = ServerLane::new(theirs, 0, bells.try_clone().unwrap()).unwrap();
    (ClientLane::new(ours, 0, bells).unwrap(), server, file)
}

fn store_on(lane: DiskLane) -> LaneStore {
    let ring = BareRing::for_one_thread().unwrap();
    LaneStore::on(ring, lane, FILES).unwrap()
}

fn on_a_lane() -> Subject<DiskStore> {
    let (client, memory, swapping) = lane(7);
    let budget = BufferBudget::new(3 * CHUNK_LEN, memory);
    Subject {
        store: store_on(DiskLane::new(client)).into(),
        pool: BufferPool::new(4, &budget).unwrap(),
        others: DiskStorage::Lanes(FILES),
        swapping,
    }
}

#[test]
fn lanes_keep_to_the_contract() {
    keeps_to_the_contract(on_a_lane);
}

fn sync(store: &mut LaneStore, tag: u32) {
    let file = StoreFile::TOP;
    store.submit(Tag(tag), StoreOp::Sync { file });
}

#[test]
fn a_lane_that_was_lent_goes_from_one_to_another() {
    let (client, _memory, _) = lane(8);
    let (home, lent) = channel();
    let mut lane = DiskLane::lent_by(client, home);
    for round in 0..3 {
        let mut store = store_on(lane);
        sync(&mut store, round);
        if round == 1 {
            let mut done = Vec::new();
            while done.is_empty() {
                store.enter(Wait::Forever).unwrap();
                store.reap(&mut done);
            }
        }
        // Else it waits for what is under way.
        drop(store);
        lane = lent.try_recv().expect("it was given back");
    }
}

#[test]
fn an_error_of_the_other_side_is_as_one_of_the_kernel() {
    let (client, mut server, _file) = ends();
    let mut store = store_on(DiskLane::new(client));
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        sync(&mut store, 3);
        let Taken { slot, .. } = server.take().unwrap().unwrap();
        assert!(server.complete(slot, Err(errno)));
        server.publish().unwrap();
        store.enter(Wait::Forever).unwrap();
        let mut done = Vec::new();
        store.reap(&mut done);
        assert_eq!((done.len(), done[0].tag), (1, Tag(3)));
        let error = done.remove(0).result.unwrap_err();
        assert_eq!(error.is_no_space(), errno != libc::EIO, "{error}");
        assert!(error.to_string().starts_with("cannot sync the data file: "));
    }
}

#[test]
fn who_completes_something_twice_is_not_believed() {
    let (client, mut server, file) = ends();
    let mut store = store_on(DiskLane::new(client));
    sync(&mut store, 0);
    sync(&mut store, 1);
    store.enter(Wait::No).unwrap();
    let Taken { slot, .. } = server.take().unwrap().unwrap();
    assert!(server.complete(slot, Ok(())));
    server.publish().unwrap();
    // The second completion is that of the first operation, and there are two.
    for (at, word) in [(8704 + 8, u64::from(slot)), (256, 2)] {
        file.write_all_at(&word.to_ne_bytes(), at).unwrap();
    }
    let broken = store.enter(Wait::Forever).unwrap_err();
    let said = broken.to_string();
    assert!(
        said.contains("store process does not keep to the rules"),
        "{said}"
    );
    assert!(store.enter(Wait::No).is_err(), "it stays so");
    // What is under way is not waited for.
    drop(store);
}
