//! `createOption: CopyStart` of disks and snapshots: deep copies, whose data is copied by [operations](crate::deep_copy).
//!
//! # Order of steps
//!
//! 1. the operation is in the catalog;
//! 2. the copy is made, at once and as a whole: it shares the data of its source, and its header has the job that copies it;
//! 3. the operation does that job.
//!
//! Killed between 1 and 2, the next start finds nothing to copy, and the same request makes it. From 2 on the copy is one
//! that can be used and deleted. What fails in 3 leaves it so, and its source in use: the same request goes on with it.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::Call;
use crate::copying;
use crate::deep_copy::DeepCopy;
use crate::error::ArmError;
use crate::operations;
use disks::{DeepCopyRequest, Disk, LayerOp, Outline};
use installation::catalog::{Kind, PlacementRecord};
use installation::envelope::{Job, JobKind, ResourceKind};

/// Azure's name of it.
pub const COPY_START: &str = "CopyStart";

/// Makes a deep copy, whose data is copied by the operation that is returned, unless that has ended by now.
///
/// # Errors
/// Why it is not made. Why its data could not be copied is told by the operation: the copy is there then.
pub fn make(
    call: &Call<'_>,
    placed: &PlacementRecord,
    request: DeepCopyRequest,
) -> Result<Option<Uuid>, ArmError> {
    if call.changes.going.has(&call.id(placed)) {
        // It finds within a second that what it copied is gone.
        let message = "The operation about an earlier one of this name is about to end.";
        return Err(ArmError {
            retry_after: Some(1),
            ..ArmError::conflict(message)
        });
    }
    let work = DeepCopy::new(request.kind, &placed.name, false);
    let id = begin(call, placed, work, || made(call, request))?;
    Ok(copying::begun(call, id).unwrap_or(Some(id)))
}

/// Goes on with what was asked for so and is not complete: after a failure, or since it goes on already. The operation, if
/// there is something to do. Where it fails at once that is told by the state of the copy: what else was asked for, that
/// nobody may read it say, is done all the same.
pub fn go_on(
    call: &Call<'_>,
    kind: ResourceKind,
    placed: &PlacementRecord,
    view: &Outline,
) -> Option<Uuid> {
    // Whoever has paused it resumes it.
    if !may_be_one(placed) || job(view).is_none_or(|job| job.paused) {
        return None;
    }
    let work = DeepCopy::new(kind, &placed.name, view.attached.is_some());
    let begun = begin(call, placed, work, || Ok(())).and_then(|id| copying::begun(call, id));
    begun.unwrap_or_else(|error| {
        log::warn!(
            "the copy {} is not gone on with: {}",
            placed.name,
            error.message
        );
        None
    })
}

fn begin(
    call: &Call<'_>,
    placed: &PlacementRecord,
    work: DeepCopy,
    first: impl FnOnce() -> Result<(), ArmError>,
) -> Result<Uuid, ArmError> {
    let record = operations::new(call, call.id(placed), &work);
    operations::begin_after(call, record, Box::new(work), first)
}

fn made(call: &Call<'_>, request: DeepCopyRequest) -> Result<(), ArmError> {
    let installation = call.installation();
    match &request.request.source {
        (ResourceKind::Disk, source) => {
            let disk = Disk::find(installation, source)?;
            let op = LayerOp::DeepCopy(request);
            call.changes.change_layers(installation, &disk, &op)
        }
        _ => Ok(disks::deep_copy(installation, &request).map(drop)?),
    }
}

/// Whether a disk or a snapshot may be a deep copy. A snapshot has a job for nothing else, and none of the command line can
/// go on with it: so it is one also where the catalog does not know any more how it was asked for.
fn may_be_one(placed: &PlacementRecord) -> bool {
    let option = placed.settings["creationData"]["createOption"].as_str();
    let is_asked_for = option.is_some_and(|option| option.eq_ignore_ascii_case(COPY_START));
    is_asked_for || placed.kind == Kind::Snapshot
}

/// The job that makes a deep copy complete, until it is.
fn job(view: &Outline) -> Option<&Job> {
    let job = view.job.as_ref().filter(|_| view.source.is_some());
    job.filter(|job| job.kind == JobKind::Flatten)
}

/// Tells how far a deep copy is, in the properties of its body. One that nobody copies would be polled for ever: it has
/// failed, until somebody asks for it again.
pub fn tell(call: &Call<'_>, placed: &PlacementRecord, view: &Outline, properties: &mut Value) {
    if !may_be_one(placed) {
        return;
    }
    let Some(job) = job(view) else {
        // What somebody has aborted stays what it is.
        if view.source.is_none() {
            properties["completionPercent"] = json!(100.0);
        }
        return;
    };
    let (id, going) = (call.id(placed), &call.changes.going);
    let goes_on = going.has(&id) || (view.attached.is_some() && !job.paused);
    let state = if goes_on { "Creating" } else { "Failed" };
    properties["provisioningState"] = json!(state);
    properties["completionPercent"] = json!(going.percent(&id));
}
