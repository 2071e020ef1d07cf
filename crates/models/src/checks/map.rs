//! The current map, what is noted of it, and the flush that writes it; also by a process that dies.

use std::io;
use std::sync::{Arc, Mutex};

use loom::thread;

use super::check;
use crate::flushes::Flushes;
use crate::format::{BLOCKS_PER_SECTOR, SECTOR_LEN, sectors};
use crate::map::BlockMap;
use crate::mapped::MapWords;
use crate::state::BlockState;
use crate::store::ReadAt;
use crate::sync::{is_dead, live_for};

const SECTORS: u64 = 2;
const BLOCKS: u64 = SECTORS * BLOCKS_PER_SECTOR;
/// The last block of the first sector and the first of the second.
const TWO: std::ops::Range<u64> = BLOCKS_PER_SECTOR - 1..BLOCKS_PER_SECTOR + 1;

/// A map file that is durable as soon as it is written.
#[derive(Clone, Default)]
struct MapFile(Arc<Mutex<[[u8; SECTOR_LEN]; SECTORS as usize]>>);

impl MapFile {
    fn write(&self, sector: u64, states: [u8; SECTOR_LEN]) {
        if !is_dead() {
            self.0.lock().unwrap()[sector as usize] = states;
        }
    }

    fn says_data(&self, block: u64) -> bool {
        let sector = self.0.lock().unwrap()[(block / BLOCKS_PER_SECTOR) as usize];
        let bits = u64::from_le_bytes(sector) >> (2 * (block % BLOCKS_PER_SECTOR));
        BlockState::from_bits(bits) == BlockState::Data
    }
}

impl ReadAt for MapFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock().unwrap().concat();
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// A process that has the map.
struct Process {
    map: BlockMap,
    file: MapFile,
}

impl Process {
    /// The first one.
    fn new() -> (Arc<Self>, MapWords) {
        let words = MapWords::private(1, BlockMap::words_for(BLOCKS)).unwrap();
        let process = Self::open(&words, MapFile::default());
        process.map.load(0..process.map.blocks()).unwrap();
        (process, words)
    }

    /// One on words that another has left, as a volume opens them.
    fn open(words: &MapWords, file: MapFile) -> Arc<Self> {
        let (durable, flushes) = (Arc::new(file.clone()), Arc::new(Flushes::default()));
        let map = BlockMap::new(words.clone(), durable, BLOCKS, flushes).unwrap();
        map.forget_loaders();
        map.adopt_dirty(false);
        Arc::new(Self { map, file })
    }

    /// A flush, in the order of a pipeline's: the copy is written after the sync of what it calls data.
    fn flush(&self) {
        let Some(turn) = self.map.flushes().try_begin() else {
            return;
        };
        let mut taken = Vec::new();
        self.map.take_dirty(&mut taken, 0);
        let copy: Vec<_> = taken
            .iter()
            .map(|sector| self.map.sector_states(*sector))
            .collect();
        for (sector, states) in taken.iter().zip(copy) {
            self.file.write(*sector, states);
        }
        self.map.end_flush(&taken);
        turn.succeed();
    }

    /// Runs threads to their end.
    fn run(self: &Arc<Self>, threads: &[fn(&Self)]) {
        let threads: Vec<_> = threads
            .iter()
            .map(|work| {
                let (process, work) = (self.clone(), *work);
                thread::spawn(move || work(&process))
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}

/// After the flush that covers it a change is durable, whatever flush ran when it was made.
pub fn what_is_changed_is_flushed() {
    check(3, || {
        let (process, _) = Process::new();
        process.run(&[
            |process| {
                process.map.set_data(0..1);
                let number = process.map.flushes().covering();
                process.flush();
                let is_done = process.map.flushes().is_done(number);
                assert!(!is_done || process.file.says_data(0));
            },
            // Of another sector, whose note is in the same word.
            |process| {
                process
                    .map
                    .set_data(BLOCKS_PER_SECTOR..BLOCKS_PER_SECTOR + 1);
                process.flush();
            },
        ]);
        process.flush();
        assert!(process.file.says_data(0) && process.file.says_data(BLOCKS_PER_SECTOR));
    });
}

/// The same for who finds a block as it is to be, since another thread is just changing it.
pub fn what_another_changes_is_flushed() {
    check(3, || {
        let (process, _) = Process::new();
        let work: fn(&Process) = |process| {
            process.map.set_data(0..1);
            let number = process.map.flushes().covering();
            process.flush();
            let is_done = process.map.flushes().is_done(number);
            assert!(!is_done || process.file.says_data(0));
        };
        process.run(&[work, work]);
        process.flush();
        assert!(process.file.says_data(0));
    });
}

/// A write that is durable by itself is taken for that only where the durable map has its blocks.
pub fn nothing_is_called_durable_that_is_not() {
    check(3, || {
        let (process, _) = Process::new();
        // A flush was done before.
        process.flush();
        process.run(&[
            |process| process.map.set_data(0..1),
            |process| process.flush(),
            |process| {
                let is_durable = process.map.has_durable_data(0..1);
                assert!(!is_durable || process.file.says_data(0));
            },
        ]);
    });
}

/// Of a process that dies at any store the next one writes what the durable map has not; what is done again
/// then is flushed.
pub fn what_a_dead_process_changed_is_flushed_by_the_next() {
    let mut stores = 0;
    let died = Arc::new(Mutex::new(true));
    while std::mem::take(&mut *died.lock().unwrap()) {
        let died = died.clone();
        check(2, move || {
            live_for(u64::MAX);
            let (process, words) = Process::new();
            live_for(stores);
            process.run(&[
                |process| process.map.set_data(TWO),
                |process| {
                    process.flush();
                    process.flush();
                },
            ]);
            *died.lock().unwrap() |= is_dead();
            live_for(u64::MAX);
            let next = Process::open(&words, process.file.clone());
            if is_loaded(&next) {
                let data = TWO.filter(|block| next.map.get(*block) == BlockState::Data);
                let data: Vec<_> = data.collect();
                next.flush();
                assert!(
                    data.iter().all(|block| next.file.says_data(*block)),
                    "{stores}"
                );
            }
            next.map.load(0..next.map.blocks()).unwrap();
            next.map.set_data(TWO);
            next.flush();
            assert!(
                TWO.into_iter().all(|block| next.file.says_data(block)),
                "{stores}"
            );
        });
        stores += 1;
    }
    assert!(stores > 20, "{stores} stores are not those of a flush");
}

fn is_loaded(process: &Process) -> bool {
    process
        .map
        .next_chunk(0)
        .is_ok_and(|chunk| chunk == Some(0))
}

/// Whoever finds a chunk loaded sees what the file has of all of it.
pub fn two_that_load_a_chunk_see_all_of_it() {
    check(3, || {
        let file = MapFile::default();
        let data = BlockState::Data.repeated().to_le_bytes();
        (0..sectors(BLOCKS)).for_each(|sector| file.write(sector, data));
        let words = MapWords::private(1, BlockMap::words_for(BLOCKS)).unwrap();
        let process = Process::open(&words, file);
        let work: fn(&Process) = |process| {
            if process.map.ensure(TWO).unwrap() {
                let is_data = |block| process.map.get(block) == BlockState::Data;
                assert!(TWO.into_iter().all(is_data));
            }
        };
        process.run(&[work, work]);
    });
}
