//! The move of a disk between one and two DEKs: an [operation](crate::operations), so that it goes on by itself after a
//! restart of the server.
//!
//! # Order of steps
//!
//! 1. the DEKs are wrapped under the key of the other set;
//! 2. the disk has a new layer under a DEK of the kind of that set, and its header names the job that copies all into it;
//! 3. the job is done: by whoever has the disk attached, else here.
//!
//! How far it is says the header, whoever has written it: what a process that died has done is not done again. A job that
//! somebody paused, and a disk that somebody has changed otherwise since, end the operation, and are left as they are.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::{Call, Work};
use crate::error::{ArmError, text};
use crate::operations::{Share, preempted};
use disks::import::Cancel;
use disks::{Disk, DiskError, LayerOp};
use installation::catalog::{OperationRecord, OperationState};
use installation::envelope::{HeaderPayload, JobKind, ResourceKind};

/// How often it is looked how far it is, while somebody else has the disk: at first, and later.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_secs(1);
/// How long what passes by, as a vault that is not reached, does not end what is begun.
const TROUBLE: Duration = Duration::from_secs(600);

/// The move of a disk.
pub struct Move {
    /// Its id: another of its name is not moved.
    disk: Uuid,
    name: String,
    /// The set that it moves to; `None` for the platform-managed key.
    set: Option<String>,
    /// Whether somebody had the disk when it was asked for, who copies.
    is_attached: bool,
    /// Whether it was begun by a process that has ended: nobody waits for an answer.
    is_again: bool,
}

/// A disk before its move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    generation: u32,
    set: Option<String>,
}

impl Before {
    /// As it is now.
    ///
    /// # Errors
    /// When its header cannot be read.
    pub fn of(disk: &Disk) -> Result<Self, ArmError> {
        Ok(Self::by(&header(disk)?))
    }

    fn by(header: &HeaderPayload) -> Self {
        Self {
            generation: header.generation,
            set: header.disk_encryption_set.clone(),
        }
    }
}

fn header(disk: &Disk) -> Result<HeaderPayload, DiskError> {
    Ok(disk.header_file()?.read()?.claims().clone())
}

impl Move {
    /// Of a disk to a set.
    pub fn new(disk: &Disk, set: Option<&str>, is_attached: bool) -> Self {
        Self {
            disk: disk.id(),
            name: disk.name().into(),
            set: set.map(Into::into),
            is_attached,
            is_again: false,
        }
    }

    /// What [`kept`](Work::kept) has kept, if it is a move.
    pub fn again(kept: &Value) -> Option<Self> {
        Some(Self {
            disk: Uuid::try_parse(text(kept, "/moveDisk/disk")?).ok()?,
            name: text(kept, "/moveDisk/name")?.into(),
            set: text(kept, "/moveDisk/set").map(Into::into),
            is_attached: false,
            is_again: true,
        })
    }
}

impl Work for Move {
    fn kept(&self) -> Value {
        json!({"moveDisk": {"disk": self.disk, "name": self.name, "set": self.set}})
    }

    fn share(&self) -> Share {
        match self.is_attached {
            true => Share::Watch,
            false => Share::Copy,
        }
    }

    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        let before = serde_json::from_value(record.answer["before"].clone());
        let damaged = |_| ArmError::internal(format!("what is kept of {} is damaged", record.id));
        let run = Run {
            call,
            before: before.map_err(damaged)?,
            operation: record.id,
            target: &record.target,
            cancel: call.changes.going.cancel_of(record.id),
            what: &self,
        };
        let ended = run.to_its_end().inspect_err(|error| {
            log::error!(
                "the disk '{}' is not encrypted as its set says yet: {}",
                self.name,
                error.message
            );
        });
        let name = &self.name;
        let why = match ended? {
            End::Moved => return Ok(OperationState::Succeeded),
            End::Deleted => format!("The disk '{name}' was deleted."),
            End::Changed => format!("The disk '{name}' was changed otherwise since."),
            End::Paused => format!(
                "The copy of the data of the disk '{name}' was paused. Whoever has paused it resumes it, by `sealdisk \
                 disk rotate-dek {name} --resume`."
            ),
        };
        Ok(preempted(record, &why))
    }
}

/// How far a move is.
enum Stage {
    /// Nothing is copied yet.
    ToBegin(Disk),
    /// The header has the job.
    ToCopy(Disk),
    Ended(End),
}

/// How a move has ended.
enum End {
    Moved,
    /// Somebody has paused its job.
    Paused,
    /// Somebody has done something else with the disk, as aborted its job.
    Changed,
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

/// A move that goes on.
struct Run<'a> {
    what: &'a Move,
    call: &'a Call<'a>,
    before: Before,
    operation: Uuid,
    target: &'a str,
    cancel: Cancel,
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
        match self.stage()? {
            Stage::ToBegin(disk) => self.begin(&disk).map(|()| Step::Done),
            Stage::ToCopy(disk) => self.copy(&disk),
            Stage::Ended(end) => Ok(Step::Ended(end)),
        }
    }

    fn stage(&self) -> Result<Stage, ArmError> {
        let (installation, what) = (self.call.installation(), self.what);
        let Some(disk) = self.disk()? else {
            return Ok(Stage::Ended(End::Deleted));
        };
        let (kind, set) = (ResourceKind::Disk, what.set.as_deref());
        let header = header(&disk)?;
        let is_under = header.disk_encryption_set == what.set;
        if is_under && !disks::needs_other_dek(installation, kind, &what.name, set)? {
            return Ok(Stage::Ended(End::Moved));
        }
        let job = header.job.as_ref();
        if let Some(job) = job.filter(|job| is_under && job.kind == JobKind::Rotate) {
            return Ok(match job.paused {
                true => Stage::Ended(End::Paused),
                false => Stage::ToCopy(disk),
            });
        }
        let now = Before::by(&header);
        let is_as_before =
            now.generation == self.before.generation && (is_under || now.set == self.before.set);
        Ok(match is_as_before {
            true => Stage::ToBegin(disk),
            false => Stage::Ended(End::Changed),
        })
    }

    /// The disk, unless it is gone or being deleted.
    fn disk(&self) -> Result<Option<Disk>, ArmError> {
        match Disk::find(self.call.installation(), &self.what.name) {
            Ok(disk) => Ok(Some(disk).filter(|disk| disk.id() == self.what.disk)),
            Err(DiskError::Unfinished { .. }) => Ok(None),
            Err(error) => match ArmError::from(error) {
                missing if missing.status == 404 => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Wraps the disk under the other key, and has its header name the job.
    fn begin(&self, disk: &Disk) -> Result<(), ArmError> {
        let (call, installation) = (self.call, self.call.installation());
        call.require("Microsoft.Compute/disks/write", self.target)?;
        let (kind, what) = (ResourceKind::Disk, self.what);
        let set = what.set.as_deref();
        call.changes
            .retrying(|| Ok(disks::update(installation, kind, &what.name, set)?))?;
        let op = LayerOp::RotateDek { rate: None };
        let rotate = || call.changes.change_layers(installation, disk, &op);
        call.changes.retrying(rotate)
    }

    /// Copies, while nobody else has the disk and others leave room for it.
    fn copy(&self, disk: &Disk) -> Result<Step, ArmError> {
        let (changes, installation) = (self.call.changes, self.call.installation());
        if !changes.going.change_share(self.operation, Share::Copy) {
            return Ok(Step::Waits);
        }
        match changes.go_on(installation, disk, &self.cancel) {
            Ok(()) => Ok(Step::Done),
            // Whoever has it attached copies. A command, or who reads it over the network, lets go of it.
            Err(
                DiskError::InUse { .. } | DiskError::Awaited { .. } | DiskError::Granted { .. },
            ) => {
                changes.going.change_share(self.operation, Share::Watch);
                Ok(Step::Waits)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an error ends the move: not when it passes by, and nobody waits for the answer any more.
    fn end_of(&self, error: ArmError, since: Instant) -> Result<Option<End>, ArmError> {
        let is_begun = match self.stage() {
            Ok(Stage::Ended(end)) => return Ok(Some(end)),
            stage => matches!(stage, Ok(Stage::ToCopy(_))),
        };
        let passes = error.retry_after.is_some() && since.elapsed() < TROUBLE;
        match passes && (is_begun || self.what.is_again) {
            true => Ok(None),
            false => Err(error),
        }
    }
}
