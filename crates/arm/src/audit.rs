//! Changes through the API in the audit log of the installation, with who asked for them. What a change
//! does with keys is recorded besides, as for the command line.

use serde_json::Value;

use crate::access::forbids;
use crate::call::{Call, Put};
use crate::error::ArmError;
use installation::catalog::{Kind, PlacementRecord};
use installation::{Installation, InstallationError};
use vault::Origin;
use vault::audit::{AuditError, AuditLog, AuditRecord, Intent};

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
    recorded_as(call.installation(), record(call, operation, id), change)
}

/// The same of a PUT, or a PATCH, of a resource that was as `before` says. One that takes something away from somebody is
/// made though there is no room.
///
/// # Errors
/// As `recorded`.
pub fn recorded_write<T>(
    call: &Call<'_>,
    id: &str,
    (before, put): (Option<&PlacementRecord>, &Put<'_>),
    change: impl FnOnce() -> Result<T, ArmError>,
) -> Result<T, ArmError> {
    let record = record(call, "ResourceWrite", id);
    let begin: Begin = match takes_away(before, put) {
        true => AuditLog::begin_essential,
        false => AuditLog::begin,
    };
    kept(call.installation(), begin, record, change)
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
    kept(installation, AuditLog::begin, record, change)
}

fn record(call: &Call<'_>, operation: &'static str, id: &str) -> AuditRecord {
    let origin = Origin::Remote(call.head.peer);
    AuditRecord::new(call.principal.object_id, origin, operation).with_detail(id)
}

type Begin = fn(&AuditLog, AuditRecord) -> Result<Intent, AuditError>;

fn kept<T>(
    installation: &Installation,
    begin: Begin,
    record: AuditRecord,
    change: impl FnOnce() -> Result<T, ArmError>,
) -> Result<T, ArmError> {
    let log = installation.audit_log()?;
    let intent = begin(&log, record).map_err(InstallationError::from)?;
    let changed = change();
    let refusal = changed.as_ref().err().map(|error| error.code.clone());
    let ended = log.end(intent, refusal).map_err(InstallationError::from);
    match (ended, changed) {
        (Ok(()), changed) => changed,
        (Err(_), Err(failure)) => Err(failure),
        (Err(unrecorded), Ok(_)) => Err(unrecorded.into()),
    }
}

/// Whether a change of a resource takes access to data or keys away. Of a vault each may, by its policies and its network
/// rules.
fn takes_away(before: Option<&PlacementRecord>, put: &Put<'_>) -> bool {
    match put.placed.kind {
        _ if !put.exists => false,
        Kind::Vault => true,
        Kind::Disk | Kind::Snapshot => {
            let did = before.is_some_and(|before| forbids(&before.settings));
            forbids(&put.placed.settings) && !did
        }
        Kind::DiskEncryptionSet => {
            let kind = put.body.pointer("/identity/type").and_then(Value::as_str);
            kind.is_some_and(|kind| kind.eq_ignore_ascii_case("None"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use installation::catalog::Touch;
    use serde_json::json;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn placed(kind: Kind, settings: Value) -> PlacementRecord {
        let touch = Touch {
            at: OffsetDateTime::now_utc(),
            by: Uuid::nil(),
        };
        PlacementRecord {
            kind,
            name: "x".into(),
            group: "rg".into(),
            location: "local".into(),
            tags: BTreeMap::new(),
            settings,
            created: touch,
            changed: touch,
        }
    }

    #[test]
    fn what_takes_access_away_waits_for_no_room() {
        let of = |kind, exists, before: Option<Value>, now: Value, body: Value| {
            let before = before.map(|settings| placed(kind, settings));
            let placed = placed(kind, now);
            let put = Put {
                body: &body,
                exists,
                placed: &placed,
            };
            takes_away(before.as_ref(), &put)
        };
        let (open, denied) = (json!({}), json!({"networkAccessPolicy": "DenyAll"}));
        let disk =
            |exists, before, now: &Value| of(Kind::Disk, exists, before, now.clone(), json!({}));
        assert!(disk(true, None, &denied));
        assert!(disk(true, Some(open.clone()), &denied));
        assert!(!disk(true, Some(denied.clone()), &denied), "again");
        assert!(!disk(true, Some(denied.clone()), &open));
        assert!(!disk(false, None, &denied), "what is made has nobody");
        let set = |kind: &str| {
            let body = json!({"identity": {"type": kind}});
            of(Kind::DiskEncryptionSet, true, None, json!({}), body)
        };
        assert!(set("none"));
        assert!(!set("SystemAssigned"));
        assert!(of(Kind::Vault, true, None, json!({}), json!({})));
        assert!(!of(Kind::Identity, true, None, json!({}), json!({})));
    }
}
