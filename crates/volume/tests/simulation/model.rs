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
    /// back shows them: the guest never heard how those writes ended, or that they failed. A flush that
    /// began later settles it.
    unsettled: Vec<(Stamp, u64)>,
    /// What writes that failed were to leave, until it is seen whether they did.
    torn: Vec<Stamp>,
    wild: Wild,
    /// Nothing was evicted since the last write began.
    kept: bool,
}

/// Whether what was completed may be gone, since a sync has failed and the page cache has forgotten.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Wild {
    #[default]
    No,
    /// It may, but the durable map does not speak of it.
    Cached,
    /// It may, and a check has made durable what there is, or has begun to.
    Durable,
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
        self.unsettled.retain(|(_, when)| *when > point.0);
    }

    /// Nothing that failed is what there is.
    fn unsettle(&mut self, clock: u64) {
        let torn = self.torn.drain(..).map(|stamp| (stamp, clock));
        self.unsettled.extend(torn);
    }

    /// It was seen, while no write was under way: whether it may be there.
    fn saw(&mut self, found: Stamp, clock: u64) -> bool {
        let known = found == self.completed();
        let torn = self.torn.contains(&found);
        if known || torn {
            self.unsettle(clock);
        }
        if !known && torn {
            self.later.push((found, Some(clock)));
        }
        known || torn || self.wild != Wild::No
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
        history.kept = true;
    }

    /// That write was completed.
    pub fn complete(&mut self, sector: u64) {
        self.clock += 1;
        let clock = self.clock;
        let history = self.history(sector);
        history.unsettle(clock);
        if history.wild == Wild::Cached && history.kept {
            history.wild = Wild::No;
        }
        if let Some(last) = history.later.last_mut() {
            last.1 = Some(clock);
        }
    }

    /// That write failed: it has happened or it has not, which stays so.
    pub fn fail(&mut self, sector: u64) {
        let history = self.history(sector);
        let failed = history.later.pop_if(|(_, when)| when.is_none());
        history.torn.extend(failed.map(|(stamp, _)| stamp));
    }

    /// What a sector has that was written since the last sync that succeeded may be gone.
    pub fn evicted(&mut self, sector: u64) {
        if let Some(index) = self.windows.find(sector) {
            let history = &mut self.sectors[index];
            history.kept = false;
            if history.wild == Wild::No {
                history.wild = Wild::Cached;
            }
        }
    }

    /// A read that found no write of the sector under way gave this.
    pub fn read(&mut self, sector: u64, found: Stamp) -> Result<(), String> {
        self.clock += 1;
        let clock = self.clock;
        let history = self.history(sector);
        let expected = history.completed();
        match history.saw(found, clock) {
            true => Ok(()),
            false => Err(format!("sector {sector} reads {found:x}, not {expected:x}")),
        }
    }

    /// Whether it is not known of all sectors what they have.
    pub fn is_open(&self) -> bool {
        let open = |history: &History| !history.torn.is_empty() || history.wild != Wild::No;
        self.sectors.iter().any(open)
    }

    /// All was read while no write was under way.
    pub fn read_all(&mut self, found: &[Option<Stamp>]) -> Result<(), String> {
        for (index, found) in found.iter().enumerate() {
            if let Some(found) = found {
                self.read(self.windows.sector(index), *found)?;
            }
        }
        Ok(())
    }

    /// A check begins to make everything durable, for better or worse.
    pub fn check_begins(&mut self) {
        let wild = self.sectors.iter_mut().filter(|h| h.wild != Wild::No);
        wild.for_each(|history| history.wild = Wild::Durable);
    }

    /// What is found after a check is what the disk has from now on, also where it grows later.
    pub fn adopt(&mut self, found: &[Option<Stamp>]) {
        for (history, found) in self.sectors.iter_mut().zip(found) {
            if let (Wild::Durable, Some(found), true) =
                (history.wild, found, history.later.is_empty())
            {
                *history = History {
                    durable: *found,
                    ..History::default()
                };
            }
        }
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
            if history.wild != Wild::No
                || found == completed
                || history.torn.contains(&found) && Some(found) != under_way
            {
                // What was being written may be there and yet not be durable.
                let unseen = under_way.map(|stamp| (stamp, self.clock));
                history.unsettled.extend(unseen);
                history.saw(found, self.clock);
            } else if Some(found) == under_way {
                history.unsettle(self.clock);
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
            let unsettled = history.unsettled.iter().map(|(stamp, _)| stamp);
            let mut allowed = later.chain(unsettled).chain(&history.torn);
            if history.wild != Wild::Durable
                && found != history.durable
                && !allowed.any(|stamp| *stamp == found)
            {
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
