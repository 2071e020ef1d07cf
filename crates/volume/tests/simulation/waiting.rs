//! The store of the simulation as one that its thread waits on, so that it keeps to what the others keep to.

use std::os::fd::{FromRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use volume::store::{
    BufferPool, Store, StoreCompletion, StoreError, StoreOp, Tag, Wait, WaitingStore, WatchId,
};

use super::faults::Device;
use super::rng::Rng;
use super::store::{Fault, Shared, SimLayer, SimStore};
use super::suite::{LEN, Subject, keeps_to_the_contract};

struct WaitingSim {
    store: SimStore,
    rng: Rng,
    watched: Vec<(WatchId, EventFd)>,
    events: Vec<WatchId>,
    under_way: usize,
    done: Vec<StoreCompletion>,
}

impl WaitingSim {
    fn new(layers: Vec<Shared>, seed: u64) -> Self {
        Self {
            store: SimStore::new(layers, 512),
            rng: Rng::new(seed),
            watched: Vec::new(),
            events: Vec::new(),
            under_way: 0,
            done: Vec::new(),
        }
    }

    fn look(&mut self) {
        self.store.step(&mut self.rng);
        self.store.reap(&mut self.done);
        for (id, fd) in &self.watched {
            if fd.read().is_ok() && !self.events.contains(id) {
                self.events.push(*id);
            }
        }
    }
}

impl Store for WaitingSim {
    fn alignment(&self) -> u64 {
        self.store.alignment()
    }

    fn writes_durably(&self) -> bool {
        self.store.writes_durably()
    }

    fn has_room(&self) -> bool {
        self.store.has_room()
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.under_way += 1;
        self.store.submit(tag, op);
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        self.under_way -= self.done.len();
        into.append(&mut self.done);
    }
}

impl WaitingStore for WaitingSim {
    type Files = Vec<Shared>;

    fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        self.unwatch(id);
        // SAFETY: duplicates a descriptor that the caller has open.
        let own = unsafe { libc::dup(fd) };
        assert!(own >= 0);
        // SAFETY: it was just made, and nobody else has its number.
        self.watched
            .push((id, unsafe { EventFd::from_raw_fd(own) }));
        Ok(())
    }

    fn unwatch(&mut self, id: WatchId) {
        self.watched.retain(|(watched, _)| *watched != id);
    }

    fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        let begun = Instant::now();
        loop {
            self.look();
            let is_over = match wait {
                Wait::No => true,
                Wait::AtMost(time) => begun.elapsed() >= time,
                Wait::Forever => false,
            };
            if is_over || self.has_news() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn is_busy(&self) -> bool {
        self.under_way > 0
    }

    fn has_news(&self) -> bool {
        !self.done.is_empty() || !self.events.is_empty()
    }

    fn take_events(&mut self, into: &mut Vec<WatchId>) {
        into.append(&mut self.events);
    }

    fn swap_files(&mut self, files: Vec<Shared>) -> Result<(), StoreError> {
        self.store = self.store.exchanged(files);
        Ok(())
    }
}

fn layers(seed: u64) -> Vec<Shared> {
    let device = Device::new(seed, false);
    let layer = SimLayer::new(LEN, LEN, &[], Fault::None, device);
    vec![std::sync::Arc::new(std::sync::Mutex::new(layer))]
}

#[test]
fn the_simulated_store_keeps_to_the_contract() {
    keeps_to_the_contract(|| Subject {
        store: WaitingSim::new(layers(1), 1),
        pool: BufferPool::fixed(32, 64 << 10).unwrap(),
        others: layers(2),
        swapping: Box::new(|| {}),
    });
}
