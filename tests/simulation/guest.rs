//! A random guest on two queues, and the crashes that happen to it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use sealdisk::cipher::{Cipher, CipherStack, Cursor, DataUnit, SharedSlice};
use sealdisk::keys::Dek;
use sealdisk::pipeline::{Finished, GuestBuffer, Op, OpKind, Pipeline, Token};
use sealdisk::store::StoreFile;
use sealdisk::units::ByteOffset;
use sealdisk::volume::{Geometry, LayerMap, RuntimeMap, Volume, format};
use uuid::Uuid;

use super::model::{FlushPoint, Model, Stamp};
use super::rng::Rng;
use super::store::{Fault, MapReader, Shared, SimDisk, SimStore, lock};

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub fault: Fault,
    pub alignment: u64,
    pub large_units: bool,
    /// Only a few blocks, mostly used as wholes: the same ones are written, discarded, flushed and
    /// given back again and again.
    pub crowded: bool,
    /// Ciphertext is overwritten before its space is given back.
    pub overwrite: bool,
}

/// Sectors of the disk at first: more than two map sectors' worth, and the last block is not whole.
const SECTORS: u64 = (2 * format::BLOCKS_PER_SECTOR + 40) * 8 + 3;
/// Where the guest works: the start, both borders between map sectors, and the end.
const WINDOWS: [(u64, u64); 4] = [
    (0, 320),
    (format::BLOCKS_PER_SECTOR * 8 - 96, 192),
    (format::BLOCKS_PER_SECTOR * 16 - 40, 80),
    (SECTORS - 67, 67 + MOST_GROWTH),
];
/// Sectors by which the disk grows at most in a run: what of the last window is not there yet is
/// not used.
const MOST_GROWTH: u64 = 90;
/// Blocks that a crowded guest uses.
const CROWD: u64 = 7;
const CRASHES: u64 = 12;

/// A request of the guest that is under way.
struct Request {
    kind: OpKind,
    sectors: std::ops::Range<u64>,
    /// The guest's memory.
    memory: Vec<u8>,
    /// What a flush, or a write that is durable by itself, covers.
    point: FlushPoint,
}

type Queue = Pipeline<SimStore>;

pub struct Simulation {
    rng: Rng,
    options: Options,
    disk: Shared,
    geometry: Geometry,
    dek: Dek,
    runtime: PathBuf,
    /// The runtime map of the opened disk.
    opened: Option<RuntimeMap>,
    volume: Option<Arc<Volume>>,
    attach: Uuid,
    model: Model,
    queues: Vec<Queue>,
    requests: BTreeMap<u64, Request>,
    next: u64,
    /// The queue that alone is served for a while; more than 1 for both.
    awake: usize,
}

impl Simulation {
    pub fn new(seed: u64, options: Options) -> Self {
        let data_unit = if options.large_units {
            DataUnit::B4096
        } else {
            DataUnit::B512
        };
        let geometry = Geometry {
            disk: Uuid::new_v4(),
            layer: Uuid::new_v4(),
            size: SECTORS * 512,
            data_unit,
        };
        let map_len = format::file_len(geometry.blocks());
        let header = format::encode_header(&geometry);
        let disk = SimDisk::new(geometry.data_len(), map_len, &header, options.fault);
        let runtime = PathBuf::from(format!("/dev/shm/sealdisk-sim-{}.map", geometry.disk));
        let mut this = Self {
            rng: Rng::new(seed),
            options,
            disk: Arc::new(Mutex::new(disk)),
            geometry,
            dek: Dek::generate().unwrap(),
            runtime,
            opened: None,
            volume: None,
            attach: Uuid::new_v4(),
            model: Model::default(),
            queues: Vec::new(),
            requests: BTreeMap::new(),
            next: 1,
            awake: 2,
        };
        this.open();
        this
    }

    /// Runs until enough crashes; how many there were.
    pub fn run(&mut self) -> Result<u64, String> {
        for _ in 0..CRASHES {
            let more = if self.options.crowded { 600 } else { 160 };
            for _ in 0..self.rng.below(more) + 20 {
                self.step()?;
            }
            if self.rng.one_in(3) {
                self.grow()?;
            }
            if self.rng.one_in(2) {
                self.kill()?
            } else {
                self.lose_power()?
            }
        }
        Ok(CRASHES)
    }

    fn open(&mut self) {
        let next = Uuid::new_v4();
        let (runtime, _) =
            RuntimeMap::open(&self.runtime, &self.geometry, self.attach, next).unwrap();
        self.attach = next;
        let reader = MapReader(self.disk.clone());
        let top = LayerMap::new(self.geometry.clone(), reader);
        let volume = Volume::open_runtime(top, Vec::new(), &runtime).unwrap();
        let volume = Arc::new(volume);
        let queue = |_| {
            let store = SimStore::new(self.disk.clone(), self.options.alignment);
            let cipher = Cipher::new(&self.dek, self.geometry.data_unit).unwrap();
            let ciphers = CipherStack::with_ciphers(vec![cipher]).unwrap();
            let mut queue = Pipeline::new(volume.clone(), store, ciphers).unwrap();
            queue.set_overwrite(self.options.overwrite);
            queue
        };
        self.queues = (0..2).map(queue).collect();
        self.opened = Some(runtime);
        self.volume = Some(volume);
    }

    /// Grows the disk by the steps of a resize, of which a crash may let only some happen; those
    /// that were synced stay. Then the guest goes on for a while.
    fn grow(&mut self) -> Result<(), String> {
        let room = SECTORS + MOST_GROWTH - self.geometry.size / 512;
        let unit = if self.options.large_units { 8 } else { 1 };
        let more = (1 + self.rng.below(20)).next_multiple_of(unit).min(room);
        let grown = self
            .geometry
            .grown(self.geometry.size + more * 512)
            .unwrap();
        let last = self.rng.below(8);
        lock(&self.disk).lengthen(StoreFile::TOP, grown.data_len());
        if last == 0 {
            return Ok(());
        }
        let map_len = format::file_len(grown.blocks());
        lock(&self.disk).lengthen(StoreFile::Map, map_len);
        if last == 1 {
            return Ok(());
        }
        // What the header says counts from now on, whatever is served still.
        self.geometry = grown;
        if last == 2 {
            return Ok(());
        }
        self.opened.as_ref().unwrap().grow(&self.geometry).unwrap();
        if last == 3 {
            return Ok(());
        }
        self.queues.iter_mut().for_each(Pipeline::forget_punches);
        while !self.queues.iter().all(Pipeline::is_idle) {
            for queue in 0..2 {
                self.queues[queue].store_mut().step(&mut self.rng);
                self.poll(queue)?;
            }
        }
        let (runtime, volume) = (self.opened.as_ref(), self.volume.as_ref().unwrap());
        let volume = volume.grown(self.geometry.size, runtime.unwrap()).unwrap();
        let volume = Arc::new(volume);
        for queue in &mut self.queues {
            queue.set_volume(volume.clone());
        }
        self.volume = Some(volume);
        for _ in 0..self.rng.below(160) {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        // Now and then one queue sleeps for long, with whatever it has half done.
        if self.rng.one_in(if self.options.crowded { 100 } else { 24 }) {
            self.awake = self.rng.below(4) as usize;
        }
        let queue = match self.awake {
            0 | 1 => self.awake,
            _ => self.rng.below(2) as usize,
        };
        match self.rng.below(5) {
            0 | 1 if self.requests.len() < 24 => self.submit(queue),
            2 => {}
            _ => {
                let store = self.queues[queue].store_mut();
                store.step(&mut self.rng);
            }
        }
        self.poll(queue)
    }

    fn poll(&mut self, queue: usize) -> Result<(), String> {
        let mut finished = Vec::new();
        self.queues[queue].poll();
        self.queues[queue].take_finished(&mut finished);
        finished.into_iter().try_for_each(|done| self.finish(done))
    }

    /// A random request whose sectors no other one has: what overlapping requests of a guest give
    /// is not defined.
    fn submit(&mut self, queue: usize) {
        let kind = self.kind();
        let sectors = if kind == OpKind::Flush {
            0..0
        } else {
            self.range()
        };
        let taken = |r: &Request| r.sectors.start < sectors.end && sectors.start < r.sectors.end;
        if self.requests.values().any(taken) {
            return;
        }
        let number = self.next;
        let stamp: Stamp = number;
        self.next += 1;
        let mut memory = Vec::new();
        if matches!(kind, OpKind::Write { .. } | OpKind::Read) {
            memory = vec![0xee; ((sectors.end - sectors.start) * 512) as usize];
        }
        match kind {
            OpKind::Write { .. } => {
                for (sector, bytes) in sectors.clone().zip(memory.chunks_mut(512)) {
                    fill(bytes, sector, stamp);
                    self.model.begin(sector, stamp);
                }
            }
            OpKind::Zero { .. } => sectors
                .clone()
                .for_each(|sector| self.model.begin(sector, 0)),
            OpKind::Read | OpKind::Raise { .. } | OpKind::Flush => {}
        }
        let slices = self.cut(&mut memory);
        let point = self.model.flush_point();
        let (at, len) = (sectors.start * 512, (sectors.end - sectors.start) * 512);
        self.requests.insert(
            number,
            Request {
                kind,
                sectors,
                memory,
                point,
            },
        );
        let memory = GuestBuffer {
            slices,
            owner: None,
        };
        self.queues[queue].submit(Op {
            kind,
            at: ByteOffset(at),
            len,
            memory,
            token: Token(number),
        });
    }

    fn kind(&mut self) -> OpKind {
        if self.options.crowded {
            return match self.rng.below(8) {
                0..3 => OpKind::Write { durable: false },
                3..6 => OpKind::Zero {
                    release: true,
                    durable: false,
                },
                _ => OpKind::Flush,
            };
        }
        let durable = self.rng.one_in(8);
        match self.rng.below(16) {
            0..7 => OpKind::Write { durable },
            7..10 => OpKind::Read,
            10..13 => OpKind::Zero {
                release: self.rng.one_in(2),
                durable,
            },
            _ => OpKind::Flush,
        }
    }

    fn range(&mut self) -> std::ops::Range<u64> {
        if self.options.crowded {
            let first = self.rng.below(CROWD) * 16;
            return first..first + if self.rng.one_in(16) { 3 } else { 8 };
        }
        let window = WINDOWS[self.rng.below(WINDOWS.len() as u64) as usize];
        let (start, len) = self.present(window);
        let most = [1, 8, 8, 24, 160][self.rng.below(5) as usize];
        let mut first = start + self.rng.below(len);
        if self.rng.one_in(2) {
            first = (first / 8 * 8).max(start);
        }
        let last = (first + 1 + self.rng.below(most)).min(start + len);
        first..last
    }

    /// The part of a window that the disk has.
    fn present(&self, (start, len): (u64, u64)) -> (u64, u64) {
        (start, len.min(self.geometry.size / 512 - start))
    }

    /// The guest's memory in pieces, cut anywhere.
    fn cut(&mut self, memory: &mut [u8]) -> Vec<SharedSlice> {
        let mut slices = Vec::new();
        let (mut at, len) = (0, memory.len());
        while at < len {
            let most = (len - at) as u64;
            let piece = if self.rng.one_in(2) {
                most
            } else {
                1 + self.rng.below(most)
            } as usize;
            let ptr = NonNull::from(&mut memory[at]);
            // SAFETY: the vector that this is of stays in `requests`, unmoved on the heap and
            // untouched, until the request has finished or its pipeline is gone.
            slices.push(unsafe { SharedSlice::new(ptr, piece) });
            at += piece;
        }
        slices
    }

    fn finish(&mut self, done: Finished) -> Result<(), String> {
        let request = self.requests.remove(&done.token.0).unwrap();
        done.result.map_err(|e| format!("a request failed: {e}"))?;
        let Request {
            kind,
            sectors,
            memory,
            point,
        } = request;
        match kind {
            OpKind::Read => {
                for (sector, bytes) in sectors.zip(memory.chunks(512)) {
                    let (found, expected) = (stamp_of(bytes, sector), self.model.current(sector));
                    if found != expected {
                        return Err(format!("sector {sector} reads {found:x}, not {expected:x}"));
                    }
                }
            }
            OpKind::Raise { .. } => {}
            OpKind::Flush => self.model.flushed(&point),
            OpKind::Write { durable } | OpKind::Zero { durable, .. } => {
                sectors
                    .clone()
                    .for_each(|sector| self.model.complete(sector));
                if durable {
                    let own = self.model.flush_point();
                    let own = own
                        .into_iter()
                        .filter(|(sector, _)| sectors.contains(sector));
                    self.model.flushed(&own.collect());
                }
            }
        }
        Ok(())
    }

    /// Where a hole was made, nothing that the guest wrote may have been durable any more.
    fn check_holes(&mut self) -> Result<(), String> {
        let punched = lock(&self.disk).take_punched();
        if !self.options.overwrite {
            return Ok(());
        }
        let mut cipher = Cipher::new(&self.dek, self.geometry.data_unit).unwrap();
        for (sector, old) in punched {
            let mut plaintext = [0; 512];
            // SAFETY: the array outlives the call, and nobody else has it.
            let slice = unsafe { SharedSlice::new(NonNull::from(&mut plaintext[0]), 512) };
            cipher.decrypt(ByteOffset(sector * 512), &old, &[slice], Cursor::default());
            if stamp_of(&plaintext, sector) != u64::MAX {
                return Err(format!("sector {sector} became a hole with its ciphertext"));
            }
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<(), String> {
        self.check_holes()?;
        for queue in &mut self.queues {
            queue.store_mut().kill(&mut self.rng);
        }
        self.queues.clear();
        self.requests.clear();
        self.open();
        let found = self.read_all()?;
        self.model.after_kill(|sector| found[&sector])
    }

    fn lose_power(&mut self) -> Result<(), String> {
        self.check_holes()?;
        for queue in &mut self.queues {
            queue.store_mut().kill(&mut self.rng);
        }
        self.queues.clear();
        self.requests.clear();
        lock(&self.disk).lose_power(&mut self.rng);
        std::fs::remove_file(&self.runtime).unwrap();
        self.open();
        let found = self.read_all()?;
        self.model.after_power_loss(|sector| found[&sector])
    }

    /// Reads everything the guest may ever have written, through the pipeline.
    fn read_all(&mut self) -> Result<BTreeMap<u64, Stamp>, String> {
        let mut found = BTreeMap::new();
        for window in WINDOWS {
            let (start, len) = self.present(window);
            let mut memory = vec![0xee; (len * 512) as usize];
            let slices = self.cut(&mut memory);
            let op = Op {
                kind: OpKind::Read,
                at: ByteOffset(start * 512),
                len: len * 512,
                memory: GuestBuffer {
                    slices,
                    owner: None,
                },
                token: Token(0),
            };
            let queue = &mut self.queues[0];
            queue.submit(op);
            let mut finished = Vec::new();
            while finished.is_empty() {
                queue.store_mut().step(&mut self.rng);
                queue.poll();
                queue.take_finished(&mut finished);
            }
            for (sector, bytes) in (start..start + len).zip(memory.chunks(512)) {
                found.insert(sector, stamp_of(bytes, sector));
            }
        }
        Ok(found)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.queues.clear();
        let _ = std::fs::remove_file(&self.runtime);
    }
}

/// A sector's content for a stamp: zeros for 0, else the stamp and the sector's number, so that
/// content in the wrong place is seen as well.
fn fill(bytes: &mut [u8], sector: u64, stamp: Stamp) {
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        let value = if stamp == 0 {
            0
        } else {
            stamp ^ (sector << 32) ^ ((i as u64) << 56)
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The stamp of a sector's content; garbage is given as a number that is no stamp.
fn stamp_of(bytes: &[u8], sector: u64) -> Stamp {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap()) ^ (sector << 32);
    let mut expected = vec![0; 512];
    fill(&mut expected, sector, stamp);
    if bytes == expected { stamp } else { u64::MAX }
}
