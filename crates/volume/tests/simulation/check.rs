//! What is done to a disk whose device is not well: a failed sync is noted, the disk is detached, and
//! checked.

use std::sync::Arc;

use volume::pipeline::{BlockRequest, GuestBuffer, Pipeline, Submission, Token};
use volume::{RuntimeMap, Volume};

use super::disk::{Disk, PATIENCE, wait};
use super::store::{Fault, SimStore};
use super::world::{Context, Stop};

impl Disk {
    /// Does now and then what those do who look after a disk.
    pub fn look_after(&mut self, cx: &mut Context) -> Result<(), Stop> {
        if self.is_failed() && cx.options.fault == Fault::ForgetsFailedSync {
            self.forget_failure(cx);
        } else if self.is_failed() {
            // By the process that started the one which met it.
            self.header.failed |= cx.rng.one_in(8);
            if cx.rng.one_in(50) {
                return self.check(cx);
            }
        }
        match cx.rng.one_in(150) {
            true => self.detach(cx),
            false => Ok(()),
        }
    }

    /// As it was when an error of one step was overwritten by another: the next flush finds nothing.
    fn forget_failure(&mut self, cx: &Context) {
        let geometry = cx.layers.geometry(self.header.layers[0]);
        let runtime = RuntimeMap::find(&self.runtime, &geometry, self.header.attach);
        let runtime = runtime.unwrap().expect("the disk is open");
        runtime.forget_failed_sync().unwrap();
    }

    /// Detaches the disk, in order if everything can be made durable, and attaches it again.
    fn detach(&mut self, cx: &mut Context) -> Result<(), Stop> {
        self.drain(cx)?;
        let clean = self.flush(cx, 0)?;
        self.drain(cx)?;
        self.kill(cx);
        cx.may_crash(12)?;
        if clean {
            cx.count("clean detaches");
            self.forget_runtime();
        } else {
            cx.count("detaches that were not clean");
        }
        self.open(cx);
        let found = self.read_all(cx);
        self.model.read_all(&found).map_err(Stop::Wrong)
    }

    /// Detaches a disk of whose files a sync has failed, and checks and repairs it.
    fn check(&mut self, cx: &mut Context) -> Result<(), Stop> {
        self.drain(cx)?;
        self.kill(cx);
        cx.may_crash(12)?;
        self.header.failed = true;
        // What the page cache has proves nothing of what is stored.
        cx.files(&self.header).evict(|| true);
        self.note_evicted(cx);
        self.model.check_begins();
        let geometry = cx.layers.geometry(self.header.layers[0]);
        let runtime = RuntimeMap::find(&self.runtime, &geometry, self.header.attach);
        let repaired = match runtime.unwrap() {
            Some(runtime) => {
                runtime.forget_failed_sync().unwrap();
                cx.may_crash(12)?;
                self.flush_left(cx, &runtime)?
            }
            None => {
                cx.files(&self.header).sync_all();
                true
            }
        };
        if repaired {
            cx.count("repairs");
            cx.files(&self.header).set_failed(false);
            let now = self.model.flush_point();
            self.model.flushed(now);
            cx.may_crash(12)?;
            self.header.failed = false;
            self.forget_runtime();
        } else {
            cx.count("repairs that failed");
        }
        self.open(cx);
        let found = self.read_all(cx);
        if repaired {
            self.model.adopt(&found);
        }
        self.model.read_all(&found).map_err(Stop::Wrong)
    }

    /// Makes durable what a process has left; whether it could.
    fn flush_left(&mut self, cx: &mut Context, runtime: &RuntimeMap) -> Result<bool, Stop> {
        let volume = {
            let _calm = cx.layers.calm();
            let lower = self.header.layers[1..].iter();
            let lower = lower.map(|layer| cx.layers.lower(*layer)).collect();
            let top = cx.layers.map(self.header.layers[0]);
            Arc::new(Volume::open_runtime(top, lower, runtime).unwrap())
        };
        let store = SimStore::new(cx.layers.files(&self.header), cx.options.alignment);
        let mut pipeline = Pipeline::new(volume, store, None).unwrap();
        pipeline.stop_punching();
        let flush = Submission::new(Token(0), BlockRequest::FLUSH, GuestBuffer::default());
        pipeline.submit(flush);
        let (mut finished, mut patience) = (Vec::new(), PATIENCE);
        loop {
            pipeline.poll();
            pipeline.take_finished(&mut finished);
            if let Some(done) = finished.pop() {
                let (_, result, _) = done.take();
                return Ok(result.is_ok());
            }
            if let Err(stop) = cx.may_crash(800) {
                pipeline.store_mut().kill(&mut cx.rng);
                return Err(stop);
            }
            pipeline.store_mut().step(&mut cx.rng);
            wait(&mut patience)?;
        }
    }
}
