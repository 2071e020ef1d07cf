//! Access that the operator of the host grants and revokes with the command line.

use std::path::Path;
use std::time::Duration;

use installation::Installation;
use installation::catalog::Access;
use installation::envelope::ResourceKind;
use time::OffsetDateTime;
use vault::audit::AuditRecord;

use super::policy::check_allowed;
use super::requests::url;
use crate::audit::recorded_as;
use crate::error::ArmError;
use disks::{AccessRequest, revoke_access};

/// A URL at which the data of a disk or a snapshot are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUrl {
    /// The URL, with what proves that access was granted.
    pub url: String,
    /// When it ends by itself.
    pub expires: OffsetDateTime,
}

/// Grants access to a disk or a snapshot at the server that clients know as `base`.
///
/// # Errors
/// As [`disks::grant_access`]; where the settings of the disk forbid it.
pub fn grant(
    installation: &Installation,
    source: (ResourceKind, &str),
    (access, lifetime): (Access, Duration),
    base: &str,
    runtime_dir: &Path,
) -> Result<AccessUrl, ArmError> {
    let (kind, name) = source;
    let placed = installation.catalog().placement(kind.into(), name)?;
    if let Some(placed) = &placed {
        check_allowed(kind, name, &placed.settings)?;
    }
    let by = installation.operator().object_id;
    let request = AccessRequest {
        source,
        access,
        lifetime,
        by,
    };
    let (word, seconds) = (access.as_str(), lifetime.as_secs());
    let record = record(
        installation,
        "AccessGrant",
        &format!("{kind} {name} {word} {seconds} s"),
    );
    recorded_as(installation, record, || {
        let granted = disks::grant_access(installation, &request, runtime_dir)?;
        Ok(AccessUrl {
            url: url(base, &granted),
            expires: granted.record.expires,
        })
    })
}

/// Revokes all access to a disk or a snapshot.
///
/// # Errors
/// As [`disks::revoke_access`].
pub fn revoke(installation: &Installation, kind: ResourceKind, name: &str) -> Result<(), ArmError> {
    let record = record(installation, "AccessRevoke", &format!("{kind} {name}"));
    recorded_as(installation, record, || {
        Ok(revoke_access(installation, kind, name)?)
    })
}

fn record(installation: &Installation, operation: &str, what: &str) -> AuditRecord {
    let operator = installation.operator();
    AuditRecord::new(operator.object_id, &operator.origin, operation).with_detail(what)
}
