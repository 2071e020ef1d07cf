//! The way of a request through the daemon without the I/O: from the avail ring through the chain,
//! its meaning, the pipeline and the cipher to the used ring. The store completes everything at once
//! and moves no data, so what is left is what our own code costs.
//!
//! Used by the test that counts allocations and by the benchmark of the same path.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dataplane::counters::{Asked, Counters, Outcome, QueueCounters, now};
use dataplane::request::{
    Action, ChainLimits, Disk, Memory, Scratch, Status, interpret, read_chain,
};
use keys::Dek;
use keys::units::{LayerIndex, Sector};
use slab::Slab;
use uuid::Uuid;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use volume::pipeline::{Finished, GuestBuffer, Pipeline, Submission, Token};
use volume::store::{ReadAt, Store, StoreCompletion, StoreOp, Tag};
use volume::{Geometry, LayerMap, RuntimeMap, Volume, format};
use xts::{CipherStack, DataUnit, SharedSlice};

/// Bytes of the disk.
pub const DISK: u64 = 64 << 20;
/// Entries of the ring, and of each table of descriptors.
const ENTRIES: u16 = 1024;
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// What each request has: its table, its header and its status, and far from them its data.
const REQUESTS: u64 = 0x1_0000;
const REQUEST_LEN: u64 = 0x2000;
const DATA: u64 = 0x100_0000;
const DATA_LEN: u64 = 1 << 20;
const MAX_IN_FLIGHT: u64 = ENTRIES as u64;
/// How long each request takes by the counters, in ticks: some 60 µs. Without any latency it is counted by a shorter way.
const LATENCY: u64 = 1 << 16;

/// A store without a medium.
pub struct InstantStore {
    done: Vec<StoreCompletion>,
    /// What a data file on tmpfs is mapped as.
    mapping: Option<Memory>,
}

impl Store for InstantStore {
    fn alignment(&self) -> u64 {
        512
    }

    fn mapped(&self, _: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        let mut slices =
            GuestMemoryBackend::get_slices(self.mapping.as_ref()?, GuestAddress(at), len);
        NonNull::new(slices.next()?.ok()?.ptr_guard_mut().as_ptr())
    }

    fn mapped_to_write(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        self.mapped(LayerIndex::TOP, at, len)
    }

    fn has_room(&self) -> bool {
        true
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        let buffer = match op {
            StoreOp::Read { buffer, .. } | StoreOp::Write { buffer, .. } => Some(buffer),
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        };
        let result = Ok(());
        self.done.push(StoreCompletion {
            tag,
            result,
            buffer,
        });
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.append(&mut self.done);
    }
}

/// The map of a disk that was never written to.
struct FreshMap(Geometry);

impl ReadAt for FreshMap {
    fn size(&self) -> io::Result<u64> {
        Ok(format::file_len(self.0.blocks()))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        let header = format::encode_header(&self.0);
        if let Some(rest) = header.get(offset as usize..) {
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
        }
        Ok(())
    }
}

/// A runtime map without a name.
fn runtime_map(geometry: &Geometry) -> RuntimeMap {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("map");
    RuntimeMap::open(&path, geometry, Uuid::nil(), Uuid::nil())
        .unwrap()
        .0
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The guest writes.
    pub write: bool,
    /// Bytes of each request.
    pub bytes: u32,
    /// Buffers that they lie in.
    pub segments: u32,
    /// Requests that are made available together.
    pub depth: u64,
    /// Sectors by which requests miss the borders of blocks.
    pub shift: u64,
}

struct Pending {
    head: u16,
    status: GuestAddress,
    writable: u32,
    asked: Asked,
}

/// A disk with one queue and a guest that uses it.
pub struct RequestPath {
    memory: Arc<Memory>,
    queue: Queue,
    pipeline: Pipeline<InstantStore>,
    disk: Disk,
    pending: Slab<Pending>,
    scratch: Scratch,
    lists: Vec<Vec<SharedSlice>>,
    finished: Vec<Finished>,
    counters: QueueCounters,
    /// When the queue's thread was woken last.
    woken: u64,
    /// The guest's next entry of the avail ring.
    avail: u16,
    next_sector: u64,
}

impl RequestPath {
    /// `mapped`: the data file is memory, as on tmpfs.
    pub fn new(data_unit: DataUnit, mapped: bool) -> Self {
        let (disk, layer) = (Uuid::new_v4(), Uuid::new_v4());
        let geometry = Geometry {
            disk,
            layer,
            size: DISK,
            data_unit,
        };
        let runtime = runtime_map(&geometry);
        let map = LayerMap::new(geometry.clone(), FreshMap(geometry));
        let volume = Volume::open_runtime(map, vec![], &runtime).unwrap();
        let deks = Dek::generate().unwrap().into();
        let ciphers = CipherStack::new(&deks, &[data_unit]).unwrap();
        let memory = |len| Memory::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let store = InstantStore {
            done: Vec::with_capacity(256),
            mapping: mapped.then(|| memory(DISK as usize)),
        };
        let pipeline = Pipeline::new(Arc::new(volume), store, ciphers).unwrap();
        let memory = memory((DATA + MAX_IN_FLIGHT * DATA_LEN) as usize);
        let mut queue = Queue::new(ENTRIES).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(DESCRIPTORS))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(AVAIL))
            .unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let capacity = Sector(DISK / 512);
        let mut path = Self {
            memory: Arc::new(memory),
            queue,
            pipeline,
            disk: Disk {
                capacity,
                block_sectors: 1,
                read_only: false,
                serial: [0; 20],
                discard: true,
                most_zero_sectors: 1,
            },
            pending: Slab::with_capacity(256),
            scratch: Scratch::default(),
            lists: Vec::with_capacity(256),
            finished: Vec::with_capacity(256),
            counters: Counters::unseen(1).unwrap().queue(0),
            woken: now(),
            avail: 0,
            next_sector: 0,
        };
        // A block that was never written is read without the cipher.
        let fill = Load {
            write: true,
            bytes: 1 << 20,
            segments: 1,
            depth: 8,
            shift: 0,
        };
        path.prepare(&fill);
        // Every other request first, then those between.
        for start in [0, u64::from(fill.bytes) / 512] {
            path.next_sector = start;
            (0..DISK / (8 << 20)).for_each(|_| path.round(&fill));
        }
        path.next_sector = 0;
        path
    }

    /// The guest writes the chains of a load: one indirect table for each request.
    pub fn prepare(&mut self, load: &Load) {
        assert!(load.depth <= MAX_IN_FLIGHT && u64::from(load.bytes) <= DATA_LEN);
        for i in 0..load.depth {
            let base = REQUESTS + i * REQUEST_LEN;
            let each = load.bytes / load.segments;
            let direction = if load.write { 0 } else { WRITE };
            let mut table = vec![(header(i), 16, NEXT)];
            for segment in 0..load.segments {
                let at = DATA + i * DATA_LEN + u64::from(segment * each);
                table.push((at, each, NEXT | direction));
            }
            table.push((status(i), 1, WRITE));
            for (n, (addr, len, flags)) in (0u16..).zip(&table) {
                self.put_descriptor(base + 16 * u64::from(n), *addr, *len, *flags, n + 1);
            }
            let len = 16 * table.len() as u32;
            self.put_descriptor(DESCRIPTORS + 16 * i, base, len, INDIRECT, 0);
        }
    }

    fn put_descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let words = [len.to_le(), u32::from(flags) | u32::from(next) << 16];
        self.memory
            .write_obj(addr.to_le(), GuestAddress(at))
            .unwrap();
        self.memory
            .write_obj(words[0], GuestAddress(at + 8))
            .unwrap();
        self.memory
            .write_obj(words[1].to_le(), GuestAddress(at + 12))
            .unwrap();
    }

    /// One batch of requests, from being made available to being used.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn round(&mut self, load: &Load) {
        self.make_available(load);
        let mut left = load.depth;
        self.take();
        while left > 0 {
            self.pipeline.poll();
            left -= self.complete();
        }
        for i in 0..load.depth {
            let status: u8 = self.memory.read_obj(GuestAddress(status(i))).unwrap();
            assert_eq!(status, Status::Ok.byte(), "a request failed");
        }
    }

    fn make_available(&mut self, load: &Load) {
        let sectors = u64::from(load.bytes) / 512;
        for i in 0..load.depth {
            let kind = u32::from(load.write).to_le();
            self.memory
                .write_obj(kind, GuestAddress(header(i)))
                .unwrap();
            let sector = (self.next_sector + load.shift).to_le();
            self.memory
                .write_obj(sector, GuestAddress(header(i) + 8))
                .unwrap();
            self.memory
                .write_obj(0xeeu8, GuestAddress(status(i)))
                .unwrap();
            // Not one behind the other, which a guest would merge.
            self.next_sector = (self.next_sector + 2 * sectors.max(8)) % (DISK / 512 - 4096);
            let entry = AVAIL + 4 + 2 * u64::from(self.avail % ENTRIES);
            self.memory
                .write_obj((i as u16).to_le(), GuestAddress(entry))
                .unwrap();
            self.avail = self.avail.wrapping_add(1);
        }
        let index = GuestAddress(AVAIL + 2);
        self.memory
            .store(self.avail.to_le(), index, Ordering::Release)
            .unwrap();
    }

    /// As the thread of a queue does.
    fn take(&mut self) {
        let memory = self.memory.clone();
        // It is known from the wait, which measures how long it has slept.
        self.counters.at(self.woken);
        while let Some(chain) = self.queue.iter(&*memory).unwrap().next() {
            let head = chain.head_index();
            let list = self.lists.pop().unwrap_or_default();
            let limits = ChainLimits {
                segments: 254,
                bytes: 4 << 20,
            };
            let chain = read_chain(&memory, chain, limits, &mut self.scratch, list).unwrap();
            let Action::Submit(request) = interpret(&chain, &self.disk, false) else {
                panic!("a read or write is for the pipeline");
            };
            let writable = chain.writable as u32;
            let asked = self.counters.taken(chain.header.kind);
            let pending = Pending {
                head,
                status: chain.status,
                writable,
                asked,
            };
            let token = Token(self.pending.insert(pending) as u64);
            let owner: Arc<dyn std::any::Any + Send + Sync> = memory.clone();
            let memory = GuestBuffer {
                slices: chain.data,
                owner: Some(owner),
            };
            self.pipeline
                .submit(Submission::new(token, request, memory));
        }
    }

    fn complete(&mut self) -> u64 {
        self.pipeline.take_finished(&mut self.finished);
        let count = self.finished.len() as u64;
        if count > 0 {
            // As after a look at the clock, which is left out: who steps through its loop, an instruction at a time, is
            // caught up by the next tick, and begins it again.
            self.counters.at(self.woken + LATENCY);
        }
        for done in self.finished.drain(..) {
            let bytes = done.request().len;
            let (token, result, memory) = done.take();
            let pending = self.pending.remove(token.place());
            result.unwrap();
            self.counters.answered(pending.asked, Outcome::Done(bytes));
            let mut list = memory.slices;
            list.clear();
            self.lists.push(list);
            self.memory
                .write_obj(Status::Ok.byte(), pending.status)
                .unwrap();
            self.queue
                .add_used(&*self.memory, pending.head, pending.writable + 1)
                .unwrap();
        }
        self.counters.in_flight(self.pending.len(), 0);
        count
    }
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn header(request: u64) -> u64 {
    REQUESTS + request * REQUEST_LEN + 0x1000
}

fn status(request: u64) -> u64 {
    header(request) + 16
}
