//! The job of an attached disk's layers, which its header names: the data plane copies in the
//! background, and the layers that nothing is needed of any more are dropped in the end.
//!
//! A thread does what the header says, from the attach on, and looks again whenever it is woken. All
//! that it knows is in the header and in the durable map, so it can end with the process at any time.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::serve::attached_disk::AttachedDisk;
use crate::serve::event_hub::EventHub;
use crate::serve::trouble::Trouble;
use crate::status::JobStatus;
use disks::{self, Disk, DiskError, LayerOp};
use installation::Installation;
use installation::envelope::{Header, Job};
use keys::with_wiped_call_stack;
use protocol::{Commands, CopyProgress, CopyRequest, CopyState, ProtocolError};

/// How often the data plane is asked how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// How long after a failure it is tried again; the key may be revoked, or storage full.
const AGAIN: Duration = Duration::from_secs(2);

/// Wakes the thread.
#[derive(Clone)]
pub(crate) struct Jobs(Sender<()>);

/// What the thread works with.
pub(crate) struct Work {
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) event_hub: Arc<EventHub>,
    /// What holds the job up.
    pub(crate) trouble: RefCell<Trouble>,
}

/// What is to be done next.
enum Next {
    /// To look at the header again.
    Look,
    /// The same after a while, or when woken.
    Later,
    /// Nothing until woken.
    Rest,
}

impl Jobs {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn spawn(work: Work) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        // It is never joined: it ends with the process, wherever it is.
        std::thread::Builder::new()
            .name("jobs".into())
            .spawn(move || work.run(&woken))?;
        Ok(Self(wake))
    }

    /// Has the header looked at again, which says something else of the job.
    pub(crate) fn look(&self) {
        // It has ended only with its panic, after which a job goes on with the next attach.
        let _ = self.0.send(());
    }
}

impl Work {
    fn run(self, woken: &Receiver<()>) {
        let mut known = None;
        loop {
            let next = self.follow(woken).unwrap_or_else(|error| {
                let error = error.to_string();
                let met = Some(error.clone());
                let _ = self.trouble.borrow_mut().met(met, Instant::now());
                self.event_hub.job_held_up(error.clone());
                if known.as_ref() != Some(&error) {
                    log::warn!("the job of the disk {} waits: {error}", self.disk.name());
                    known = Some(error);
                }
                Next::Later
            });
            let waited = match next {
                Next::Look => Ok(()),
                Next::Later => woken.recv_timeout(AGAIN),
                Next::Rest => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if matches!(waited, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Does what the header says.
    fn follow(&self, woken: &Receiver<()>) -> Result<Next, DiskError> {
        // The job goes on with whoever has the disk.
        if !self.attached_disk.is_held() {
            self.end();
            return Ok(Next::Later);
        }
        // What is dropped in the end is destroyed, so only an authentic header says what.
        let header = match self.disk.header_file()?.read()?.claims().job {
            Some(_) => self.authentic_header()?,
            None => {
                if self.end() {
                    self.told(self.commands.stop_copy_up())?;
                }
                return Ok(Next::Rest);
            }
        };
        let Some(job) = &header.job else {
            return Ok(Next::Look);
        };
        if job.paused {
            self.trouble.borrow_mut().end();
        }
        self.show(job, None);
        if job.paused {
            self.told(self.commands.stop_copy_up())?;
            return Ok(Next::Rest);
        }
        let request = CopyRequest {
            drop: disks::layers_to_drop(&header, job)?,
            rate: job.rate,
        };
        self.told(self.commands.start_copy_up(request))?;
        match self.watch(job, woken)? {
            CopyState::Done => {
                let _turn = self.attached_disk.turns().wait();
                if !self.attached_disk.is_held() {
                    return Ok(Next::Look);
                }
                // Another job, of another top layer, may have taken its place.
                if self.disk.header_file()?.read()?.claims().job.as_ref() != Some(job) {
                    return Ok(Next::Look);
                }
                let (layers, mut volume) = (job.drop.clone(), &*self.attached_disk);
                let drop_layers = LayerOp::DropLayers { layers };
                with_wiped_call_stack(|| {
                    drop_layers.apply(&self.installation, &self.disk, &mut volume)
                })?;
                log::info!("the job of the disk {} is done", self.disk.name());
                Ok(Next::Look)
            }
            // Woken.
            CopyState::Running => Ok(Next::Look),
            // It was stopped for something else, as a revoked key is.
            CopyState::Idle | CopyState::Failed => Ok(Next::Later),
        }
    }

    /// Waits for the end of the copy, or until woken.
    fn watch(&self, job: &Job, woken: &Receiver<()>) -> Result<CopyState, DiskError> {
        loop {
            let progress = self.told(self.commands.copy_up_progress())?;
            self.show(job, Some(&progress));
            if progress.state != CopyState::Running || woken.recv_timeout(LOOK).is_ok() {
                return Ok(progress.state);
            }
        }
    }

    fn authentic_header(&self) -> Result<Header, DiskError> {
        with_wiped_call_stack(|| {
            let header = self.disk.header_file()?.read()?;
            Ok(self.disk.unlock(&self.installation, header)?.0)
        })
    }

    /// There is no job any more; whether there was one.
    fn end(&self) -> bool {
        self.trouble.borrow_mut().end();
        self.event_hub.set_job(None).is_some()
    }

    fn show(&self, job: &Job, progress: Option<&CopyProgress>) {
        let known = self
            .event_hub
            .status()
            .job
            .filter(|known| known.kind == job.kind);
        let (bytes_done, bytes_total) = match (progress, known) {
            (Some(progress), _) => (progress.bytes_done, progress.bytes_total),
            (None, Some(known)) => (known.bytes_done, known.bytes_total),
            (None, None) => (0, 0),
        };
        let error = progress.and_then(|progress| progress.error.clone().map(String::from));
        let error = self.trouble.borrow_mut().met(error, Instant::now());
        self.event_hub.set_job(Some(JobStatus {
            kind: job.kind,
            paused: job.paused,
            bytes_done,
            bytes_total,
            error,
        }));
    }

    fn told<T>(&self, result: Result<T, ProtocolError>) -> Result<T, DiskError> {
        result.map_err(|why| DiskError::Attached {
            name: self.disk.name().into(),
            why: why.to_string(),
        })
    }
}
