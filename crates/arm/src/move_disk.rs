//! Moves of disks between one and two DEKs: the data of a disk is copied under a new DEK.
//!
//! The copy is a job that the disk's header names. The process that has the disk attached does it, else a thread of
//! this server. What a kill interrupts is gone on with by the same PUT, by `sealdisk disk update`, and by the next
//! attach. Here is where it would become an operation that a client polls: until then a resource says by its
//! `provisioningState` that it goes on, which Azure's clients poll too.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::changing::Changes;
use crate::error::ArmError;
use crate::moving::Move;
use attach::LayerChanges;
use disks::import::Cancel;
use disks::{Disk, JobChange, LayerOp, Outline};
use installation::Installation;
use installation::envelope::{JobKind, ResourceKind};

/// How long a request waits for the end of a copy; it goes on behind the answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Changes {
    /// Whether the data of a disk is being copied under a DEK of the kind of its set.
    pub(crate) fn is_moving(&self, view: &Outline) -> bool {
        // Who has it attached does the job. One that is paused, or that nobody does, would be polled for ever.
        let by_attach = view.attached.is_some() && is_rotating(view, false);
        by_attach || self.moving.has(view.unique_id)
    }

    /// Wraps a disk under the key of a set that encrypts another number of times, or under the platform-managed key,
    /// gives it a DEK of that kind, and copies its data. What was begun is gone on with.
    ///
    /// # Errors
    /// Why it is not begun: the disk is under the key and the DEK that it had, or under the key alone, which the same
    /// call puts right.
    pub(crate) fn move_disk(
        &self,
        installation: &Installation,
        view: &Outline,
        set: Option<&str>,
    ) -> Result<(), ArmError> {
        let is_under = view.encryption.disk_encryption_set_id.as_deref() == set;
        let is_begun = is_under && is_rotating(view, true);
        if is_begun && !is_rotating(view, false) {
            // Whoever has paused it resumes it.
            return Ok(());
        }
        let Some(moving) = self.moving.begin(view.unique_id)? else {
            return match is_begun {
                true => Ok(()),
                false => Err(ArmError::conflict(format!(
                    "The data of the disk '{}' is being copied. Try again when its provisioningState is Succeeded.",
                    view.name
                ))),
            };
        };
        let op = if is_begun {
            LayerOp::Job {
                kind: Some(JobKind::Rotate),
                change: JobChange::Resume(None),
            }
        } else {
            disks::update(installation, ResourceKind::Disk, &view.name, set)?;
            LayerOp::RotateDek { rate: None }
        };
        self.copy(moving, view.name.clone(), op)
    }

    /// Copies in a thread of its own, and waits for a while.
    fn copy(&self, moving: Move, name: String, op: LayerOp) -> Result<(), ArmError> {
        let (state_dir, runtime_dir) = (self.state_dir.clone(), self.runtime_dir.clone());
        let (tell, told) = channel();
        let work = move || {
            let copied = copy_now(&state_dir, &runtime_dir, &name, &op);
            drop(moving);
            if let Err(unheard) = tell.send(copied)
                && let Err(error) = unheard.0
            {
                log::error!(
                    "the disk '{name}' is not encrypted as its set says yet: {}",
                    error.message
                );
            }
        };
        let started = std::thread::Builder::new().name("move".into()).spawn(work);
        started.map_err(ArmError::internal)?;
        match told.recv_timeout(PATIENCE) {
            Ok(copied) => copied,
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                Err(ArmError::internal("the thread that copies a disk failed"))
            }
        }
    }
}

/// Whether a disk's data is being copied under a new DEK, or with `paused` would be.
fn is_rotating(view: &Outline, paused: bool) -> bool {
    let job = view.job.as_ref();
    job.is_some_and(|job| job.kind == JobKind::Rotate && (paused || !job.paused))
}

fn copy_now(
    state_dir: &Path,
    runtime_dir: &Path,
    name: &str,
    op: &LayerOp,
) -> Result<(), ArmError> {
    let installation = Installation::open_existing(state_dir)?;
    let changes = LayerChanges {
        installation: &installation,
        runtime_dir,
        cancel: &Cancel::default(),
        wait: true,
    };
    let disk = Disk::find(&installation, name)?;
    changes.change_layers(&disk, op, &mut |_| {})?;
    Ok(())
}
