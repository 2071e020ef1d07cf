//! Layers that no snapshot needs any more are merged into the ones above them.

use std::sync::Arc;

use keys::units::ByteOffset;
use volume::Volume;
use volume::pipeline::{
    BlockRequest, Finished, GuestBuffer, Pipeline, RequestKind, Submission, Token,
};

use super::disk::{PATIENCE, wait};
use super::header::{Header, Job, LayerNumber};
use super::rng::Rng;
use super::store::{Fault, SimStore};
use super::world::{Stop, World};

/// What the catalog notes of a layer whose snapshot is gone.
pub struct Merge {
    pub layer: LayerNumber,
}

/// A layer is being merged into the frozen one above it, by a process of its own.
pub struct MergeRun {
    layer: LayerNumber,
    upper: LayerNumber,
    volume: Arc<Volume>,
    pipeline: Pipeline<SimStore>,
    at: u64,
    under_way: u64,
    /// Something of it has failed: it ends, and is begun anew.
    pub failed: bool,
}

impl MergeRun {
    pub fn kill(&mut self, rng: &mut Rng) {
        self.pipeline.store_mut().kill(rng);
    }

    pub fn is_copied_up(&mut self) -> bool {
        self.at >= self.volume.geometry().size && self.under_way == 0 && !self.failed
    }

    fn submit(&mut self, kind: RequestKind, at: u64, len: u64) {
        self.under_way += 1;
        let at = ByteOffset(at);
        let request = BlockRequest { kind, at, len };
        let submission = Submission::new(Token(0), request, GuestBuffer::default());
        self.pipeline.submit(submission);
    }

    fn poll(&mut self, rng: &mut Rng, faulty: bool) -> Result<(), Stop> {
        self.pipeline.store_mut().step(rng);
        let mut finished = Vec::new();
        self.pipeline.poll();
        self.pipeline.take_finished(&mut finished);
        for (_, result, _) in finished.into_iter().map(Finished::take).collect::<Vec<_>>() {
            self.under_way -= 1;
            match result {
                Ok(()) => {}
                Err(_) if faulty => self.failed = true,
                Err(error) => return Err(Stop::Wrong(format!("a merge failed: {error}"))),
            }
        }
        Ok(())
    }
}

impl World {
    /// Begins one of the merges that are due and possible: of a layer that is no header's top, and
    /// over which all headers that have it have the same one.
    pub fn begin_merge(&mut self) {
        if self.merges.is_empty() {
            return;
        }
        let which = self.cx.rng.below(self.merges.len() as u64) as usize;
        let layer = self.merges[which].layer;
        let holds = |header: &&Header| header.position(layer).is_some();
        let Some(first) = self.headers().find(holds).cloned() else {
            return;
        };
        let Some(upper) = first.above(layer) else {
            return;
        };
        let same = |header: &Header| header.above(layer) == Some(upper);
        if !self.headers().filter(holds).all(same) {
            return;
        }
        let writer = self.disks.iter_mut().find(|d| d.header.top() == upper);
        if let Some(disk) = writer {
            if disk.header.job.is_none() {
                let (drop, rotates) = (vec![layer], None);
                disk.header.job = Some(Job { drop, rotates });
                disk.restart_job();
                self.cx.count("merges into a disk's top");
            }
            return;
        }
        let from = first.position(upper).unwrap_or(0);
        self.merge_frozen(layer, Header::new(first.layers[from..].to_vec()));
    }

    /// Begins to merge a layer into the frozen one above it, the top of `stack`. Everybody else goes
    /// on with the maps that they have: what is filled in is what they find beneath.
    fn merge_frozen(&mut self, layer: LayerNumber, stack: Header) {
        let cx = &self.cx;
        let _calm = cx.layers.calm();
        let lower = stack.layers[1..].iter();
        let lower = lower.map(|layer| cx.layers.lower(*layer)).collect();
        let top = cx.layers.map(stack.layers[0]);
        let volume = Arc::new(Volume::open_private(top, lower).unwrap());
        volume.write_map_anew().unwrap();
        let store = SimStore::new(cx.layers.files(&stack), cx.options.alignment);
        let ciphers = cx.layers.ciphers(&stack);
        let mut pipeline = Pipeline::new(volume.clone(), store, ciphers).unwrap();
        pipeline.set_overwrite(cx.options.overwrite);
        self.merging = Some(MergeRun {
            layer,
            upper: stack.top(),
            volume,
            pipeline,
            at: 0,
            under_way: 0,
            failed: false,
        });
    }

    pub fn step_merge(&mut self) -> Result<(), Stop> {
        let Some(run) = &mut self.merging else {
            return Ok(());
        };
        let (at, end) = (run.at, run.volume.geometry().size);
        if at < end && self.cx.rng.one_in(3) {
            let blocks = [1, 4, 16, 3000][self.cx.rng.below(4) as usize];
            run.at = (at + blocks * 4096).min(end);
            run.submit(RequestKind::CopyUp { drop: 1 }, at, run.at - at);
        }
        run.poll(&mut self.cx.rng, self.cx.options.faulty)?;
        if run.failed {
            self.give_up_merge();
        }
        Ok(())
    }

    fn give_up_merge(&mut self) {
        if let Some(mut run) = self.merging.take() {
            self.cx.count("merges that failed");
            run.kill(&mut self.cx.rng);
        }
    }

    /// Everything was copied up: all who have the layer beneath that one drop it.
    pub fn finish_merge(&mut self) -> Result<(), Stop> {
        let Some(mut run) = self.merging.take() else {
            return Ok(());
        };
        if self.cx.options.fault != Fault::MergeBeforeFlush {
            run.submit(RequestKind::Flush, 0, 0);
            let mut patience = PATIENCE;
            while run.under_way > 0 {
                wait(&mut patience)?;
                if self.cx.rng.one_in(800) {
                    run.kill(&mut self.cx.rng);
                    return Err(Stop::Crash);
                }
                run.poll(&mut self.cx.rng, self.cx.options.faulty)?;
            }
        }
        if run.failed {
            self.merging = Some(run);
            self.give_up_merge();
            return Ok(());
        }
        // Its process ends; holes that were under way are made or not.
        run.kill(&mut self.cx.rng);
        let MergeRun { layer, upper, .. } = run;
        self.cx.may_crash(12)?;
        for snapshot in &mut self.snapshots {
            if snapshot.header.above(layer) == Some(upper) {
                snapshot.header.remove(layer);
                self.cx.may_crash(12)?;
            }
        }
        for index in 0..self.disks.len() {
            if self.disks[index].header.above(layer) == Some(upper) {
                self.drop_merged(index, upper, layer)?;
            }
        }
        self.cx.count("finished merges into a frozen layer");
        self.remove_unused();
        Ok(())
    }

    /// Has a disk forget a layer that was merged into the one above it.
    fn drop_merged(
        &mut self,
        index: usize,
        upper: LayerNumber,
        layer: LayerNumber,
    ) -> Result<(), Stop> {
        let Some(position) = self.disks[index].header.position(upper) else {
            return Ok(());
        };
        let entry = self.disks[index].header.layers[position];
        self.disks[index].header.remove(layer);
        self.cx.may_crash(12)?;
        self.steps(30)?;
        let disk = &mut self.disks[index];
        disk.drain(&mut self.cx)?;
        let mut lower = disk.lower().to_vec();
        lower.remove(position);
        if self.cx.options.fault != Fault::OldMapsAfterMerge {
            let _calm = self.cx.layers.calm();
            lower[position - 1] = self.cx.layers.lower(entry);
        }
        disk.put_over(&self.cx, lower);
        Ok(())
    }
}
