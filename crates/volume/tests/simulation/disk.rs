//! A disk: its header, what its guest may read, and the process that serves it.

use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use uuid::Uuid;
use volume::pipeline::{Finished, Pipeline, RequestError, RequestKind, Submission, Token};
use volume::{FailedSync, LowerLayer, RuntimeMap, Volume};
use xts::SharedSlice;

use super::content::{Stamp, fill, stamp_of};
use super::faults::device;
use super::guest::{self, Request};
use super::header::Header;
use super::model::Model;
use super::store::{Fault, SimStore};
use super::world::{Context, Stop};

/// The queue of what copies content up from layer to layer, after those of the guest.
pub const COPIER: usize = 2;
const QUEUES: usize = 3;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Steps after which what is still under way hangs for good: no device hangs for as long.
pub const PATIENCE: u64 = 100_000;

type Queue = Pipeline<SimStore>;

pub struct Disk {
    pub header: Header,
    pub model: Model,
    pub(super) runtime: PathBuf,
    process: Option<Process>,
}

/// What is gone when the process dies.
struct Process {
    /// What the header said when it was opened, or changed its stack: the header may be ahead.
    served: Header,
    runtime: RuntimeMap,
    volume: Arc<Volume>,
    queues: Vec<Queue>,
    requests: Vec<Request>,
    /// The queue that alone is served for a while; [`QUEUES`] and more for all.
    awake: usize,
    /// Where the disk's job goes on.
    copied_up: u64,
    /// Flushes that have failed.
    failed: Vec<Token>,
}

impl Disk {
    pub fn new(cx: &mut Context, header: Header, contents: &[Stamp]) -> Self {
        let runtime = format!("/dev/shm/sealdisk-sim-{}.map", Uuid::new_v4());
        let mut disk = Self {
            model: Model::new(&cx.windows, contents),
            header,
            runtime: PathBuf::from(runtime),
            process: None,
        };
        disk.open(cx);
        disk
    }

    /// Starts a process that serves the disk as its header says.
    pub fn open(&mut self, cx: &mut Context) {
        self.note_evicted(cx);
        let _calm = cx.layers.calm();
        let geometry = cx.layers.geometry(self.header.layers[0]);
        // Now and then one dies before the header says that it was there.
        for _ in 0..cx.rng.below(8) / 7 {
            RuntimeMap::open(&self.runtime, &geometry, self.header.attach, Uuid::new_v4()).unwrap();
        }
        let runtime = self.stamp(cx);
        self.header.failed |= runtime.failed_sync().unwrap().is_some();
        if self.header.failed {
            runtime.note_failed_sync(FailedSync::Data).unwrap();
            cx.files(&self.header).set_failed(true);
        }
        let lower = self.header.layers[1..].iter();
        let lower = lower.map(|layer| cx.layers.lower(*layer)).collect();
        let top = cx.layers.map(self.header.layers[0]);
        let volume = Arc::new(Volume::open_runtime(top, lower, &runtime).unwrap());
        let mut process = Process {
            queues: Vec::new(),
            served: self.header.clone(),
            runtime,
            volume,
            requests: Vec::new(),
            awake: QUEUES,
            copied_up: 0,
            failed: Vec::new(),
        };
        process.make_queues(cx, COPIER);
        self.process = Some(process);
    }

    /// Opens the runtime map of the top layer.
    fn stamp(&mut self, cx: &Context) -> RuntimeMap {
        let geometry = cx.layers.geometry(self.header.layers[0]);
        let (previous, next) = (self.header.attach, Uuid::new_v4());
        let (runtime, _) = RuntimeMap::open(&self.runtime, &geometry, previous, next).unwrap();
        self.header.attach = next;
        runtime
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the disk is not open")
    }

    pub fn lower(&self) -> &[Arc<LowerLayer>] {
        self.process.as_ref().unwrap().volume.lower()
    }

    /// Ends the process as it stands. What the guest was not told of.
    pub fn kill(&mut self, cx: &mut Context) -> Vec<Request> {
        let Some(mut process) = self.process.take() else {
            return Vec::new();
        };
        for queue in &mut process.queues {
            // What is lost when the process dies right then is said in docs/architecture.md.
            if queue.store_mut().has_failed_sync() {
                queue.poll();
            }
            queue.store_mut().kill(&mut cx.rng);
        }
        process.requests
    }

    /// The runtime map is gone: with the power, or since the disk was detached or given back.
    pub fn forget_runtime(&mut self) {
        match std::fs::remove_file(&self.runtime) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// Whether a sync has failed, as the process has it.
    pub fn is_failed(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.volume.failed_sync().is_some())
    }

    pub fn step(&mut self, cx: &mut Context) -> Result<(), Stop> {
        let has_job = self.header.job.is_some();
        let process = self.process();
        if cx.options.fault == Fault::FlushLies
            && cx.rng.one_in(40)
            && let Some(turn) = process.volume.flushes().try_begin()
        {
            turn.succeed();
        }
        // Now and then one queue alone goes on for long, with whatever the others have half done.
        let sleepiness = if cx.options.crowded { 100 } else { 24 };
        if cx.rng.one_in(sleepiness) {
            process.awake = cx.rng.below(2 * QUEUES as u64) as usize;
        }
        let queues = if has_job { QUEUES } else { COPIER } as u64;
        let queue = match process.awake as u64 {
            awake if awake < queues => process.awake,
            _ => cx.rng.below(queues) as usize,
        };
        match cx.rng.below(5) {
            0 | 1 if queue == COPIER => self.copy_up(cx),
            0 | 1 if process.requests.len() < 24 => self.submit(cx, queue),
            2 => {}
            _ => {
                if let Some(queue) = process.queues.get_mut(queue) {
                    queue.store_mut().step(&mut cx.rng);
                }
            }
        }
        self.look(cx, queue)
    }

    /// Has the model know what the page cache has forgotten.
    pub fn note_evicted(&mut self, cx: &Context) {
        let evicted = cx.files(&self.header).take_evicted();
        for sector in evicted {
            self.model.evicted(sector);
        }
    }

    /// Polls a queue, whose thread may not come to it for a while.
    fn look(&mut self, cx: &mut Context, queue: usize) -> Result<(), Stop> {
        self.note_evicted(cx);
        match cx.options.faulty && cx.rng.one_in(3) {
            true => Ok(()),
            false => self.poll(cx, queue),
        }
    }

    fn poll(&mut self, cx: &Context, queue: usize) -> Result<(), Stop> {
        // The copier is made when it is first used.
        let Some(queue) = self.process().queues.get_mut(queue) else {
            return Ok(());
        };
        let mut finished = Vec::new();
        // What is left is looked at by the next call, as a queue's thread does it.
        queue.poll_part();
        queue.take_finished(&mut finished);
        let finished: Vec<_> = finished.into_iter().map(Finished::take).collect();
        finished
            .into_iter()
            .try_for_each(|(token, result, _)| self.finish(cx, token, result))
    }

    fn poll_all(&mut self, cx: &mut Context) -> Result<(), Stop> {
        for queue in 0..self.process().queues.len() {
            self.process().queues[queue].store_mut().step(&mut cx.rng);
            self.look(cx, queue)?;
        }
        Ok(())
    }

    /// A random request whose sectors no other one has: what overlapping requests of a guest give
    /// is not defined.
    fn submit(&mut self, cx: &mut Context, queue: usize) {
        let kind = guest::kind(&mut cx.rng, &cx.options);
        let size = self.process().volume.geometry().size;
        let sectors = match kind {
            RequestKind::Flush => 0..0,
            _ => guest::range(&mut cx.rng, &cx.options, &cx.windows, size),
        };
        let taken = |r: &Request| r.sectors.start < sectors.end && sectors.start < r.sectors.end;
        if self.process().requests.iter().any(taken) {
            return;
        }
        let stamp = cx.stamp();
        let mut memory = Vec::new();
        if matches!(kind, RequestKind::Write { .. } | RequestKind::Read) {
            memory = vec![0xee; ((sectors.end - sectors.start) * 512) as usize];
        }
        match kind {
            RequestKind::Write { .. } => {
                for (sector, bytes) in sectors.clone().zip(memory.chunks_mut(512)) {
                    fill(bytes, sector, stamp);
                    self.model.begin(sector, stamp);
                }
            }
            RequestKind::Zero { .. } => sectors
                .clone()
                .for_each(|sector| self.model.begin(sector, 0)),
            RequestKind::Read | RequestKind::CopyUp { .. } | RequestKind::Flush => {}
        }
        self.start(cx, queue, kind, sectors, memory);
    }

    fn start(
        &mut self,
        cx: &mut Context,
        queue: usize,
        kind: RequestKind,
        sectors: std::ops::Range<u64>,
        memory: Vec<u8>,
    ) -> Token {
        let token = Token(cx.stamp());
        let asked = guest::request(kind, &sectors);
        let point = self.model.flush_point();
        // Guests do as they like while content is copied up.
        let sectors = match kind {
            RequestKind::CopyUp { .. } => 0..0,
            _ => sectors,
        };
        // What one queue does not know yet a write of another one may not have met, but a flush has.
        let after_failure = match kind {
            RequestKind::Flush | RequestKind::Zero { .. } => cx.files(&self.header).sync_fails,
            RequestKind::Write { .. } | RequestKind::Read | RequestKind::CopyUp { .. } => {
                cx.files(&self.header).sync_failed
            }
        };
        let errors = device(&cx.layers.device).errors;
        let request = Request {
            token,
            kind,
            sectors,
            memory,
            point,
            asked,
            after_failure,
            errors,
        };
        self.put(cx, queue, request);
        token
    }

    /// Gives a request to a queue.
    pub(super) fn put(&mut self, cx: &mut Context, queue: usize, mut request: Request) {
        let memory = guest::memory(cut(&mut cx.rng, &mut request.memory));
        let submission = Submission::new(request.token, request.asked, memory);
        let process = self.process();
        process.requests.push(request);
        process.queues[queue].submit(submission);
    }

    /// Copies up the next part of what the disk's job is about.
    fn copy_up(&mut self, cx: &mut Context) {
        let Some(job) = &self.header.job else { return };
        let drop = job.drop.len() as u8;
        let process = self.process.as_mut().unwrap();
        process.make_queues(cx, QUEUES);
        let (at, end) = (process.copied_up, process.volume.geometry().size);
        if at >= end || process.requests.len() > 24 {
            return;
        }
        let blocks = [1, 4, 16, 3000][cx.rng.below(4) as usize];
        process.copied_up = (at + blocks * BLOCK).min(end);
        let sectors = at / 512..process.copied_up / 512;
        self.start(
            cx,
            COPIER,
            RequestKind::CopyUp { drop },
            sectors,
            Vec::new(),
        );
    }

    /// Whether everything that the disk's job is about was copied up.
    pub fn is_copied_up(&mut self, fault: Fault) -> bool {
        let process = self.process();
        let copies_up = |request: &Request| matches!(request.kind, RequestKind::CopyUp { .. });
        process.copied_up >= process.volume.geometry().size
            && (fault == Fault::DropBeforeCopiedUp || !process.requests.iter().any(copies_up))
    }

    /// A job begins.
    pub fn restart_job(&mut self) {
        self.process().copied_up = 0;
    }

    fn finish(
        &mut self,
        cx: &Context,
        token: Token,
        result: Result<(), RequestError>,
    ) -> Result<(), Stop> {
        let requests = &mut self.process().requests;
        let index = requests.iter().position(|r| r.token == token);
        let request = requests.swap_remove(index.unwrap());
        if let Err(error) = result {
            return self.has_failed(cx, request, &error);
        }
        let durable = match request.kind {
            RequestKind::Flush => true,
            RequestKind::Write { durable } | RequestKind::Zero { durable, .. } => durable,
            RequestKind::Read | RequestKind::CopyUp { .. } => false,
        };
        if durable && request.after_failure {
            let what = format!("{:?} succeeded after a sync had failed", request.kind);
            return Err(Stop::Wrong(what));
        }
        let sectors = request.sectors;
        match request.kind {
            RequestKind::Read => {
                for (sector, bytes) in sectors.zip(request.memory.chunks(512)) {
                    let read = self.model.read(sector, stamp_of(bytes, sector));
                    read.map_err(Stop::Wrong)?;
                }
            }
            RequestKind::CopyUp { .. } => {}
            RequestKind::Flush => self.model.flushed(request.point),
            RequestKind::Write { durable } | RequestKind::Zero { durable, .. } => {
                sectors
                    .clone()
                    .for_each(|sector| self.model.complete(sector));
                if durable {
                    self.model.durable(sectors);
                }
            }
        }
        Ok(())
    }

    /// A request has failed, which it may only where the device has, or where a sync had failed.
    fn has_failed(
        &mut self,
        cx: &Context,
        request: Request,
        error: &RequestError,
    ) -> Result<(), Stop> {
        let told = error.failed_sync().is_some() && cx.files(&self.header).sync_failed;
        if !told && device(&cx.layers.device).errors == request.errors {
            let what = format!("{:?} failed though nothing did: {error}", request.kind);
            return Err(Stop::Wrong(what));
        }
        match request.kind {
            RequestKind::Read => {}
            RequestKind::Flush => self.process().failed.push(request.token),
            RequestKind::CopyUp { .. } => {
                let process = self.process();
                process.copied_up = process.copied_up.min(request.asked.at.0);
            }
            RequestKind::Write { .. } | RequestKind::Zero { .. } => {
                request.sectors.for_each(|sector| self.model.fail(sector));
            }
        }
        Ok(())
    }

    /// Makes everything completed durable, while others go on; whether it is.
    pub fn flush(&mut self, cx: &mut Context, queue: usize) -> Result<bool, Stop> {
        let token = self.start(cx, queue, RequestKind::Flush, 0..0, Vec::new());
        let mut patience = PATIENCE;
        while self.process().requests.iter().any(|r| r.token == token) {
            cx.may_crash(800)?;
            self.poll_all(cx)?;
            wait(&mut patience)?;
        }
        let failed = &mut self.process().failed;
        let succeeded = !failed.contains(&token);
        failed.clear();
        Ok(succeeded)
    }

    /// Completes everything that is under way; holes that are due are left for later. Then it is known
    /// what became of writes that failed.
    pub fn drain(&mut self, cx: &mut Context) -> Result<(), Stop> {
        let queues = &mut self.process().queues;
        queues.iter_mut().for_each(Pipeline::stop_punching);
        let mut patience = PATIENCE;
        while !self.process().is_drained() {
            cx.may_crash(800)?;
            self.poll_all(cx)?;
            wait(&mut patience)?;
        }
        if self.model.is_open() {
            // The header may be ahead of what is served.
            let process = self.process();
            let size = process.volume.geometry().size;
            let found = read_all(cx, &mut process.queues[0], size);
            if !self.header.failed && !self.is_failed() {
                self.model.adopt(&found);
            }
            self.model.read_all(&found).map_err(Stop::Wrong)?;
        }
        Ok(())
    }

    /// Goes on after [`Disk::drain`] as before.
    pub fn go_on(&mut self) {
        let queues = &mut self.process().queues;
        queues.iter_mut().for_each(Pipeline::punch_on);
    }

    /// Takes the new top layer, which the header names already. Everything was flushed and drained.
    pub fn push(&mut self, cx: &mut Context) -> Result<(), Stop> {
        let runtime = self.stamp(cx);
        cx.may_crash(12)?;
        let _calm = cx.layers.calm();
        let old = cx.layers.lower(self.header.layers[1]);
        let lower = std::iter::once(old)
            .chain(self.lower().iter().cloned())
            .collect();
        let top = cx.layers.map(self.header.layers[0]);
        let volume = Volume::open_runtime(top, lower, &runtime).unwrap();
        self.process().runtime = runtime;
        self.exchange(cx, volume);
        Ok(())
    }

    /// Takes other lower layers, which the header names already. Everything was drained.
    pub fn put_over(&mut self, cx: &Context, lower: Vec<Arc<LowerLayer>>) {
        let volume = self.process().volume.over(lower).unwrap();
        self.exchange(cx, volume);
    }

    fn exchange(&mut self, cx: &Context, volume: Volume) {
        let (header, volume) = (&self.header, Arc::new(volume));
        let process = self.process.as_mut().unwrap();
        for queue in &mut process.queues {
            let store = queue.store_mut().exchanged(cx.layers.files(header));
            *queue.store_mut() = store;
            queue.set_volume(volume.clone());
            queue.set_key(cx.layers.ciphers(header));
        }
        process.volume = volume;
        // What was copied up may not be all of it any more.
        process.copied_up = 0;
        process.served = header.clone();
        process.part_copier(cx);
    }

    /// Serves the size that the header says. Everything was drained.
    pub fn grow(&mut self) {
        let size = self.header.size();
        let process = self.process();
        let volume = process.volume.grown(size, &process.runtime).unwrap();
        process.volume = Arc::new(volume);
        for queue in &mut process.queues {
            queue.set_volume(process.volume.clone());
        }
    }

    /// Makes the runtime map long enough for the header's size.
    pub fn grow_runtime(&mut self, cx: &Context) {
        let geometry = cx.layers.geometry(self.header.layers[0]);
        self.process().runtime.grow(&geometry).unwrap();
    }

    /// Reads everything the guest may ever have written, through the first queue.
    pub fn read_all(&mut self, cx: &mut Context) -> Vec<Option<Stamp>> {
        let size = self.header.size();
        read_all(cx, &mut self.process().queues[0], size)
    }
}

impl Process {
    /// Whether nothing is under way, and everybody was told.
    fn is_drained(&self) -> bool {
        self.requests.is_empty() && self.queues.iter().all(Pipeline::is_idle)
    }

    /// Makes pipelines until there are `count`.
    fn make_queues(&mut self, cx: &Context, count: usize) {
        while self.queues.len() < count {
            let store = SimStore::new(cx.layers.files(&self.served), cx.options.alignment);
            let ciphers = cx.layers.ciphers(&self.served);
            let mut queue = Pipeline::new(self.volume.clone(), store, ciphers).unwrap();
            queue.set_overwrite(cx.options.overwrite);
            self.queues.push(queue);
            if self.queues.len() > COPIER {
                self.part_copier(cx);
            }
        }
    }

    /// Has the copier work on a volume of its own, if that is the fault.
    fn part_copier(&mut self, cx: &Context) {
        if cx.options.fault != Fault::CopiesUpUnmarked || self.queues.len() <= COPIER {
            return;
        }
        let _calm = cx.layers.calm();
        let (top, lower) = (cx.layers.map(self.served.layers[0]), self.volume.lower());
        let volume = Volume::open_runtime(top, lower.to_vec(), &self.runtime).unwrap();
        self.queues[COPIER].set_volume(Arc::new(volume));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.process = None;
        let _ = std::fs::remove_file(&self.runtime);
    }
}

/// One more step of something that must end.
pub fn wait(patience: &mut u64) -> Result<(), Stop> {
    *patience -= 1;
    match *patience {
        0 => Err(Stop::Wrong("requests hang for good".into())),
        _ => Ok(()),
    }
}

/// Memory in pieces, cut anywhere.
fn cut(rng: &mut super::rng::Rng, memory: &mut [u8]) -> Vec<SharedSlice> {
    let mut slices = Vec::new();
    let (mut at, len) = (0, memory.len());
    while at < len {
        let most = (len - at) as u64;
        let piece = match rng.one_in(2) {
            true => most,
            false => 1 + rng.below(most),
        } as usize;
        let ptr = NonNull::from(&mut memory[at]);
        // SAFETY: the vector that this is of is kept, unmoved on the heap and untouched, until the
        // request has finished or its pipeline is gone.
        slices.push(unsafe { SharedSlice::new(ptr, piece) });
        at += piece;
    }
    slices
}

/// Reads all windows of a disk of `size` bytes.
pub fn read_all(cx: &mut Context, queue: &mut Queue, size: u64) -> Vec<Option<Stamp>> {
    let _calm = cx.layers.calm();
    let mut found = vec![None; cx.windows.sectors()];
    for window in 0..cx.windows.len() {
        let (start, len) = cx.windows.present(window, size);
        let mut memory = vec![0xee; (len * 512) as usize];
        let slices = cut(&mut cx.rng, &mut memory);
        let request = guest::request(RequestKind::Read, &(start..start + len));
        queue.submit(Submission::new(Token(0), request, guest::memory(slices)));
        let mut finished = Vec::new();
        while finished.is_empty() {
            queue.store_mut().step(&mut cx.rng);
            queue.poll();
            queue.take_finished(&mut finished);
        }
        for done in finished {
            let _ = done.take();
        }
        for (sector, bytes) in (start..).zip(memory.chunks(512)) {
            found[cx.windows.index(sector)] = Some(stamp_of(bytes, sector));
        }
    }
    found
}
