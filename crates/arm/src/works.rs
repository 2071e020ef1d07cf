//! Which work an operation was, of which the catalog has the record.

use crate::call::Work;
use crate::deep_copy::DeepCopy;
use crate::deployments::Deployment;
use crate::error::ArmError;
use crate::groups::DeleteGroup;
use crate::moving::Move;
use crate::names::Names;
use crate::operations::cut_off;
use crate::types::importing::ImportDisk;
use installation::catalog::OperationRecord;

/// The work that was cut off.
///
/// # Errors
/// Why it cannot be gone on with.
pub fn work_of(record: &OperationRecord, names: &Names) -> Result<Box<dyn Work>, ArmError> {
    if record.deployment.is_some() {
        return Ok(Box::new(Deployment::again(record, names)?));
    }
    let kept = &record.request["work"];
    if let Some(import) = ImportDisk::again(kept) {
        return Ok(Box::new(import));
    }
    if let Some(deletion) = DeleteGroup::again(kept) {
        return Ok(Box::new(deletion));
    }
    if let Some(copy) = DeepCopy::again(kept) {
        return Ok(Box::new(copy));
    }
    match Move::again(kept) {
        Some(moving) => Ok(Box::new(moving)),
        None => Err(cut_off()),
    }
}
