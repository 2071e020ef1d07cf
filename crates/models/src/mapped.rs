//! Memory of loom's atomics, in place of `volume::mapped`: that of a map outlives a process by being shared.

use std::io;
use std::sync::Arc;

use crate::sync::AtomicU64;

pub(crate) const CHANGING: usize = 2;
pub(crate) const NOTE_WORDS: usize = 1;

/// Words of one process.
pub(crate) struct Mapped(Box<[AtomicU64]>);

impl Mapped {
    pub(crate) fn private(len: usize) -> io::Result<Self> {
        Ok(Self(zeros(len / 8)))
    }

    pub(crate) fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
        &self.0[at / 8..at / 8 + count]
    }
}

/// The words of a map.
#[derive(Clone)]
pub(crate) struct MapWords(Arc<Words>);

struct Words {
    failed_sync: AtomicU64,
    changing: Box<[AtomicU64]>,
    flags: Box<[AtomicU64]>,
    dirty: Box<[AtomicU64]>,
    flushing: Box<[AtomicU64]>,
    states: Box<[AtomicU64]>,
}

impl MapWords {
    pub(crate) fn private(chunks: usize, states: usize) -> io::Result<Self> {
        Ok(Self(Arc::new(Words {
            failed_sync: AtomicU64::new(0),
            changing: zeros(CHANGING),
            flags: zeros(chunks),
            dirty: zeros(chunks * NOTE_WORDS),
            flushing: zeros(chunks * NOTE_WORDS),
            states: zeros(states),
        })))
    }

    pub(crate) fn failed_sync(&self) -> &AtomicU64 {
        &self.0.failed_sync
    }

    pub(crate) fn changing(&self, place: usize) -> &AtomicU64 {
        &self.0.changing[place]
    }

    pub(crate) fn flags(&self) -> &[AtomicU64] {
        &self.0.flags
    }

    pub(crate) fn dirty(&self) -> &[AtomicU64] {
        &self.0.dirty
    }

    pub(crate) fn flushing(&self) -> &[AtomicU64] {
        &self.0.flushing
    }

    pub(crate) fn states(&self) -> &[AtomicU64] {
        &self.0.states
    }

    pub(crate) fn allocate(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
