//! Changes through the API in the audit log of the installation, with who asked for them. What a change
//! does with keys is recorded besides, as for the command line.

use crate::call::Call;
use crate::error::ArmError;
use installation::{Installation, InstallationError};
use vault::Origin;
use vault::audit::AuditRecord;

/// Makes a change of `id`: that it is about to be made is durable before, and then what became of it.
///
/// # Errors
/// Those of the change, and of a log that cannot be written: nothing is changed then.
pub fn recorded<T>(
    call: &Call<'_>,
    operation: &'static str,
    id: &str,
    change: impl FnOnce() -> Result<T, ArmError>,
) -> Result<T, ArmError> {
    let origin = Origin::Remote(call.head.peer);
    let record = AuditRecord::new(call.principal.object_id, origin, operation).with_detail(id);
    recorded_as(call.installation(), record, change)
}

/// The same with a record that is there already.
///
/// # Errors
/// As `recorded`.
pub fn recorded_as<T>(
    installation: &Installation,
    record: AuditRecord,
    change: impl FnOnce() -> Result<T, ArmError>,
) -> Result<T, ArmError> {
    let log = installation.audit_log()?;
    let intent = log.begin(record).map_err(InstallationError::from)?;
    let changed = change();
    let refusal = changed.as_ref().err().map(|error| error.code.clone());
    let ended = log.end(intent, refusal).map_err(InstallationError::from);
    match (ended, changed) {
        (Ok(()), changed) => changed,
        (Err(_), Err(failure)) => Err(failure),
        (Err(unrecorded), Ok(_)) => Err(unrecorded.into()),
    }
}
