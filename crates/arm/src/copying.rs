//! Copying the data of a disk or a snapshot under a new DEK, as the job in its header says: what all
//! [operations](crate::operations) have in common that do.
//!
//! How far it is says the header, whoever has written it: what a process that died has done is not done again. The job is
//! done by whoever has the disk attached, else here. One that somebody paused, and a disk that somebody has changed
//! otherwise since, end the operation, and are left as they are.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::call::Call;
use crate::error::ArmError;
use crate::operations::{self, Share, preempted};
use crate::places::placement;
use disks::import::Cancel;
use disks::{Disk, DiskError, JobProgress};
use installation::catalog::{OperationRecord, OperationState};
use installation::envelope::{HeaderPayload, ResourceKind};

/// How long a request waits for the end of a copy, which goes on behind the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a deletion waits for a copy that it has ended: for a few MiB of it.
const ENDING: Duration = Duration::from_secs(10);
/// How often it is looked how far it is, while somebody else has the disk: at first, and later.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_secs(1);
/// How long what passes by, as a vault that is not reached, does not end what is begun.
const TROUBLE: Duration = Duration::from_secs(600);

/// What is to be copied.
pub trait Copying {
    /// How far it is.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn stage(&self) -> Result<Stage, ArmError>;

    /// Has the header name the job, where it does not from the beginning.
    ///
    /// # Errors
    /// Why not.
    fn begin(&self, _disk: &Disk) -> Result<(), ArmError> {
        Ok(())
    }

    /// Whether it was begun by a process that has ended: nobody waits for an answer.
    fn is_again(&self) -> bool;
}

/// How far a copy is.
pub enum Stage {
    /// Nothing is copied yet.
    ToBegin(Disk),
    /// The header has the job.
    ToCopy(Disk),
    /// There is nothing to do any more.
    Ended(End),
}

/// How a copy has ended.
pub enum End {
    /// All is copied.
    Copied,
    /// Somebody has paused its job.
    Paused,
    /// Somebody has done something else with the disk, as aborted its job.
    Changed,
    /// There is no such disk any more.
    Deleted,
}

/// What a step has come to.
enum Step {
    /// The next one can be made.
    Done,
    /// Somebody else is at it.
    Waits,
    Ended(End),
}

/// What a request is answered that has begun such an operation: its id, unless it has ended by now.
///
/// # Errors
/// Why it has failed by now.
pub fn begun(call: &Call<'_>, id: Uuid) -> Result<Option<Uuid>, ArmError> {
    let record = operations::wait(call, id, PATIENCE)?;
    match record.state {
        OperationState::Running => Ok(Some(id)),
        OperationState::Succeeded => Ok(None),
        OperationState::Failed | OperationState::Canceled => Err(operations::failure(&record)),
    }
}

/// Ends the copy of the data of a disk or a snapshot that keeps it from being deleted; whether there was one.
///
/// # Errors
/// When it cannot be found out.
pub fn end(call: &Call<'_>, kind: ResourceKind, name: &str) -> Result<bool, ArmError> {
    let id = call.id(&placement(call, kind.into(), name)?);
    let going = &call.changes.going;
    let ended = going.cancel_copy(&id);
    if let Some(operation) = ended {
        going.wait(operation, ENDING);
    }
    Ok(ended.is_some())
}

/// The one of that name, unless it is gone or being deleted.
///
/// # Errors
/// When it cannot be found out.
pub fn find(call: &Call<'_>, kind: ResourceKind, name: &str) -> Result<Option<Disk>, ArmError> {
    match Disk::of_kind(call.installation(), kind, name) {
        Ok(disk) => Ok(Some(disk)),
        Err(DiskError::Unfinished { .. }) => Ok(None),
        Err(error) => match ArmError::from(error) {
            missing if missing.status == 404 => Ok(None),
            error => Err(error),
        },
    }
}

/// What its header says.
///
/// # Errors
/// When it cannot be read.
pub fn header(disk: &Disk) -> Result<HeaderPayload, DiskError> {
    Ok(disk.header_file()?.read()?.claims().clone())
}

/// What has become of an operation whose copy has ended so. `what` it is of, and the command of `sealdisk disk` that goes on
/// with a job that is paused.
pub fn state(record: &mut OperationRecord, end: End, what: &str, resume: &str) -> OperationState {
    let why = match end {
        End::Copied => return OperationState::Succeeded,
        End::Deleted => format!("The {what} was deleted."),
        End::Changed => format!("The {what} was changed otherwise since."),
        End::Paused => format!(
            "The copy of the data of the {what} was paused. Whoever has paused it resumes it, by `sealdisk disk {resume}`."
        ),
    };
    preempted(record, &why)
}

/// Copies to the end, for an operation.
///
/// # Errors
/// Why it has failed.
pub fn to_its_end(call: &Call<'_>, operation: Uuid, what: &dyn Copying) -> Result<End, ArmError> {
    let run = Run {
        call,
        operation,
        cancel: call.changes.going.cancel_of(operation),
        what,
    };
    run.to_its_end()
}

/// A copy that goes on.
struct Run<'a> {
    call: &'a Call<'a>,
    operation: Uuid,
    cancel: Cancel,
    what: &'a dyn Copying,
}

impl Run<'_> {
    fn to_its_end(&self) -> Result<End, ArmError> {
        let (mut pause, mut troubled) = (SOON, None);
        loop {
            let step = self.step();
            if self.cancel.check().is_err() {
                return Ok(End::Deleted);
            }
            match step {
                Ok(Step::Ended(end)) => return Ok(end),
                Ok(Step::Done) => {
                    (pause, troubled) = (SOON, None);
                    continue;
                }
                Ok(Step::Waits) => troubled = None,
                Err(error) => {
                    let since = *troubled.get_or_insert_with(Instant::now);
                    if let Some(end) = self.end_of(error, since)? {
                        return Ok(end);
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LATER);
        }
    }

    /// Makes the next step.
    fn step(&self) -> Result<Step, ArmError> {
        match self.what.stage()? {
            Stage::ToBegin(disk) => self.what.begin(&disk).map(|()| Step::Done),
            Stage::ToCopy(disk) => self.copy(&disk),
            Stage::Ended(end) => Ok(Step::Ended(end)),
        }
    }

    /// Copies, while nobody else has the disk and others leave room for it.
    fn copy(&self, disk: &Disk) -> Result<Step, ArmError> {
        let (changes, installation) = (self.call.changes, self.call.installation());
        if !changes.going.change_share(self.operation, Share::Copy) {
            return Ok(Step::Waits);
        }
        let mut note = |now: JobProgress| changes.going.note_progress(self.operation, now);
        match changes.go_on(installation, disk, &self.cancel, &mut note) {
            Ok(()) => Ok(Step::Done),
            // Whoever has it attached copies. A command, or who reads it over the network, lets go of it.
            Err(
                DiskError::InUse { .. } | DiskError::Awaited { .. } | DiskError::Granted { .. },
            ) => {
                changes.going.change_share(self.operation, Share::Watch);
                if let Some(now) = changes.progress_of_attach(disk) {
                    note(now);
                }
                Ok(Step::Waits)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an error ends the copy: not when it passes by, and nobody waits for the answer any more.
    fn end_of(&self, error: ArmError, since: Instant) -> Result<Option<End>, ArmError> {
        let is_begun = match self.what.stage() {
            Ok(Stage::Ended(end)) => return Ok(Some(end)),
            stage => matches!(stage, Ok(Stage::ToCopy(_))),
        };
        let passes = error.retry_after.is_some() && since.elapsed() < TROUBLE;
        match passes && (is_begun || self.what.is_again()) {
            true => Ok(None),
            false => Err(error),
        }
    }
}
