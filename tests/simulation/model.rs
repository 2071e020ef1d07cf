//! What a disk may hold, sector by sector.

use super::content::{Stamp, Windows};

/// The history of a sector that can still matter.
#[derive(Default, Clone)]
struct History {
    durable: Stamp,
    /// What was written since, in order, and when it was completed to the guest.
    later: Vec<(Stamp, Option<u64>)>,
    /// Contents that were being written when the process was killed and were not seen afterwards.
    /// They may lie in the data file all the same, and a power loss that takes an unflushed discard
    /// back shows them: the guest never heard how those writes ended. A flush settles it.
    unsettled: Vec<Stamp>,
}

impl History {
    fn completed(&self) -> Stamp {
        let mut all = self.later.iter().rev();
        all.find(|(_, when)| when.is_some())
            .map_or(self.durable, |(stamp, _)| *stamp)
    }

    fn flushed(&mut self, point: FlushPoint) {
        let covered = |(_, when): &(Stamp, Option<u64>)| when.is_some_and(|when| when <= point.0);
        if let Some(last) = self.later.iter().rposition(covered) {
            self.durable = self.later[last].0;
            self.later.drain(..=last);
        }
        self.unsettled.clear();
    }
}

/// The disk as a correct implementation may have it.
pub struct Model {
    windows: Windows,
    sectors: Vec<History>,
    clock: u64,
}

/// What a flush that begins now covers: what was completed until then.
#[derive(Debug, Clone, Copy)]
pub struct FlushPoint(u64);

impl Model {
    /// A disk that has `contents` and nothing to lose.
    pub fn new(windows: &Windows, contents: &[Stamp]) -> Self {
        let history = |stamp: &Stamp| History {
            durable: *stamp,
            ..History::default()
        };
        Self {
            windows: windows.clone(),
            sectors: contents.iter().map(history).collect(),
            clock: 0,
        }
    }

    fn history(&mut self, sector: u64) -> &mut History {
        &mut self.sectors[self.windows.index(sector)]
    }

    /// A write of a sector begins. The guest has no other write of it under way.
    pub fn begin(&mut self, sector: u64, stamp: Stamp) {
        let history = self.history(sector);
        let last = history.later.last();
        assert!(last.is_none_or(|last| last.1.is_some()), "writes overlap");
        history.later.push((stamp, None));
    }

    /// That write was completed.
    pub fn complete(&mut self, sector: u64) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(last) = self.history(sector).later.last_mut() {
            last.1 = Some(clock);
        }
    }

    /// What a read that finds no write of the sector under way must give.
    pub fn current(&mut self, sector: u64) -> Stamp {
        let history = self.history(sector);
        history
            .later
            .last()
            .map_or(history.durable, |(stamp, _)| *stamp)
    }

    /// All sectors of the windows, while no write is under way.
    pub fn contents(&self) -> Vec<Stamp> {
        self.sectors.iter().map(History::completed).collect()
    }

    pub fn flush_point(&self) -> FlushPoint {
        FlushPoint(self.clock)
    }

    /// A flush that began at `point` was completed.
    pub fn flushed(&mut self, point: FlushPoint) {
        for history in &mut self.sectors {
            history.flushed(point);
        }
    }

    /// A write of these sectors that is durable by itself was completed.
    pub fn durable(&mut self, sectors: std::ops::Range<u64>) {
        let now = self.flush_point();
        sectors.for_each(|sector| self.history(sector).flushed(now));
    }

    /// The process was killed: each sector has what was completed last, or what was being written.
    /// `found` is what is there now of the sectors that the disk has.
    pub fn after_kill(&mut self, found: &[Option<Stamp>]) -> Result<(), String> {
        self.clock += 1;
        for (index, history) in self.sectors.iter_mut().enumerate() {
            let Some(found) = found[index] else { continue };
            let completed = history.completed();
            let under_way = history.later.pop_if(|(_, when)| when.is_none());
            let under_way = under_way.map(|(stamp, _)| stamp);
            if found == completed {
                // What was being written may be there and yet not be durable.
                history.unsettled.extend(under_way);
            } else if Some(found) == under_way {
                history.later.push((found, Some(self.clock)));
            } else {
                return Err(format!(
                    "after a kill sector {} has {found:x}, completed was {completed:x}, under way \
                     {under_way:x?}",
                    self.windows.sector(index)
                ));
            }
        }
        Ok(())
    }

    /// The power was lost: each sector has what is durable or anything written since.
    pub fn after_power_loss(&mut self, found: &[Option<Stamp>]) -> Result<(), String> {
        for (index, history) in self.sectors.iter_mut().enumerate() {
            let Some(found) = found[index] else { continue };
            let later = history.later.iter().map(|(stamp, _)| stamp);
            let mut allowed = later.chain(&history.unsettled);
            if found != history.durable && !allowed.any(|stamp| *stamp == found) {
                return Err(format!(
                    "after a power loss sector {} has {found:x}, durable was {:x}, later {:x?}",
                    self.windows.sector(index),
                    history.durable,
                    history.later
                ));
            }
            *history = History {
                durable: found,
                ..History::default()
            };
        }
        Ok(())
    }
}
