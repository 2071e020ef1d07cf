//! The store that a pipeline uses layers in memory by.

use std::ops::Range;
use std::sync::{MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use volume::store::{IoBuffer, Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag};

use super::faults::{Asked, Trouble, device, error};
pub use super::medium::{Covered, MapReader, Sector, Shared, SimLayer, lock};
use super::rng::Rng;

/// What is done wrong, by the store or by the world around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Syncing the data file makes nothing durable.
    DataSyncLies,
    /// Syncing the map file makes nothing durable.
    MapSyncLies,
    /// A write that is to be durable by itself is not.
    DurableWriteLies,
    /// Now and then a flush is said to be done that has done nothing.
    FlushLies,
    /// Allowed, but unkind: a hole is durable as soon as it is made.
    PunchesAreDurable,
    /// The header names a new top layer before the old one was flushed.
    PushBeforeFlush,
    /// The header names layers no more whose content was copied up and not flushed yet.
    DropBeforeFlush,
    /// As [`Fault::DropBeforeFlush`], for a layer that was merged into a frozen one.
    MergeBeforeFlush,
    /// Layers are dropped while the last of their content is being copied up.
    DropBeforeCopiedUp,
    /// What copies content up has its own marks of blocks, and does not see those of the guest.
    CopiesUpUnmarked,
    /// A layer goes that was merged into the one above, whose old map is read on.
    OldMapsAfterMerge,
    /// That a sync has failed is forgotten: the next one "succeeds".
    ForgetsFailedSync,
    /// A guest is told that a write is done that the process before this one had not done.
    TellsWithoutDoing,
    /// A process that takes a disk over has an empty runtime map.
    UpgradesWithoutMap,
    /// A disk goes to another host before it was flushed.
    MigratesUnflushed,
}

/// An operation that has not completed yet.
struct UnderWay {
    tag: Tag,
    op: StoreOp,
    /// Bytes that are done of a read or write.
    done: usize,
    /// What was cached when a sync was submitted.
    covers: Covered,
}

/// One thread's store on a stack of [`SimLayer`]s, the top one first. Operations complete in any order,
/// when [`SimStore::step`] picks them.
pub struct SimStore {
    layers: Vec<Shared>,
    under_way: Vec<UnderWay>,
    done: Vec<StoreCompletion>,
    /// One of `done` says that a sync has failed.
    sync_failed: bool,
    alignment: u64,
    /// Microseconds since the first store was made, as this thread sees it: a step each, mostly.
    clock: u64,
}

/// When the first store was made.
static START: OnceLock<Instant> = OnceLock::new();

impl SimStore {
    pub fn new(layers: Vec<Shared>, alignment: u64) -> Self {
        Self {
            layers,
            under_way: Vec::new(),
            done: Vec::new(),
            sync_failed: false,
            alignment,
            clock: 0,
        }
    }

    /// The store of the same thread on other layers.
    pub fn exchanged(&self, layers: Vec<Shared>) -> Self {
        Self {
            clock: self.clock,
            ..Self::new(layers, self.alignment)
        }
    }

    /// The layer that a file is of.
    fn layer(&self, file: StoreFile) -> MutexGuard<'_, SimLayer> {
        let index = match file {
            StoreFile::Data(layer) => layer.get(),
            StoreFile::Map => 0,
        };
        lock(&self.layers[index])
    }

    /// Completes one of the operations under way, if the device lets it.
    pub fn step(&mut self, rng: &mut Rng) {
        let hangs = {
            let top = self.layers[0].clone();
            let mut top = lock(&top);
            let shared = top.device.clone();
            let mut device = device(&shared);
            self.clock += if device.may(60) { 2_000_000 } else { 1 };
            if device.may(40) {
                top.evict(|| rng.one_in(2));
            }
            device.hangs()
        };
        if hangs || self.under_way.is_empty() {
            return;
        }
        let index = rng.below(self.under_way.len() as u64) as usize;
        let operation = self.under_way.swap_remove(index);
        let (asked, _) = asked(&operation.op);
        let shared = self.layer(StoreFile::TOP).device.clone();
        let trouble = device(&shared).draw(asked);
        match trouble {
            Trouble::Again => self.under_way.push(operation),
            Trouble::Short => self.go_on(operation, rng),
            Trouble::None => {
                let buffer = self.apply(operation);
                self.complete(buffer, Ok(()));
            }
            Trouble::Nothing | Trouble::Fails(_) => self.fail(operation, trouble, rng),
        }
    }

    fn complete(&mut self, (tag, buffer): (Tag, Option<IoBuffer>), result: Result<(), StoreError>) {
        self.done.push(StoreCompletion {
            tag,
            result,
            buffer,
        });
    }

    /// Does a part of a read or write.
    fn go_on(&mut self, mut operation: UnderWay, rng: &mut Rng) {
        let left = operation.len() - operation.done;
        let unit = match left.is_multiple_of(self.alignment as usize) {
            true => self.alignment as usize,
            false => 512,
        };
        let more = rng.below((left / unit) as u64) as usize * unit;
        let part = operation.done..operation.done + more;
        self.transfer(&mut operation.op, part.clone(), |_| true);
        operation.done = part.end;
        self.under_way.push(operation);
    }

    /// Fails an operation: of what was to be written any part is, but for want of space a write that is
    /// to be durable changes nothing; a read leaves anything in its buffer.
    fn fail(&mut self, mut operation: UnderWay, trouble: Trouble, rng: &mut Rng) {
        let (asked, what) = asked(&operation.op);
        let part = operation.done..operation.len();
        let error = match (trouble, asked) {
            (Trouble::Fails(errno), _) => error(what, errno),
            (_, Asked::Read) => StoreError::Truncated {
                at: operation.done as u64,
            },
            _ => StoreError::Io {
                what,
                source: std::io::ErrorKind::WriteZero.into(),
            },
        };
        match &mut operation.op {
            StoreOp::Write { durable, .. } => {
                let nothing = trouble == Trouble::Nothing || *durable && error.is_no_space();
                let sync_failed = *durable && !error.is_no_space();
                // It was not durable, so what is written of it may be lost.
                *durable = false;
                self.transfer(&mut operation.op, part, |_| !nothing && rng.one_in(2));
                if sync_failed {
                    let covers = self.layer(StoreFile::TOP).file(StoreFile::TOP).covered();
                    self.fail_sync(StoreFile::TOP, covers, rng);
                }
            }
            StoreOp::Read { buffer, .. } => buffer.as_mut_slice()[part].fill(0xa5),
            StoreOp::Sync { file } => {
                let covers = std::mem::take(&mut operation.covers);
                self.fail_sync(*file, covers, rng);
            }
            StoreOp::Punch { at, len } => {
                let (first, count) = (*at / 512, *len / 512);
                let end = first + rng.below(count + 1);
                self.layer(StoreFile::TOP).punch(first..end);
            }
        }
        let done = operation.into_buffer();
        self.complete(done, Err(error));
    }

    /// Some of what a sync covers does not become durable, and no later one makes it so.
    fn fail_sync(&mut self, file: StoreFile, covers: Covered, rng: &mut Rng) {
        self.sync_failed = true;
        let mut layer = self.layer(file);
        layer.sync_fails = true;
        let end = match file {
            StoreFile::Data(_) => layer.spared,
            StoreFile::Map => u64::MAX,
        };
        let fails = |sector| sector < end && rng.one_in(2);
        layer.file(file).sync(covers, fails);
    }

    /// Whether a sync has failed, which nobody was told yet.
    pub fn has_failed_sync(&self) -> bool {
        self.sync_failed
    }

    /// What the kernel does with operations of a process that was killed: some sectors of each
    /// write still get there.
    pub fn kill(&mut self, rng: &mut Rng) {
        for mut operation in std::mem::take(&mut self.under_way) {
            if let StoreOp::Write { durable, .. } = &mut operation.op {
                *durable = false;
                let part = operation.done..operation.len();
                self.transfer(&mut operation.op, part, |_| rng.one_in(2));
            }
        }
    }

    /// Does what is left of an operation.
    fn apply(&mut self, mut operation: UnderWay) -> (Tag, Option<IoBuffer>) {
        let part = operation.done..operation.len();
        self.transfer(&mut operation.op, part, |_| true);
        match &operation.op {
            StoreOp::Read { .. } | StoreOp::Write { .. } => {}
            StoreOp::Sync { file } => {
                let mut disk = self.layer(*file);
                let lies = matches!(
                    (disk.fault, file),
                    (Fault::DataSyncLies, StoreFile::Data(_))
                        | (Fault::MapSyncLies, StoreFile::Map)
                );
                if !lies {
                    let covers = std::mem::take(&mut operation.covers);
                    disk.file(*file).sync(covers, |_| false);
                }
            }
            StoreOp::Punch { at, len } => {
                self.layer(StoreFile::TOP).punch(at / 512..(at + len) / 512);
            }
        }
        operation.into_buffer()
    }

    /// Reads or writes a part of an operation, which begins and ends with sectors; of those that are
    /// written, the ones of which `which` says so.
    fn transfer(&self, op: &mut StoreOp, part: Range<usize>, mut which: impl FnMut(u64) -> bool) {
        match op {
            StoreOp::Read {
                file, at, buffer, ..
            } => {
                let mut disk = self.layer(*file);
                let sectors = (*at + part.start as u64) / 512..;
                let into = buffer.as_mut_slice()[part].as_chunks_mut::<512>().0;
                for (sector, into) in sectors.zip(into) {
                    *into = disk.file(*file).read(sector);
                }
            }
            StoreOp::Write {
                file,
                at,
                durable,
                buffer,
                ..
            } => {
                let mut disk = self.layer(*file);
                let lies = matches!(disk.fault, Fault::DurableWriteLies | Fault::DataSyncLies);
                let sectors = (*at + part.start as u64) / 512..;
                let from = buffer.as_slice()[part].as_chunks::<512>().0;
                for (sector, content) in sectors.zip(from) {
                    if !which(sector) {
                        continue;
                    }
                    match *durable && !lies {
                        true => disk.file(*file).write_durably(sector, *content),
                        false => disk.file(*file).write(sector, *content),
                    }
                }
            }
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => {}
        }
    }
}

impl UnderWay {
    /// Bytes of a read or write.
    fn len(&self) -> usize {
        match &self.op {
            StoreOp::Read { len, .. } | StoreOp::Write { len, .. } => *len,
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => 0,
        }
    }

    fn into_buffer(self) -> (Tag, Option<IoBuffer>) {
        let buffer = match self.op {
            StoreOp::Read { buffer, .. } | StoreOp::Write { buffer, .. } => Some(buffer),
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        };
        (self.tag, buffer)
    }
}

/// What an operation is, and its verb.
fn asked(op: &StoreOp) -> (Asked, &'static str) {
    match op {
        StoreOp::Read { .. } => (Asked::Read, "read"),
        StoreOp::Write { .. } => (Asked::Write, "write"),
        StoreOp::Sync { .. } => (Asked::Sync, "sync"),
        StoreOp::Punch { .. } => (Asked::Punch, "punch a hole"),
    }
}

impl Store for SimStore {
    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn writes_durably(&self) -> bool {
        true
    }

    fn now(&self) -> Instant {
        *START.get_or_init(Instant::now) + Duration::from_micros(self.clock)
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < 24
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        let check = |file: StoreFile, at: u64, len: u64| {
            let alignment = match file {
                StoreFile::Data(_) => self.alignment,
                StoreFile::Map => 512,
            };
            assert!(at.is_multiple_of(alignment) && len.is_multiple_of(alignment));
            assert!(
                at + len <= self.layer(file).file(file).len,
                "behind the end"
            );
        };
        let mut covers = Covered::new();
        match &op {
            StoreOp::Read { file, at, len, .. } => check(*file, *at, *len as u64),
            StoreOp::Write {
                file,
                at,
                len,
                durable,
                ..
            } => {
                check(*file, *at, *len as u64);
                assert!(!durable || *file == StoreFile::TOP);
                assert!(matches!(*file, StoreFile::TOP | StoreFile::Map), "frozen");
            }
            StoreOp::Sync { file } => covers = self.layer(*file).file(*file).covered(),
            StoreOp::Punch { at, len } => check(StoreFile::TOP, *at, *len),
        }
        let done = 0;
        self.under_way.push(UnderWay {
            tag,
            op,
            done,
            covers,
        });
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        if std::mem::take(&mut self.sync_failed) {
            self.layer(StoreFile::TOP).sync_failed = true;
        }
        into.append(&mut self.done);
    }
}
