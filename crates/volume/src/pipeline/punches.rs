//! What one queue knows of the space that it gives back.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::format::BLOCKS_PER_CHUNK;
use crate::{BlockMap, FlushNumber, PunchTurn, VolumeError};

/// How long after a failure it is tried again at first.
pub(super) const BACK_OFF: Duration = Duration::from_secs(1);
/// How long discards wait for a flush of the guest.
pub(super) const UNFLUSHED: Duration = Duration::from_secs(5);

/// What one queue gives back.
pub(super) struct Punches {
    /// Held while it goes over the disk, or rests meanwhile.
    pub(super) turn: Option<PunchTurn>,
    /// Where it continues.
    pub(super) at: u64,
    /// Where it continues with space of inherited blocks, once no discarded ones are left, and what is left
    /// of the sector of these that it goes over.
    pub(super) strays_at: u64,
    pub(super) strays: Range<u64>,
    /// When the hole under way was begun.
    pub(super) under_way: Option<Instant>,
    /// It does not go on before.
    pub(super) due: Option<Instant>,
    /// Since when there are discards of this queue that no flush has covered, and which would.
    pub(super) unflushed: Option<(Instant, FlushNumber)>,
    /// Blocks were left out of this pass since they were in use, or since they failed.
    pub(super) left_out: bool,
    pub(super) failed: bool,
    pub(super) back_off: Duration,
    /// The failure that was told last.
    pub(super) told: Option<io::ErrorKind>,
    /// None is begun.
    pub(super) stopped: bool,
    /// It does not rest.
    pub(super) hurries: bool,
    /// Old ciphertext is overwritten first.
    pub(super) overwrite: bool,
}

impl Default for Punches {
    fn default() -> Self {
        Self {
            turn: None,
            at: 0,
            strays_at: 0,
            strays: 0..0,
            under_way: None,
            due: None,
            unflushed: None,
            left_out: false,
            failed: false,
            back_off: BACK_OFF,
            told: None,
            stopped: false,
            hurries: false,
            overwrite: false,
        }
    }
}

impl Punches {
    /// When there is more to do, though nothing may have happened.
    pub(super) fn due(&self) -> Option<Instant> {
        let unflushed = self.unflushed.filter(|_| !self.stopped);
        let flush = unflushed.map(|(since, _)| since + UNFLUSHED);
        let hole = self.due.filter(|_| self.turn.is_some());
        hole.into_iter().chain(flush).min()
    }

    /// Whether it waits for a while since something failed.
    pub(super) fn has_failed(&self) -> bool {
        self.back_off > BACK_OFF
    }

    /// The next sector that may have space of inherited blocks, and is loaded.
    pub(super) fn next_strays(&mut self, map: &BlockMap) -> Option<Range<u64>> {
        while let Some(sector) = map.take_strays(self.strays_at) {
            self.strays_at = sector.end;
            let error = match map.ensure(sector.clone()) {
                Ok(true) => return Some(sector),
                Ok(false) => {
                    map.put_strays_back(&sector);
                    self.left_out = true;
                    continue;
                }
                Err(error) => error,
            };
            // It is the chunk that cannot be loaded, whichever of its sectors is asked for.
            self.strays_at = (sector.start / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK;
            if let VolumeError::MapDamaged { .. } = error {
                // A later try would find the same. The next process that opens the repaired disk notes it again.
                map.forget_strays(sector.start..self.strays_at);
                continue;
            }
            map.put_strays_back(&sector);
            self.failed = true;
            self.tell(
                io::ErrorKind::Other,
                &format_args!("space that nothing needs is given back later: {error}"),
            );
        }
        None
    }

    /// Says what is wrong, once for each kind of failure.
    pub(super) fn tell(&mut self, kind: io::ErrorKind, what: &dyn std::fmt::Display) {
        if self.told.replace(kind) != Some(kind) {
            log::warn!("{what}");
        }
    }
}
