//! Who used which key version last, beside the log.

use database::Connection;

use crate::VaultError;
use crate::audit::AuditRecord;
use crate::store::{self, UseRow};

/// What uses a key, and not only looks at it.
const USES: [&str; 4] = ["KeyWrap", "KeyUnwrap", "KeyEncrypt", "KeyDecrypt"];

/// Keeps who used which key version last, beside the log.
pub(super) fn note_use(db: &Connection, record: &AuditRecord) -> Result<(), VaultError> {
    let event = &record.event;
    let (None, Some(name), Some(version)) = (&event.code, &event.key, &event.version) else {
        return Ok(());
    };
    if !USES.contains(&event.operation.as_str()) {
        return Ok(());
    }
    let row = UseRow {
        name,
        version,
        caller: &event.caller,
        operation: &event.operation,
        disk: event.disk.as_deref().unwrap_or_default(),
        origin: &event.origin,
        time: record.time,
    };
    store::note_use(db, &row)
}
