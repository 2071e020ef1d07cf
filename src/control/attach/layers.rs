//! The layers of an attached disk: what others ask this process to do with them, and the job that
//! goes on until the header has none.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::Installation;
use crate::control::disks::{self, Disk, DiskError, FreezeRequest, JobChange, Running};
use crate::envelope::{HeaderPayload, Job, JobKind};
use crate::frontend::{CopyProgress, CopyRequest, CopyState, DiskFiles};
use crate::pipeline::PipelineError;
use crate::store::LayerFile;
use crate::volume::RuntimeMap;

use super::board::Board;
use super::commands::Commands;
use super::growth::Growth;
use super::stack_of;
use super::status::JobStatus;

/// How often a job that goes on is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long a job that is held up waits until it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What others may ask for. The answer is whether there was anything to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum LayerRequest {
    /// Make a snapshot or an image.
    Freeze(FreezeRequest),
    /// Give the disk a new DEK.
    RotateDek { rate: Option<u64> },
    /// Make it independent of everything beneath its top layer.
    Flatten { rate: Option<u64> },
    /// Copy a layer into the top one and drop it.
    Merge { layer: Uuid },
    /// Drop layers whose content is in those above them.
    Shed { layers: Vec<Uuid> },
    /// Change the job that there is.
    Job {
        kind: Option<JobKind>,
        change: JobChange,
    },
}

/// Where requests about layers go.
pub(super) struct Layers {
    inner: Arc<Inner>,
    wake: Sender<()>,
}

struct Inner {
    installation: Arc<Installation>,
    disk: Arc<Disk>,
    commands: Arc<Commands>,
    board: Arc<Board>,
    /// Held while the stack is being changed.
    running: Mutex<AttachedStack>,
}

impl Layers {
    /// Starts the thread that sees to the disk's job.
    pub(super) fn start(
        installation: Arc<Installation>,
        disk: Arc<Disk>,
        commands: Arc<Commands>,
        board: Arc<Board>,
        growth: Arc<Growth>,
        runtime_path: PathBuf,
    ) -> std::io::Result<Self> {
        let running = AttachedStack {
            disk: disk.clone(),
            commands: commands.clone(),
            growth,
            runtime_path,
        };
        let inner = Arc::new(Inner {
            installation,
            disk,
            commands,
            board,
            running: Mutex::new(running),
        });
        let (wake, woken) = channel();
        let jobs = inner.clone();
        // It is never joined: it must not delay the end of the attach, and has nothing to put away.
        std::thread::Builder::new()
            .name("layers".into())
            .spawn(move || jobs.see_to_jobs(&woken))?;
        Ok(Self { inner, wake })
    }

    /// Does what is asked for; whether there was anything to do. An error is one line.
    pub(super) fn serve(&self, request: LayerRequest) -> Result<bool, String> {
        let done = self.inner.serve(request);
        // Should the thread have ended, the process is about to.
        let _ = self.wake.send(());
        done.map_err(|error| error.to_string().replace('\n', " "))
    }
}

impl Inner {
    fn serve(&self, request: LayerRequest) -> Result<bool, DiskError> {
        let (installation, disk) = (&*self.installation, &*self.disk);
        let mut running = self.running();
        match request {
            LayerRequest::Freeze(request) => {
                disks::freeze_into(installation, &request, disk, &mut *running).map(|()| true)
            }
            LayerRequest::RotateDek { rate } => {
                disks::begin_rotation(installation, disk, &mut *running, rate).map(|()| true)
            }
            LayerRequest::Flatten { rate } => disks::begin_flatten(installation, disk, rate),
            LayerRequest::Merge { layer } => disks::begin_merge(installation, disk, layer),
            LayerRequest::Shed { layers } => {
                disks::shed(installation, disk, &mut *running, &layers).map(|()| true)
            }
            LayerRequest::Job { kind, change } => {
                disks::change_job(installation, disk, kind, change)?;
                // It begins anew as the header says now, if it does.
                self.commands
                    .copy_stop()
                    .map(|()| true)
                    .map_err(|why| attached(disk, why))
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, AttachedStack> {
        // A stack is exchanged as a whole, by the data plane.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see_to_jobs(&self, woken: &Receiver<()>) {
        loop {
            let next = match self.see_to_job() {
                Ok(next) => next,
                Err((job, error)) => {
                    let error = error.replace('\n', " ");
                    log::warn!("the job of the disk {}: {error}", self.disk.name());
                    self.publish(job.as_ref(), &CopyProgress::default(), Some(error));
                    Some(RETRY)
                }
            };
            let woken = match next {
                Some(wait) => woken.recv_timeout(wait),
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if matches!(woken, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Takes the job that the header has a step further. When to look again; not by itself if there
    /// is nothing to do.
    fn see_to_job(&self) -> Result<Option<Duration>, (Option<Job>, String)> {
        let header = self
            .disk
            .header_file()
            .and_then(|file| Ok(file.read()?))
            .map_err(|e| (None, e.to_string()))?;
        let header = header.claims();
        let Some(job) = &header.job else {
            self.board.set_job(None);
            return Ok(None);
        };
        let fail = |error: String| (Some(job.clone()), error);
        let progress = self.commands.progress().map_err(&fail)?;
        self.publish(Some(job), &progress, progress.error.clone());
        if job.paused {
            return Ok(None);
        }
        match progress.state {
            CopyState::Running => Ok(Some(LOOK)),
            CopyState::Idle | CopyState::Failed => {
                self.begin(header, job).map_err(fail)?;
                Ok(Some(LOOK))
            }
            CopyState::Done => {
                let mut running = self.running();
                disks::finish_job(&self.installation, &self.disk, &mut *running)
                    .map_err(|e| fail(e.to_string()))?;
                log::info!("the disk {}: {} is done", self.disk.name(), job.kind);
                Ok(Some(Duration::ZERO))
            }
        }
    }

    fn begin(&self, header: &HeaderPayload, job: &Job) -> Result<(), String> {
        let request = CopyRequest {
            drop: disks::layers_to_drop(header, job).map_err(|e| e.to_string())?,
            rate: job.rate,
        };
        self.commands.copy(&request)
    }

    fn publish(&self, job: Option<&Job>, progress: &CopyProgress, error: Option<String>) {
        self.board.set_job(job.map(|job| JobStatus {
            kind: job.kind,
            paused: job.paused,
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            error,
        }));
    }
}

/// A disk that a guest uses, through the data plane of this process.
struct AttachedStack {
    disk: Arc<Disk>,
    commands: Arc<Commands>,
    growth: Arc<Growth>,
    runtime_path: PathBuf,
}

impl AttachedStack {
    fn open(&self, stack: &mut disks::NewStack<'_>) -> Result<DiskFiles, DiskError> {
        let header = stack.header;
        let paths = |layer: &_| self.disk.layer_paths(layer);
        let top = header.top().ok_or_else(|| DiskError::Attached {
            name: header.name.clone(),
            why: "its header names no layer".into(),
        })?;
        let data = match stack.claim.take() {
            Some(claim) => claim,
            None => LayerFile::open(&paths(top).data).map_err(PipelineError::from)?,
        };
        let geometry = disks::geometry(header, top)?;
        // That of the layer that was the top before counts no more: it was flushed.
        let ids = (header.attach, header.attach);
        let (runtime, _) = RuntimeMap::open(&self.runtime_path, &geometry, ids.0, ids.1)?;
        self.growth.exchange(top.id, runtime.try_clone()?);
        Ok(DiskFiles {
            files: disks::open_files(data, header, paths)?,
            runtime,
            lower_maps: disks::lower_maps(header, paths)?,
        })
    }
}

impl Running for AttachedStack {
    fn freeze(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
        self.commands
            .freeze()
            .map_err(|why| attached(&self.disk, why))
    }

    fn restack(&mut self, mut stack: disks::NewStack<'_>) -> Result<(), DiskError> {
        let exchanged = self.open(&mut stack).and_then(|files| {
            let described = stack_of(stack.header)?;
            self.commands
                .restack(&described, &files, stack.deks)
                .map_err(|why| attached(&self.disk, why))
        });
        if let Err(error) = &exchanged {
            log::error!(
                "the disk {} has another stack of layers now, which its data plane cannot take: it \
                 ends ({error}); attach the disk again",
                self.disk.name()
            );
            self.end();
        }
        exchanged
    }

    fn thaw(&mut self) {
        if let Err(error) = self.commands.thaw() {
            log::error!("the data plane stands still, so it ends: {error}");
            self.end();
        }
    }

    fn end(&mut self) {
        // One that cannot be told is at its end.
        let _ = self.commands.end();
    }
}

fn attached(disk: &Disk, why: String) -> DiskError {
    DiskError::Attached {
        name: disk.name().into(),
        why,
    }
}
