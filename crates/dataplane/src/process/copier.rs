//! Copying up into the top layer, in the background, what it lacks when layers beneath it are to go.
//!
//! A thread of its own goes over the disk once, among the guest's requests and by the same block
//! marks. The durable map is all that is known of what is done: beginning again after an end of
//! any kind finds what is left by it. The thread has ciphers of its own while it works and leaves none
//! behind; a revoked key ends it before anything else of the key is destroyed.
//!
//! It uses the volume that it began with. So it is stopped before that is swapped for another, and
//! begun again afterwards where the copy is still to be done (the disk has grown, or was resumed).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keys::units::BLOCK_SIZE;
use keys::{ROOMY_STACK, spawn_with_keys};
use protocol::{CopyProgress, CopyRequest, CopyState, Line};
use volume::pipeline::{DiskIo, PipelineError};
use volume::{Missing, Run, Volume, VolumeError};

use crate::disk::shared::{Extent, Shared};
use crate::disk::sync_alarm::SyncAlarm;

/// Bytes that are copied in one go, some at a time, for whose blocks the guest waits meanwhile.
const STEP: u64 = 4 << 20;
/// Blocks that are only looked at in one go.
const LOOK: u64 = 1 << 20;
/// How long a map is waited for that another thread loads.
const RETRY: Duration = Duration::from_micros(200);
/// How long after an error it is tried again, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(500);
const MAX_BACK_OFF: Duration = Duration::from_secs(8);

/// The copy of this process: there is one at most.
#[derive(Default)]
pub(crate) struct Copier {
    progress: Arc<Mutex<CopyProgress>>,
    running: Option<Running>,
}

struct Running {
    request: CopyRequest,
    /// Its end ends the thread.
    _go_on: Sender<()>,
    thread: JoinHandle<()>,
}

impl Copier {
    /// Begins a copy, instead of the one that there may be.
    ///
    /// # Errors
    /// Why there is none now.
    pub(crate) fn start(
        &mut self,
        shared: &Arc<Shared>,
        request: CopyRequest,
    ) -> Result<(), String> {
        self.stop();
        let extent = shared.extent();
        let beneath = extent.volume.lower().len();
        if request.drop == 0 || usize::from(request.drop) > beneath {
            return Err(format!(
                "{} layers cannot go of the {beneath} beneath the top",
                request.drop
            ));
        }
        if extent.disk.read_only {
            return Err("the disk is attached read-only".into());
        }
        if let Some(file) = extent.volume.failed_sync() {
            return Err(format!(
                "a sync of the disk's {file} has failed, so nothing that is copied could be relied on"
            ));
        }
        if !shared.key.is_held() {
            return Err("the disk's key is revoked".into());
        }
        *lock(&self.progress) = CopyProgress {
            state: CopyState::Running,
            ..CopyProgress::default()
        };
        let (go_on, told) = channel();
        let (shared, progress) = (shared.clone(), self.progress.clone());
        let work = move || work(&shared, &extent, request, &told, &progress);
        let thread = spawn_with_keys("copier".into(), ROOMY_STACK, work).map_err(|error| {
            *lock(&self.progress) = CopyProgress::default();
            error.to_string()
        })?;
        self.running = Some(Running {
            request,
            _go_on: go_on,
            thread,
        });
        Ok(())
    }

    /// Ends the copy after the operations that are under way, whatever the guest does with the blocks that come
    /// next: who calls this can do nothing else meanwhile. Which it was, unless it had come to its end. No key of it is
    /// left then.
    pub(crate) fn stop(&mut self) -> Option<CopyRequest> {
        let Running {
            request,
            _go_on,
            thread,
        } = self.running.take()?;
        drop(_go_on);
        // A panic of any thread ends the process.
        let _ = thread.join();
        let mut progress = lock(&self.progress);
        let was = progress.state;
        if was == CopyState::Running {
            *progress = CopyProgress::default();
        }
        (was == CopyState::Running).then_some(request)
    }

    pub(crate) fn progress(&self) -> CopyProgress {
        lock(&self.progress).clone()
    }
}

fn lock(progress: &Mutex<CopyProgress>) -> MutexGuard<'_, CopyProgress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a copy does not go on.
enum Ended {
    /// It was told to.
    Stopped,
    Failed(String),
}

impl<E: std::error::Error> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

fn work(
    shared: &Shared,
    extent: &Extent,
    request: CopyRequest,
    told: &Receiver<()>,
    progress: &Mutex<CopyProgress>,
) {
    let copied = Copy::new(shared, extent, request, told, progress).and_then(Copy::run);
    let mut progress = lock(progress);
    match copied {
        Ok(()) => {
            progress.state = CopyState::Done;
            progress.bytes_done = progress.bytes_total;
            progress.error = None;
        }
        Err(Ended::Stopped) => {}
        Err(Ended::Failed(error)) => {
            log::warn!("copying up into the top layer has failed: {error}");
            progress.state = CopyState::Failed;
            progress.error = Some(error.into());
        }
    }
}

/// A copy under way.
struct Copy<'a> {
    volume: &'a Volume,
    /// Set by the queues when a guest asks for something.
    in_use: &'a AtomicBool,
    sync_alarm: &'a SyncAlarm,
    io: DiskIo,
    request: CopyRequest,
    told: &'a Receiver<()>,
    progress: &'a Mutex<CopyProgress>,
    /// When the next step may begin, for the rate's sake.
    next: Instant,
    back_off: Duration,
}

impl<'a> Copy<'a> {
    fn new(
        shared: &'a Shared,
        extent: &'a Extent,
        request: CopyRequest,
        told: &'a Receiver<()>,
        progress: &'a Mutex<CopyProgress>,
    ) -> Result<Self, Ended> {
        let volume = &extent.volume;
        let ciphers = shared.key.ciphers(&volume.data_units())?;
        let ciphers = ciphers.map_err(|_| Ended::Failed("the disk's key is revoked".into()))?;
        let (store, pool) = (
            shared.lent_store(extent.files.clone())?,
            shared.other_pool()?,
        );
        let io = DiskIo::on(store, volume.clone(), Some(ciphers), pool)?;
        Ok(Self {
            volume,
            in_use: &shared.in_use,
            sync_alarm: &shared.sync_alarm,
            io,
            request,
            told,
            progress,
            next: Instant::now(),
            back_off: BACK_OFF,
        })
    }

    fn run(mut self) -> Result<(), Ended> {
        let drop = usize::from(self.request.drop);
        let (done, total) = loop {
            let goes_on = || self.pause(Duration::ZERO).is_ok();
            match self.volume.copy_up_progress(drop, &goes_on) {
                Ok(share) => break share,
                Err(VolumeError::Stopped) => return Err(Ended::Stopped),
                Err(error) => self.hold_up(error)?,
            }
        };
        {
            let mut progress = lock(self.progress);
            progress.bytes_done = done * BLOCK_SIZE;
            progress.bytes_total = total * BLOCK_SIZE;
        }
        self.over_the_disk(|this, run| this.step(run))?;
        while let Err(error) = self.io.flush() {
            if self.volume.failed_sync().is_some() {
                self.sync_alarm.look(self.volume);
                return Err(error.into());
            }
            self.hold_up(error)?;
        }
        Ok(())
    }

    /// Gives each run of blocks to `each`, which tells how many of them it is through with.
    fn over_the_disk(
        &mut self,
        mut each: impl FnMut(&mut Self, Found) -> Result<u64, Ended>,
    ) -> Result<(), Ended> {
        let (mut at, blocks) = (0, self.volume.map().blocks());
        while at < blocks {
            self.pause(Duration::ZERO)?;
            let most = LOOK.min(blocks - at);
            match self
                .volume
                .missing(at, most, usize::from(self.request.drop))
            {
                Ok(Some(Run { what, blocks })) => at += each(self, Found { at, what, blocks })?,
                Ok(None) => self.pause(RETRY)?,
                Err(error) => self.hold_up(error)?,
            }
        }
        Ok(())
    }

    /// Copies the first of the blocks that are lacking. None when that fails: it is tried again.
    fn step(&mut self, run: Found) -> Result<u64, Ended> {
        let content = match run.what {
            Missing::Nothing => return Ok(run.blocks),
            Missing::Content(_) => true,
            Missing::Zeros => false,
        };
        let blocks = match content {
            true => run.blocks.min(STEP / BLOCK_SIZE),
            false => run.blocks,
        };
        let start = run.at * BLOCK_SIZE;
        let len = (blocks * BLOCK_SIZE).min(self.volume.geometry().size - start);
        let begun = Instant::now();
        let told = self.told;
        let goes_on = || told.try_recv() == Err(TryRecvError::Empty);
        let copied = self.io.copy_up(start, len, self.request.drop, &goes_on);
        if let Err(error) = copied {
            self.hold_up(error)?;
            return Ok(0);
        }
        self.back_off = BACK_OFF;
        let mut progress = lock(self.progress);
        progress.error = None;
        if content {
            progress.bytes_done = (progress.bytes_done + len).min(progress.bytes_total);
            drop(progress);
            self.keep_rate(len)?;
            // A duty cycle of 50 % while the guest is active.
            if self.in_use.swap(false, Ordering::Relaxed) {
                self.pause(begun.elapsed())?;
            }
        }
        Ok(blocks)
    }

    /// Waits until the rate allows the next step.
    fn keep_rate(&mut self, copied: u64) -> Result<(), Ended> {
        let Some(rate) = self.request.rate else {
            return Ok(());
        };
        let now = Instant::now();
        let cost = Duration::from_secs_f64(copied as f64 / rate.max(1) as f64);
        self.next = self.next.max(now) + cost;
        self.pause(self.next - now)
    }

    /// Waits a while after an error, longer each time.
    fn hold_up(&mut self, error: impl Into<HeldUp>) -> Result<(), Ended> {
        if self.io.has_failed() {
            // Blocks stay marked that guests would wait for: the supervisor starts another process.
            log::error!("the copier's ring has failed");
            std::process::exit(1);
        }
        // Then it may be no more than what was given up for that.
        self.pause(Duration::ZERO)?;
        let HeldUp(error) = error.into();
        let error = Line::from(error);
        let known = lock(self.progress).error.replace(error.clone());
        if known.as_ref() != Some(&error) {
            log::warn!("copying up into the top layer is held up: {error}; it is tried again");
        }
        let wait = self.back_off;
        self.back_off = (wait * 2).min(MAX_BACK_OFF);
        self.pause(wait)
    }

    /// Waits, unless it is told to stop.
    fn pause(&self, wait: Duration) -> Result<(), Ended> {
        match self.told.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Ended::Stopped),
        }
    }
}

/// Neighbouring blocks that lack the same.
struct Found {
    at: u64,
    what: Missing,
    blocks: u64,
}

/// What a copy is held up by.
struct HeldUp(String);

impl From<PipelineError> for HeldUp {
    fn from(error: PipelineError) -> Self {
        Self(error.to_string())
    }
}

impl From<VolumeError> for HeldUp {
    fn from(error: VolumeError) -> Self {
        Self(error.to_string())
    }
}
