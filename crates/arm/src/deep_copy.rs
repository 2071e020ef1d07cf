//! The copy of all data of a deep copy: an [operation](crate::operations), so that it goes on by itself after a restart of
//! the server.
//!
//! The disk or the snapshot is there already, and its header has the job from the beginning (`copy_start.rs`), so that
//! there is nothing but [to copy](crate::copying). One without a job that shares nothing is complete.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::{Call, Work};
use crate::copying::{self, Copying, End, Stage, header};
use crate::error::{ArmError, text};
use crate::operations::Share;
use installation::catalog::{OperationRecord, OperationState};
use installation::envelope::{JobKind, ResourceKind};

/// The copy of all data of a deep copy.
pub struct DeepCopy {
    kind: ResourceKind,
    name: String,
    /// Whether somebody had it when it was asked for, who copies.
    is_attached: bool,
    /// Whether it was begun by a process that has ended: nobody waits for an answer.
    is_again: bool,
}

impl DeepCopy {
    /// Of that disk or snapshot.
    pub fn new(kind: ResourceKind, name: &str, is_attached: bool) -> Self {
        Self {
            kind,
            name: name.into(),
            is_attached,
            is_again: false,
        }
    }

    /// What [`kept`](Work::kept) has kept, if it is a deep copy.
    pub fn again(kept: &Value) -> Option<Self> {
        let kind = text(kept, "/deepCopy/kind")?;
        let mut kinds = ResourceKind::ALL.into_iter();
        Some(Self {
            kind: kinds.find(|known| known.as_str() == kind)?,
            name: text(kept, "/deepCopy/name")?.into(),
            is_attached: false,
            is_again: true,
        })
    }
}

impl Work for DeepCopy {
    fn kept(&self) -> Value {
        json!({"deepCopy": {"kind": self.kind.as_str(), "name": self.name}})
    }

    fn share(&self) -> Share {
        Share::of_copy(self.is_attached)
    }

    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        let (kind, name) = (self.kind, &self.name);
        let filling = Filling {
            call,
            // Another of its name is none of this.
            id: copying::find(call, kind, name)?.map(|disk| disk.id()),
            what: &self,
        };
        let ended = copying::to_its_end(call, record.id, &filling).inspect_err(|error| {
            log::error!("the {kind} '{name}' is not complete yet: {}", error.message);
        });
        let end = ended?;
        // What it has shared with the disk that it is a copy of.
        let has_merges = call.catalog().merges().is_ok_and(|left| !left.is_empty());
        if matches!(end, End::Copied) && has_merges {
            call.changes.merge_later();
        }
        let resume = format!("flatten {name} --resume");
        Ok(copying::state(
            record,
            end,
            &format!("{kind} '{name}'"),
            &resume,
        ))
    }
}

/// A deep copy whose data is being copied.
struct Filling<'a> {
    what: &'a DeepCopy,
    call: &'a Call<'a>,
    /// Its id; `None` where it was never made.
    id: Option<Uuid>,
}

impl Copying for Filling<'_> {
    fn stage(&self) -> Result<Stage, ArmError> {
        let found = copying::find(self.call, self.what.kind, &self.what.name)?;
        let Some(disk) = found.filter(|disk| Some(disk.id()) == self.id) else {
            return Ok(Stage::Ended(End::Deleted));
        };
        let header = header(&disk)?;
        if header.source.is_none() {
            return Ok(Stage::Ended(End::Copied));
        }
        Ok(match &header.job {
            Some(job) if job.kind == JobKind::Flatten && job.paused => Stage::Ended(End::Paused),
            Some(job) if job.kind == JobKind::Flatten => Stage::ToCopy(disk),
            Some(_) | None => Stage::Ended(End::Changed),
        })
    }

    fn is_again(&self) -> bool {
        self.what.is_again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_same_copy() {
        for kind in [ResourceKind::Disk, ResourceKind::Snapshot] {
            let kept = DeepCopy::new(kind, "c", true).kept();
            let again = DeepCopy::again(&kept).unwrap();
            assert_eq!((again.kind, again.name.as_str()), (kind, "c"));
            assert!(again.is_again && !again.is_attached);
            assert_eq!(again.kept(), kept);
        }
        for other in [
            json!({}),
            json!({"deepCopy": {"kind": "vault", "name": "c"}}),
        ] {
            assert!(DeepCopy::again(&other).is_none(), "{other}");
        }
    }
}
