//! A store in memory that notes what it is asked for, fails what it is told to, and completes an
//! operation only when it is let.

// Each user has its own part of this module.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use volume::store::{
    IoBuffer, ReadAt, Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag,
};
use volume::{Geometry, format};

/// What a store was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Read,
    Write { at: u64, len: usize },
    WriteDurably { at: u64, len: usize },
    WriteMap { at: u64, len: usize },
    SyncData,
    SyncMap,
    Punch { at: u64, len: u64 },
}

/// Which operations fail, with which number of an error.
type Faults = Box<dyn FnMut(Asked) -> Option<i32> + Send>;

/// What the stores of all queues share.
pub struct Medium {
    data: Vec<u8>,
    map: Vec<u8>,
    log: Vec<Asked>,
    faults: Faults,
    /// Operations complete by themselves.
    free: bool,
    now: Instant,
    /// How often the map was read, and whether that fails.
    map_reads: usize,
    is_map_unreadable: bool,
}

/// A disk in memory.
#[derive(Clone)]
pub struct SharedMedium(Arc<Mutex<Medium>>);

impl SharedMedium {
    pub fn new(geometry: &Geometry) -> Self {
        let mut map = vec![0; format::file_len(geometry.blocks()) as usize];
        let header = format::encode_header(geometry);
        map[..header.len()].copy_from_slice(&header);
        Self(Arc::new(Mutex::new(Medium {
            data: vec![0; geometry.data_len() as usize],
            map,
            log: Vec::new(),
            faults: Box::new(|_| None),
            free: true,
            now: Instant::now(),
            map_reads: 0,
            is_map_unreadable: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap()
    }

    /// What was asked for since the last call.
    pub fn take_log(&self) -> Vec<Asked> {
        std::mem::take(&mut self.lock().log)
    }

    /// Fails what `faults` says from now on.
    pub fn fail(&self, faults: impl FnMut(Asked) -> Option<i32> + Send + 'static) {
        self.lock().faults = Box::new(faults);
    }

    /// Whether operations complete by themselves.
    pub fn set_free(&self, free: bool) {
        self.lock().free = free;
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.lock().now += time;
    }

    pub fn map(&self) -> Vec<u8> {
        self.lock().map.clone()
    }

    /// Has a sector of the map say what no map says.
    pub fn damage_map(&self, sector: u64) {
        let at = format::sector_offset(sector) as usize;
        self.lock().map[at..at + format::SECTOR_LEN].fill(0xa5);
    }

    /// Whether reads of the map fail from now on.
    pub fn set_map_unreadable(&self, is_unreadable: bool) {
        self.lock().is_map_unreadable = is_unreadable;
    }

    /// How often the map was read since the last call.
    pub fn take_map_reads(&self) -> usize {
        std::mem::take(&mut self.lock().map_reads)
    }
}

impl ReadAt for SharedMedium {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().map.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut medium = self.lock();
        medium.map_reads += 1;
        if medium.is_map_unreadable {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let at = offset as usize;
        buffer.copy_from_slice(&medium.map[at..at + buffer.len()]);
        Ok(())
    }
}

/// One queue's store on a [`SharedMedium`].
pub struct LoggedStore {
    medium: SharedMedium,
    under_way: VecDeque<(Tag, StoreOp)>,
    done: Vec<StoreCompletion>,
}

impl LoggedStore {
    pub fn new(medium: &SharedMedium) -> Self {
        Self {
            medium: medium.clone(),
            under_way: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Completes the oldest operation under way; whether there was one.
    pub fn step(&mut self) -> bool {
        let Some((tag, op)) = self.under_way.pop_front() else {
            return false;
        };
        let mut medium = self.medium.lock();
        let failed = (medium.faults)(asked(&op));
        let result = match failed {
            Some(number) => Err(StoreError::Io {
                what: "do what a test says",
                source: io::Error::from_raw_os_error(number),
            }),
            None => Ok(()),
        };
        let buffer = medium.apply(op, failed.is_none());
        self.done.push(StoreCompletion {
            tag,
            result,
            buffer,
        });
        true
    }
}

fn asked(op: &StoreOp) -> Asked {
    match op {
        StoreOp::Read { .. } => Asked::Read,
        &StoreOp::Write {
            file: StoreFile::Map,
            at,
            len,
            ..
        } => Asked::WriteMap { at, len },
        &StoreOp::Write {
            at,
            len,
            durable: true,
            ..
        } => Asked::WriteDurably { at, len },
        &StoreOp::Write { at, len, .. } => Asked::Write { at, len },
        StoreOp::Sync {
            file: StoreFile::Map,
        } => Asked::SyncMap,
        StoreOp::Sync { .. } => Asked::SyncData,
        &StoreOp::Punch { at, len } => Asked::Punch { at, len },
    }
}

impl Medium {
    fn apply(&mut self, op: StoreOp, works: bool) -> Option<IoBuffer> {
        match op {
            StoreOp::Read {
                at,
                len,
                mut buffer,
                ..
            } => {
                let from = &self.data[at as usize..at as usize + len];
                buffer.as_mut_slice()[..len].copy_from_slice(from);
                Some(buffer)
            }
            StoreOp::Write {
                file,
                at,
                len,
                buffer,
                ..
            } => {
                let into = match file {
                    StoreFile::Map => &mut self.map,
                    StoreFile::Data(_) => &mut self.data,
                };
                if works {
                    into[at as usize..at as usize + len].copy_from_slice(&buffer.as_slice()[..len]);
                }
                Some(buffer)
            }
            StoreOp::Punch { at, len } if works => {
                self.data[at as usize..(at + len) as usize].fill(0);
                None
            }
            StoreOp::Sync { .. } | StoreOp::Punch { .. } => None,
        }
    }
}

impl Store for LoggedStore {
    fn alignment(&self) -> u64 {
        512
    }

    fn writes_durably(&self) -> bool {
        true
    }

    fn now(&self) -> Instant {
        self.medium.lock().now
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < 64
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.medium.lock().log.push(asked(&op));
        self.under_way.push_back((tag, op));
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        while self.medium.lock().free && self.step() {}
        into.append(&mut self.done);
    }
}
