//! Which work an operation was, of which the catalog has the record.

use crate::call::Work;
use crate::error::ArmError;
use crate::groups::DeleteGroup;
use crate::operations::cut_off;
use installation::catalog::OperationRecord;

/// The work that was cut off.
///
/// # Errors
/// Why it cannot be gone on with.
pub fn work_of(record: &OperationRecord) -> Result<Box<dyn Work>, ArmError> {
    match DeleteGroup::again(&record.request["work"]) {
        Some(deletion) => Ok(Box::new(deletion)),
        None => Err(cut_off()),
    }
}
