//! `beginGetAccess` and `endGetAccess` of disks and snapshots.

use std::time::Duration;

use serde_json::json;

use super::policy::check_allowed;
use super::request::Ticket;
use crate::audit::recorded;
use crate::call::Call;
use crate::changing::NameLock;
use crate::error::ArmError;
use crate::names::time_text;
use crate::reply::{done, item};
use crate::types::bodies::{one_of, optional_bool};
use disks::{AccessRequest, Disk, GrantedAccess, grant_access, revoke_access};
use installation::catalog::{Access, Kind, PlacementRecord};
use installation::envelope::ResourceKind;
use server::FrontReply;

/// What is below a disk or a snapshot; below anything else there is nothing.
///
/// # Errors
/// Every refusal.
pub fn below(
    call: &Call<'_>,
    placed: &PlacementRecord,
    words: &[String],
) -> Option<Result<FrontReply, ArmError>> {
    let [word] = words else {
        return None;
    };
    let kind = match placed.kind {
        Kind::Disk => ResourceKind::Disk,
        Kind::Snapshot => ResourceKind::Snapshot,
        _ => return None,
    };
    let is = |action: &str| word.eq_ignore_ascii_case(action) && call.head.method == "POST";
    if is("beginGetAccess") {
        Some(begin(call, kind, placed))
    } else if is("endGetAccess") {
        Some(end(call, kind, placed))
    } else {
        None
    }
}

fn begin(
    call: &Call<'_>,
    kind: ResourceKind,
    placed: &PlacementRecord,
) -> Result<FrontReply, ArmError> {
    let body = &call.body;
    let access = match one_of(body, "/access", &["Read", "Write"])? {
        Some("Write") => Access::Write,
        Some(_) => Access::Read,
        None => {
            let message = "Required parameter 'access' is missing (null).";
            return Err(ArmError::parameter("access", message));
        }
    };
    let seconds = body.get("durationInSeconds");
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds.as_u64()?).ok());
    let seconds = seconds.filter(|seconds| *seconds > 0).ok_or_else(|| {
        let target = "durationInSeconds";
        let message = format!(
            "The value of parameter {target} is invalid: it has to be from 1 to {}.",
            u32::MAX
        );
        ArmError::parameter(target, message)
    })?;
    if one_of(body, "/fileFormat", &["VHD", "VHDX"])? == Some("VHDX") {
        return Err(ArmError::not_offered("fileFormat", "the format VHDX"));
    }
    if optional_bool(body, "/getSecureVMGuestStateSAS")? == Some(true) {
        let what = "the guest state of confidential virtual machines";
        return Err(ArmError::not_offered("getSecureVMGuestStateSAS", what));
    }
    check_allowed(kind, &placed.name, &placed.settings)?;
    let id = call.id(placed);
    let _lock = lock(call, placed)?;
    let request = AccessRequest {
        source: (kind, &placed.name),
        access,
        lifetime: Duration::from_secs(seconds.into()),
        by: call.principal.object_id,
    };
    let what = format!("{id} {} {seconds} s", access.as_str());
    let granted = recorded(call, "AccessGrant", &what, || {
        call.changes.retrying(|| {
            let runtime = &call.changes.runtime_dir;
            Ok(grant_access(call.installation(), &request, runtime)?)
        })
    })?;
    Ok(item(json!({"accessSAS": url(&call.names.base, &granted)})))
}

/// The URL that clients are given, at the server that they know as `base`.
pub(super) fn url(base: &str, granted: &GrantedAccess) -> String {
    let record = &granted.record;
    let ticket = Ticket {
        resource: record.resource,
        grant: record.id,
        token: granted.token.expose().into(),
    };
    let letter = match record.access {
        Access::Read => "r",
        Access::Write => "w",
    };
    format!("{base}{}", ticket.path(letter, &time_text(record.expires)))
}

fn end(
    call: &Call<'_>,
    kind: ResourceKind,
    placed: &PlacementRecord,
) -> Result<FrontReply, ArmError> {
    let _lock = lock(call, placed)?;
    let id = call.id(placed);
    let resource = Disk::of_kind(call.installation(), kind, &placed.name)?.id();
    recorded(call, "AccessRevoke", &id, || {
        call.access.end(resource);
        Ok(revoke_access(call.installation(), kind, &placed.name)?)
    })?;
    Ok(done(200))
}

fn lock<'a>(call: &'a Call<'_>, placed: &PlacementRecord) -> Result<NameLock<'a>, ArmError> {
    let name = format!("{}/{}", call.full_type(placed.kind), placed.name);
    call.changes.lock(&name, call.what())
}
