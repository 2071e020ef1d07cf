//! Layers in memory with a volatile cache, and the store that a pipeline uses it by.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sealdisk::store::{IoBuffer, ReadAt, Store, StoreCompletion, StoreFile, StoreOp, Tag};

use super::rng::Rng;

/// A sector of a file: what the disk writes wholly or not at all.
pub type Sector = [u8; 512];

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
    /// The header names layers no more whose content was raised and not flushed yet.
    DropBeforeFlush,
    /// As [`Fault::DropBeforeFlush`], for a layer that was merged into a frozen one.
    MergeBeforeFlush,
    /// Layers are dropped while the last of their content is being raised.
    DropBeforeRaised,
    /// What raises content has its own marks of blocks, and does not see those of the guest.
    RaisesUnmarked,
    /// A layer goes that was merged into the one above, whose old map is read on.
    OldMapsAfterMerge,
}

/// A file: what is durable, and for each sector what was written since, in order.
#[derive(Default)]
struct SimFile {
    durable: BTreeMap<u64, Sector>,
    cached: BTreeMap<u64, Vec<Sector>>,
    len: u64,
}

impl SimFile {
    fn read(&self, sector: u64) -> Sector {
        let newest = self.cached.get(&sector).and_then(|all| all.last());
        *newest
            .or_else(|| self.durable.get(&sector))
            .unwrap_or(&[0; 512])
    }

    fn write(&mut self, sector: u64, content: Sector) {
        self.cached.entry(sector).or_default().push(content);
    }

    /// Of each sector, the durable content or any of those written since, whatever became of the
    /// others: this loses, reorders and tears.
    fn lose_power(&mut self, rng: &mut Rng) {
        for (sector, all) in std::mem::take(&mut self.cached) {
            let pick = rng.below(all.len() as u64 + 1) as usize;
            if let Some(content) = all.get(pick) {
                self.durable.insert(sector, *content);
            }
        }
    }
}

/// The two files of a layer.
pub struct SimLayer {
    data: SimFile,
    map: SimFile,
    fault: Fault,
    /// What was durable where a hole was made since the last look.
    punched: Vec<(u64, Sector)>,
}

impl SimLayer {
    pub fn new(data_len: u64, map_len: u64, map_start: &[u8], fault: Fault) -> Self {
        let mut map = SimFile {
            len: map_len,
            ..SimFile::default()
        };
        for (sector, bytes) in map_start.as_chunks::<512>().0.iter().enumerate() {
            map.durable.insert(sector as u64, *bytes);
        }
        Self {
            data: SimFile {
                len: data_len,
                ..SimFile::default()
            },
            map,
            fault,
            punched: Vec::new(),
        }
    }

    fn file(&mut self, file: StoreFile) -> &mut SimFile {
        match file {
            StoreFile::Data(_) => &mut self.data,
            StoreFile::Map => &mut self.map,
        }
    }

    /// What was durable in each sector that became a hole since the last call.
    pub fn take_punched(&mut self) -> Vec<(u64, Sector)> {
        std::mem::take(&mut self.punched)
    }

    /// Makes the data file longer, or the map file.
    pub fn lengthen(&mut self, file: StoreFile, len: u64) {
        let file = self.file(file);
        file.len = file.len.max(len);
    }

    /// All that is stored of the ciphertext, durable or not, by sectors.
    pub fn ciphertext(&self) -> impl Iterator<Item = (u64, &Sector)> {
        let cached = self.data.cached.iter();
        let cached = cached.flat_map(|(at, all)| all.iter().map(|sector| (*at, sector)));
        let durable = self.data.durable.iter().map(|(at, sector)| (*at, sector));
        durable.chain(cached)
    }

    /// The files were removed and their space is somebody else's.
    pub fn wipe(&mut self) {
        for file in [&mut self.data, &mut self.map] {
            file.durable.clear();
            file.cached.clear();
        }
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        self.data.lose_power(rng);
        self.map.lose_power(rng);
    }
}

/// A layer as the stores of all queues and the volume's map have it.
pub type Shared = Arc<Mutex<SimLayer>>;

pub fn lock(disk: &Shared) -> MutexGuard<'_, SimLayer> {
    disk.lock().unwrap()
}

/// A layer's map file, for opening a volume.
pub struct MapReader(pub Shared);

impl ReadAt for MapReader {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.0).map.len)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = lock(&self.0);
        for (i, sector) in buffer.as_chunks_mut::<512>().0.iter_mut().enumerate() {
            *sector = disk.map.read(offset / 512 + i as u64);
        }
        Ok(())
    }
}

enum Effect {
    Read {
        file: StoreFile,
        at: u64,
        len: usize,
        buffer: IoBuffer,
    },
    Write {
        file: StoreFile,
        at: u64,
        len: usize,
        durable: bool,
        buffer: IoBuffer,
    },
    /// With what was cached when the sync was submitted.
    Sync {
        file: StoreFile,
        covers: BTreeMap<u64, usize>,
    },
    Punch {
        at: u64,
        len: u64,
    },
}

/// One thread's store on a stack of [`SimLayer`]s, the top one first. Operations complete in any order, when [`SimStore::step`]
/// picks them.
pub struct SimStore {
    layers: Vec<Shared>,
    under_way: Vec<(Tag, Effect)>,
    done: Vec<StoreCompletion>,
    alignment: u64,
    start: Instant,
    /// Steps so far: a microsecond each.
    steps: u64,
}

impl SimStore {
    pub fn new(layers: Vec<Shared>, alignment: u64) -> Self {
        Self {
            layers,
            under_way: Vec::new(),
            done: Vec::new(),
            alignment,
            start: Instant::now(),
            steps: 0,
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

    /// Completes one of the operations under way.
    pub fn step(&mut self, rng: &mut Rng) {
        self.steps += 1;
        if self.under_way.is_empty() {
            return;
        }
        let index = rng.below(self.under_way.len() as u64) as usize;
        let (tag, effect) = self.under_way.swap_remove(index);
        let buffer = self.apply(effect);
        self.done.push(StoreCompletion {
            tag,
            result: Ok(()),
            buffer,
        });
    }

    /// What the kernel does with operations of a process that was killed: some sectors of each
    /// write still get there.
    pub fn kill(&mut self, rng: &mut Rng) {
        for (_, effect) in std::mem::take(&mut self.under_way) {
            if let Effect::Write {
                file,
                at,
                len,
                buffer,
                ..
            } = effect
            {
                let mut disk = self.layer(file);
                for (i, content) in buffer.as_slice()[..len].as_chunks().0.iter().enumerate() {
                    if rng.one_in(2) {
                        disk.file(file).write(at / 512 + i as u64, *content);
                    }
                }
            }
        }
    }

    fn apply(&mut self, effect: Effect) -> Option<IoBuffer> {
        match effect {
            Effect::Read {
                file,
                at,
                len,
                mut buffer,
            } => {
                let mut disk = self.layer(file);
                let into = &mut buffer.as_mut_slice()[..len];
                for (i, sector) in into.as_chunks_mut::<512>().0.iter_mut().enumerate() {
                    *sector = disk.file(file).read(at / 512 + i as u64);
                }
                Some(buffer)
            }
            Effect::Write {
                file,
                at,
                len,
                durable,
                buffer,
            } => {
                let mut disk = self.layer(file);
                let lies = matches!(disk.fault, Fault::DurableWriteLies | Fault::DataSyncLies);
                for (i, content) in buffer.as_slice()[..len].as_chunks().0.iter().enumerate() {
                    let (sector, file) = (at / 512 + i as u64, disk.file(file));
                    if durable && !lies {
                        // Of this sector nothing that was written before can come back.
                        file.cached.remove(&sector);
                        file.durable.insert(sector, *content);
                    } else {
                        file.write(sector, *content);
                    }
                }
                Some(buffer)
            }
            Effect::Sync { file, covers } => {
                let mut disk = self.layer(file);
                let lies = matches!(
                    (disk.fault, file),
                    (Fault::DataSyncLies, StoreFile::Data(_))
                        | (Fault::MapSyncLies, StoreFile::Map)
                );
                if !lies {
                    make_durable(disk.file(file), covers);
                }
                None
            }
            Effect::Punch { at, len } => {
                let mut disk = self.layer(StoreFile::TOP);
                for sector in at / 512..(at + len) / 512 {
                    let old = disk.data.durable.get(&sector).copied();
                    disk.punched.extend(old.map(|old| (sector, old)));
                    disk.data.write(sector, [0; 512]);
                    if disk.fault == Fault::PunchesAreDurable {
                        disk.data.durable.insert(sector, [0; 512]);
                        disk.data.cached.remove(&sector);
                    }
                }
                None
            }
        }
    }
}

/// Exactly what had completed when the sync was submitted becomes durable; anything later may be
/// lost still.
fn make_durable(file: &mut SimFile, covers: BTreeMap<u64, usize>) {
    for (sector, count) in covers {
        let Some(all) = file.cached.get_mut(&sector) else {
            continue;
        };
        let count = count.min(all.len());
        if count > 0 {
            let content = all.drain(..count).next_back().unwrap();
            file.durable.insert(sector, content);
        }
        if all.is_empty() {
            file.cached.remove(&sector);
        }
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
        self.start + Duration::from_micros(self.steps)
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
        let effect = match op {
            StoreOp::Read {
                file,
                at,
                len,
                buffer,
            } => {
                check(file, at, len as u64);
                Effect::Read {
                    file,
                    at,
                    len,
                    buffer,
                }
            }
            StoreOp::Write {
                file,
                at,
                len,
                durable,
                buffer,
            } => {
                check(file, at, len as u64);
                assert!(!durable || file == StoreFile::TOP);
                assert!(matches!(file, StoreFile::TOP | StoreFile::Map), "frozen");
                Effect::Write {
                    file,
                    at,
                    len,
                    durable,
                    buffer,
                }
            }
            StoreOp::Sync { file } => {
                let mut disk = self.layer(file);
                let cached = &disk.file(file).cached;
                let covers = cached
                    .iter()
                    .map(|(sector, all)| (*sector, all.len()))
                    .collect();
                Effect::Sync { file, covers }
            }
            StoreOp::Punch { at, len } => {
                check(StoreFile::TOP, at, len);
                Effect::Punch { at, len }
            }
        };
        self.under_way.push((tag, effect));
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        into.append(&mut self.done);
    }
}
