//! The files of layers, with a volatile cache.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use volume::store::{ReadAt, StoreFile};

use super::faults::{Asked, SharedDevice, Trouble, device};
use super::rng::Rng;
use super::store::Fault;

/// A sector of a file: what the disk writes wholly or not at all.
pub type Sector = [u8; 512];

/// A file: what is durable, and for each sector what was written since, in order.
#[derive(Default)]
pub struct SimFile {
    durable: BTreeMap<u64, Sector>,
    cached: BTreeMap<u64, Vec<Sector>>,
    /// What a sync that failed has dropped: it is read until it is evicted, and no sync writes it.
    dropped: BTreeMap<u64, Sector>,
    pub len: u64,
}

impl SimFile {
    pub fn read(&self, sector: u64) -> Sector {
        let newest = self.cached.get(&sector).and_then(|all| all.last());
        *newest
            .or_else(|| self.dropped.get(&sector))
            .or_else(|| self.durable.get(&sector))
            .unwrap_or(&[0; 512])
    }

    pub fn write(&mut self, sector: u64, content: Sector) {
        self.dropped.remove(&sector);
        self.cached.entry(sector).or_default().push(content);
    }

    /// Of this sector nothing that was written before can come back.
    pub fn write_durably(&mut self, sector: u64, content: Sector) {
        self.dropped.remove(&sector);
        self.cached.remove(&sector);
        self.durable.insert(sector, content);
    }

    /// How much of each sector a sync covers that is submitted now.
    pub fn covered(&self) -> Covered {
        let all = self.cached.iter();
        all.map(|(sector, all)| (*sector, all.len())).collect()
    }

    /// Exactly what had completed when the sync was submitted becomes durable; anything later may be
    /// lost still. With `fails` some of it does not, and is clean all the same.
    pub fn sync(&mut self, covers: Covered, mut fails: impl FnMut(u64) -> bool) {
        for (sector, count) in covers {
            let Some(all) = self.cached.get_mut(&sector) else {
                continue;
            };
            let newest = all.drain(..count.min(all.len())).next_back();
            let is_clean = all.is_empty();
            if is_clean {
                self.cached.remove(&sector);
            }
            match newest {
                Some(content) if !fails(sector) => {
                    self.durable.insert(sector, content);
                }
                Some(content) if is_clean => {
                    self.dropped.insert(sector, content);
                }
                _ => {}
            }
        }
    }

    /// Of each sector, the durable content or any of those written since, whatever became of the
    /// others: this loses, reorders and tears.
    fn lose_power(&mut self, rng: &mut Rng) {
        self.dropped.clear();
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
    pub fault: Fault,
    /// What was durable where a hole was made since the last look.
    punched: Vec<(u64, Sector)>,
    /// Sectors of the data file that are not as they were written last, since the last look.
    evicted: Vec<u64>,
    /// A sync, or a durable write, has failed since the last check.
    pub sync_fails: bool,
    /// As [`SimLayer::sync_fails`], and somebody was told of it.
    pub sync_failed: bool,
    /// Sectors of the data file from here on are not dropped: what a block has behind the end of the disk
    /// is not seen before the disk grows, so nobody could say what it was.
    pub spared: u64,
    pub device: SharedDevice,
}

/// How many of the writes to each sector were there when a sync was submitted.
pub type Covered = BTreeMap<u64, usize>;

impl SimLayer {
    pub fn new(
        data_len: u64,
        map_len: u64,
        map_start: &[u8],
        fault: Fault,
        device: SharedDevice,
    ) -> Self {
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
            evicted: Vec::new(),
            sync_fails: false,
            sync_failed: false,
            spared: data_len / 512 - 8,
            device,
        }
    }

    pub fn file(&mut self, file: StoreFile) -> &mut SimFile {
        match file {
            StoreFile::Data(_) => &mut self.data,
            StoreFile::Map => &mut self.map,
        }
    }

    /// Whether a sync has failed, as everybody knows from now on.
    pub fn set_failed(&mut self, failed: bool) {
        self.sync_fails = failed;
        self.sync_failed = failed;
    }

    /// Makes a hole.
    pub fn punch(&mut self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let old = self.data.durable.get(&sector).copied();
            self.punched.extend(old.map(|old| (sector, old)));
            match self.fault {
                Fault::PunchesAreDurable => self.data.write_durably(sector, [0; 512]),
                _ => self.data.write(sector, [0; 512]),
            }
        }
    }

    /// What was durable in each sector that became a hole since the last call.
    pub fn take_punched(&mut self) -> Vec<(u64, Sector)> {
        std::mem::take(&mut self.punched)
    }

    /// Forgets some of what no sync will write, or all of it.
    pub fn evict(&mut self, mut which: impl FnMut() -> bool) {
        let Self {
            data, map, evicted, ..
        } = self;
        map.dropped.retain(|_, _| !which());
        data.dropped.retain(|sector, _| {
            let goes = which();
            if goes {
                evicted.push(*sector);
            }
            !goes
        });
    }

    /// The sectors of the data file that were evicted since the last call.
    pub fn take_evicted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.evicted)
    }

    /// Makes all durable, as a sync of both files does that nothing fails.
    pub fn sync_all(&mut self) {
        for file in [&mut self.data, &mut self.map] {
            let covers = file.covered();
            file.sync(covers, |_| false);
        }
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
            file.dropped.clear();
        }
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        self.set_failed(false);
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
        if let Trouble::Fails(errno) = device(&disk.device).draw(Asked::Read) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        for (i, sector) in buffer.as_chunks_mut::<512>().0.iter_mut().enumerate() {
            *sector = disk.map.read(offset / 512 + i as u64);
        }
        Ok(())
    }
}
