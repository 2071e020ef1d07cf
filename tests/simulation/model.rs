//! What a disk may hold, sector by sector.

use std::collections::BTreeMap;

/// What a guest wrote into a sector: a stamp that fills it, 0 for zeros.
pub type Stamp = u64;

/// The history of a sector that can still matter.
#[derive(Default, Clone)]
struct History {
    /// Contents in the order in which they were written. The first is durable.
    contents: Vec<Stamp>,
    /// How many of them were completed to the guest.
    completed: usize,
    /// How many there were before the first, which do not matter any more.
    forgotten: usize,
    /// Contents that were being written when the process was killed and were not seen afterwards.
    /// They may lie in the data file all the same, and a power loss that takes an unflushed discard
    /// back shows them: the guest never heard how those writes ended. A flush settles it.
    unsettled: Vec<Stamp>,
}

/// The disk as a correct implementation may have it.
#[derive(Default)]
pub struct Model {
    sectors: BTreeMap<u64, History>,
}

/// For each sector, how many of all its contents a flush that begins now covers.
pub type FlushPoint = BTreeMap<u64, usize>;

impl Model {
    fn history(&mut self, sector: u64) -> &mut History {
        self.sectors.entry(sector).or_insert_with(|| History {
            contents: vec![0],
            completed: 1,
            forgotten: 0,
            unsettled: Vec::new(),
        })
    }

    /// A write of a sector begins. The guest has no other write of it under way.
    pub fn begin(&mut self, sector: u64, stamp: Stamp) {
        let history = self.history(sector);
        assert_eq!(history.contents.len(), history.completed, "writes overlap");
        history.contents.push(stamp);
    }

    /// That write was completed.
    pub fn complete(&mut self, sector: u64) {
        let history = self.history(sector);
        history.completed = history.contents.len();
    }

    /// What a read that finds no write of the sector under way must give.
    pub fn current(&mut self, sector: u64) -> Stamp {
        *self.history(sector).contents.last().unwrap()
    }

    pub fn flush_point(&self) -> FlushPoint {
        self.sectors
            .iter()
            .map(|(sector, h)| (*sector, h.completed))
            .collect()
    }

    /// A flush that began at `point` was completed, or a write that was durable by itself.
    pub fn flushed(&mut self, point: &FlushPoint) {
        for (sector, completed) in point {
            let history = self.history(*sector);
            let gone = (completed - 1).saturating_sub(history.forgotten);
            history.contents.drain(..gone);
            history.completed -= gone;
            history.forgotten += gone;
            history.unsettled.clear();
        }
    }

    /// The process was killed: each sector has what was completed last, or what was being written.
    /// `read` tells what is there now.
    pub fn after_kill(&mut self, mut read: impl FnMut(u64) -> Stamp) -> Result<(), String> {
        for (sector, history) in &mut self.sectors {
            let allowed = &history.contents[history.completed - 1..];
            let found = read(*sector);
            if !allowed.contains(&found) {
                return Err(format!(
                    "after a kill sector {sector} has {found:x}, allowed are {allowed:x?}"
                ));
            }
            // What was being written may be there and yet not be durable.
            if found == allowed[0] {
                history
                    .unsettled
                    .extend(history.contents.drain(history.completed..));
            } else {
                history.completed = history.contents.len();
            }
        }
        Ok(())
    }

    /// The power was lost: each sector has what is durable or anything written since.
    pub fn after_power_loss(&mut self, mut read: impl FnMut(u64) -> Stamp) -> Result<(), String> {
        for (sector, history) in &mut self.sectors {
            let found = read(*sector);
            if !history.contents.contains(&found) && !history.unsettled.contains(&found) {
                return Err(format!(
                    "after a power loss sector {sector} has {found:x}, allowed are {:x?}",
                    history.contents
                ));
            }
            *history = History {
                contents: vec![found],
                completed: 1,
                forgotten: 0,
                unsettled: Vec::new(),
            };
        }
        Ok(())
    }
}
