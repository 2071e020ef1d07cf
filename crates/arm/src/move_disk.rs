//! Requests that move a disk between one and two DEKs, which become [operations](crate::moving).

use serde_json::json;
use uuid::Uuid;

use crate::call::Call;
use crate::changing::Changes;
use crate::copying;
use crate::error::ArmError;
use crate::moving::{Before, Move};
use crate::operations;
use disks::{Disk, DiskError, Outline};
use installation::catalog::{OperationRecord, PlacementRecord};
use installation::envelope::JobKind;

impl Changes {
    /// Whether the data of the disk with that id is being copied under a DEK of the kind of its set.
    pub(crate) fn is_moving(&self, id: &str, view: &Outline) -> bool {
        // Who has it attached does the job. One that is paused, or that nobody does, would be polled for ever.
        let by_attach = view.attached.is_some() && is_rotating(view, false);
        by_attach || self.going.has(id)
    }
}

/// Has a disk wrapped under the key of a set that encrypts another number of times, or under the platform-managed key, and
/// its data copied under a DEK of that kind. What was begun is gone on with. The operation, unless it has ended by now.
///
/// # Errors
/// Why it is not begun, or has failed by now.
pub fn move_disk(
    call: &Call<'_>,
    placed: &PlacementRecord,
    view: &Outline,
    set: Option<&str>,
) -> Result<Option<Uuid>, ArmError> {
    let target = call.id(placed);
    let is_begun =
        view.encryption.disk_encryption_set_id.as_deref() == set && is_rotating(view, true);
    if is_begun && !is_rotating(view, false) {
        // Whoever has paused it resumes it.
        return Ok(None);
    }
    if let Some(job) = view.job.as_ref().filter(|_| !is_begun)
        && !call.changes.going.has(&target)
    {
        return Err(ArmError::from(DiskError::JobUnderWay {
            name: view.name.clone(),
            job: job.kind,
        }));
    }
    let disk = Disk::find(call.installation(), &view.name)?;
    let before = Before::of(&disk)?;
    let work = Move::new(&disk, set, view.attached.is_some());
    let record = OperationRecord {
        answer: json!({"before": before}),
        ..operations::new(call, target, &work)
    };
    let id = operations::begin(call, record, Box::new(work))?;
    copying::begun(call, id)
}

/// Whether a disk's data is being copied under a new DEK, or with `paused` would be.
fn is_rotating(view: &Outline, paused: bool) -> bool {
    let job = view.job.as_ref();
    job.is_some_and(|job| job.kind == JobKind::Rotate && (paused || !job.paused))
}
