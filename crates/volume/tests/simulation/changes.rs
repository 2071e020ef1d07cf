//! What is done to disks besides their guests' requests, step by step, with crashes between.

use keys::units::MAX_LAYERS;
use volume::format;
use volume::store::StoreFile;

use super::disk::{COPIER, Disk};
use super::header::{Header, Job, LayerNumber, Seeker};
use super::merge::Merge;
use super::store::{Fault, lock};
use super::world::{Snapshot, Stop, World};

/// Disks and snapshots at most: each is read after each crash.
const MAX_DISKS: usize = 3;
const MAX_SNAPSHOTS: usize = 4;

impl World {
    /// Now and then begins or ends something.
    pub fn tend(&mut self) -> Result<(), Stop> {
        let fault = self.cx.options.fault;
        for index in 0..self.disks.len() {
            let disk = &mut self.disks[index];
            if disk.header.job.is_some() && !disk.is_failed() && disk.is_copied_up(fault) {
                self.finish_job(index)?;
            }
        }
        if self.merging.as_mut().is_some_and(|run| run.is_copied_up()) {
            self.finish_merge()?;
        }
        if self.merging.is_none() && self.cx.rng.one_in(if self.deep { 2000 } else { 60 }) {
            self.begin_merge();
        }
        match self.cx.rng.one_in(if self.deep { 8 } else { 45 }) {
            true => self.change(),
            false => Ok(()),
        }
    }

    fn change(&mut self) -> Result<(), Stop> {
        let disk = self.cx.rng.below(self.disks.len() as u64) as usize;
        let idle = self.disks[disk].header.job.is_none();
        match self.cx.rng.below(16) {
            6..13 if self.deep && idle => self.push(disk),
            0..5 if idle => self.push(disk),
            5 => self.clone_snapshot(),
            6 | 7 if idle => {
                self.flatten(disk);
                Ok(())
            }
            8 | 9 if idle => self.rotate(disk),
            13 if self.deep && idle => self.rotate(disk),
            10..12 => {
                self.delete_snapshot();
                Ok(())
            }
            12 | 13 => self.grow(disk),
            14 if !self.deep && !self.snapshots.is_empty() => self.revert(disk),
            15 if self.disks.len() > 1 => {
                let mut gone = self.disks.swap_remove(disk);
                gone.kill(&mut self.cx);
                drop(gone);
                self.remove_unused();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Freezes a disk's top layer under a new one, and mostly makes a snapshot of what is beneath.
    pub fn push(&mut self, index: usize) -> Result<(), Stop> {
        let Some(frozen) = self.freeze(index, None)? else {
            return Ok(());
        };
        self.cx.count("pushes");
        if frozen.len() + 1 == MAX_LAYERS {
            self.cx.count("chains of 32 layers");
        }
        let contents = self.disks[index].model.contents();
        self.cx.may_crash(12)?;
        // A snapshot names the frozen layers only when the disk does not write to them any more.
        if self.snapshots.len() < MAX_SNAPSHOTS && !self.cx.rng.one_in(8) {
            let header = Header::new(frozen);
            self.snapshots.push(Snapshot { header, contents });
        } else {
            // As if it had been deleted since.
            self.merges.push(Merge { layer: frozen[0].0 });
        }
        self.cx.may_crash(12)?;
        self.disks[index].push(&mut self.cx)
    }

    /// The part of a push up to the header, which gets `job` too; the layers that are frozen then.
    fn freeze(
        &mut self,
        index: usize,
        job: Option<Job>,
    ) -> Result<Option<Vec<(LayerNumber, u64)>>, Stop> {
        let size = self.disks[index].header.size();
        if self.disks[index].header.layers.len() >= MAX_LAYERS {
            return Ok(None);
        }
        let top = self.cx.make_layer(size);
        self.cx.may_crash(16)?;
        let early = self.cx.options.fault == Fault::PushBeforeFlush;
        let (cx, disk) = (&mut self.cx, &mut self.disks[index]);
        disk.drain(cx)?;
        let frozen = disk.header.layers.clone();
        if !early {
            let flushed = disk.flush(cx, 0)?;
            disk.drain(cx)?;
            if !flushed {
                cx.count("freezes that failed");
                disk.go_on();
                return Ok(None);
            }
            cx.may_crash(12)?;
        }
        disk.header.layers.insert(0, (top, size));
        disk.header.job = job;
        if early {
            cx.may_crash(4)?;
            disk.flush(cx, 0)?;
            disk.drain(cx)?;
        }
        Ok(Some(frozen))
    }

    /// A new disk over the layers of a snapshot.
    fn clone_snapshot(&mut self) -> Result<(), Stop> {
        if self.disks.len() >= MAX_DISKS || self.snapshots.is_empty() {
            return Ok(());
        }
        let source = self.any_snapshot();
        let Snapshot { header, contents } = &self.snapshots[source];
        let (mut layers, contents) = (header.layers.clone(), contents.clone());
        if layers.len() >= MAX_LAYERS {
            return Ok(());
        }
        let size = self.larger(header.size());
        layers.insert(0, (self.cx.make_layer(size), size));
        self.cx.may_crash(12)?;
        let disk = Disk::new(&mut self.cx, Header::new(layers), &contents);
        self.disks.push(disk);
        self.cx.count("clones");
        Ok(())
    }

    fn any_snapshot(&mut self) -> usize {
        self.cx.rng.below(self.snapshots.len() as u64) as usize
    }

    /// A size that is not smaller.
    fn larger(&mut self, size: u64) -> u64 {
        let room = (self.most_size - size) / 512;
        let unit = match self.cx.options.unit {
            Some(unit) => unit.bytes() / 512,
            None => 1,
        };
        let more = (1 + self.cx.rng.below(20)).next_multiple_of(unit);
        size + more.min(room) * 512
    }

    /// Begins to copy all into a disk's top layer.
    fn flatten(&mut self, index: usize) {
        if self.disks[index].is_failed() {
            return;
        }
        let header = &mut self.disks[index].header;
        let lower = header.layers[1..].iter();
        let drop: Vec<_> = lower.map(|(number, _)| *number).collect();
        let rotates = None;
        header.job = (!drop.is_empty()).then_some(Job { drop, rotates });
        self.disks[index].restart_job();
    }

    /// Begins to put a disk under a new key: what it shares with others may stay as it is.
    fn rotate(&mut self, index: usize) -> Result<(), Stop> {
        let layers = &self.disks[index].header.layers;
        let count = match self.deep || self.cx.rng.one_in(2) {
            true => 1,
            false => layers.len(),
        };
        let drop: Vec<_> = layers[..count].iter().map(|(number, _)| *number).collect();
        let rotates = Some(layers[0].0);
        match self.freeze(index, Some(Job { drop, rotates }))? {
            None => Ok(()),
            Some(_) => {
                self.cx.may_crash(12)?;
                self.disks[index].push(&mut self.cx)
            }
        }
    }

    /// Everything that a disk's job is about was copied up: the layers go that it makes needless.
    fn finish_job(&mut self, index: usize) -> Result<(), Stop> {
        if self.cx.options.fault != Fault::DropBeforeFlush
            && !self.disks[index].flush(&mut self.cx, COPIER)?
        {
            self.cx.count("jobs whose end failed");
            return Ok(());
        }
        self.steps(30)?;
        self.cx.may_crash(12)?;
        let header = &mut self.disks[index].header;
        let Some(job) = header.job.take() else {
            return Ok(());
        };
        let count = job.drop.len();
        let dropped = header.layers.drain(1..=count).map(|(number, _)| number);
        assert!(dropped.eq(job.drop), "they lie beneath the top");
        self.cx.may_crash(12)?;
        self.steps(30)?;
        self.cx.may_crash(12)?;
        let disk = &mut self.disks[index];
        disk.drain(&mut self.cx)?;
        let lower = disk.lower()[count..].to_vec();
        disk.put_over(&self.cx, lower);
        self.cx.count("finished jobs");
        if let Some(old) = job.rotates {
            self.cx.count("finished rotations");
            self.check_rotated(index, old)?;
        }
        self.remove_unused();
        Ok(())
    }

    /// Nothing that a disk's files hold is under the old key.
    fn check_rotated(&self, index: usize, old: LayerNumber) -> Result<(), Stop> {
        let layers = &self.cx.layers;
        let mut seeker = Seeker::new(layers.get(old));
        for (number, _) in &self.disks[index].header.layers {
            let files = lock(&layers.get(*number).files);
            for (sector, ciphertext) in files.ciphertext() {
                if seeker.finds(sector, ciphertext) {
                    let what = format!("sector {sector} is still under the old key");
                    return Err(Stop::Wrong(what));
                }
            }
        }
        Ok(())
    }

    fn delete_snapshot(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        self.cx.count("deleted snapshots");
        let gone = self.any_snapshot();
        let gone = self.snapshots.swap_remove(gone);
        self.merges.push(Merge {
            layer: gone.header.top(),
        });
        self.remove_unused();
    }

    /// Puts a disk, which is detached for it, back to what a snapshot has.
    fn revert(&mut self, index: usize) -> Result<(), Stop> {
        let snapshot = self.any_snapshot();
        let size = self.disks[index].header.size();
        let Snapshot { header, contents } = &self.snapshots[snapshot];
        let (mut layers, contents) = (header.layers.clone(), contents.clone());
        if layers.len() >= MAX_LAYERS || layers[0].1 > size {
            return Ok(());
        }
        let (cx, disk) = (&mut self.cx, &mut self.disks[index]);
        disk.drain(cx)?;
        if !disk.flush(cx, 0)? {
            disk.go_on();
            return Ok(());
        }
        layers.insert(0, (cx.make_layer(size), size));
        cx.may_crash(12)?;
        disk.kill(cx);
        disk.header = Header {
            attach: disk.header.attach,
            ..Header::new(layers)
        };
        disk.model = super::model::Model::new(&cx.windows, &contents);
        cx.may_crash(12)?;
        disk.open(cx);
        self.cx.count("reverts");
        self.remove_unused();
        Ok(())
    }

    /// Grows a disk by the steps of a resize, of which a crash may let only some happen; those that
    /// were synced stay. Guests go on meanwhile.
    pub fn grow(&mut self, index: usize) -> Result<(), Stop> {
        if self.disks[index].is_failed() || self.disks[index].header.failed {
            return Ok(());
        }
        let size = self.larger(self.disks[index].header.size());
        let top = self.disks[index].header.layers[0];
        let geometry = self.cx.layers.geometry((top.0, size));
        let files = self.cx.layers.get(top.0).files.clone();
        lock(&files).lengthen(StoreFile::TOP, geometry.data_len());
        self.cx.may_crash(12)?;
        lock(&files).lengthen(StoreFile::Map, format::file_len(geometry.blocks()));
        self.cx.may_crash(12)?;
        // What the header says counts from now on, whatever is served still.
        self.disks[index].header.layers[0].1 = size;
        self.steps(30)?;
        self.cx.may_crash(12)?;
        self.disks[index].grow_runtime(&self.cx);
        self.steps(30)?;
        self.cx.may_crash(12)?;
        self.disks[index].drain(&mut self.cx)?;
        self.disks[index].grow();
        self.cx.count("finished resizes");
        self.steps(160)
    }
}
