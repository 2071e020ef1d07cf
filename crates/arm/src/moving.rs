//! The move of a disk between one and two DEKs: an [operation](crate::operations), so that it goes on by itself after a
//! restart of the server.
//!
//! # Order of steps
//!
//! 1. the DEKs are wrapped under the key of the other set;
//! 2. the disk has a new layer under a DEK of the kind of that set, and its header names the job that copies all into it;
//! 3. the [job is done](crate::copying).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::{Call, Work};
use crate::copying::{self, Copying, End, Stage, header};
use crate::error::{ArmError, text};
use crate::operations::Share;
use disks::{Disk, LayerOp};
use installation::catalog::{OperationRecord, OperationState};
use installation::envelope::{HeaderPayload, JobKind, ResourceKind};

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
        Share::of_copy(self.is_attached)
    }

    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        let before = serde_json::from_value(record.answer["before"].clone());
        let damaged = |_| ArmError::internal(format!("what is kept of {} is damaged", record.id));
        let moving = Moving {
            call,
            before: before.map_err(damaged)?,
            target: &record.target,
            what: &self,
        };
        let ended = copying::to_its_end(call, record.id, &moving).inspect_err(|error| {
            log::error!(
                "the disk '{}' is not encrypted as its set says yet: {}",
                self.name,
                error.message
            );
        });
        let (end, name) = (ended?, &self.name);
        let resume = format!("rotate-dek {name} --resume");
        Ok(copying::state(
            record,
            end,
            &format!("disk '{name}'"),
            &resume,
        ))
    }
}

/// A move that goes on.
struct Moving<'a> {
    what: &'a Move,
    call: &'a Call<'a>,
    before: Before,
    target: &'a str,
}

impl Copying for Moving<'_> {
    fn stage(&self) -> Result<Stage, ArmError> {
        let (installation, what) = (self.call.installation(), self.what);
        let (kind, set) = (ResourceKind::Disk, what.set.as_deref());
        let found = copying::find(self.call, kind, &what.name)?;
        let Some(disk) = found.filter(|disk| disk.id() == what.disk) else {
            return Ok(Stage::Ended(End::Deleted));
        };
        let header = header(&disk)?;
        let is_under = header.disk_encryption_set == what.set;
        if is_under && !disks::needs_other_dek(installation, kind, &what.name, set)? {
            return Ok(Stage::Ended(End::Copied));
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

    fn is_again(&self) -> bool {
        self.what.is_again
    }
}
