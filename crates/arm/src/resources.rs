//! What is the same for all types of resources: reading, putting, patching, deleting and listing them.
//!
//! # Order of steps of a PUT that makes something
//!
//! Under a lock of the name, which whoever puts a management lock on it takes too:
//!
//! 1. all checks that change nothing;
//! 2. the intent is recorded in the audit log;
//! 3. the placement is written, which names a resource that is not there and so is seen by nobody;
//! 4. the resource is made, as by the command line: as a whole or not at all; what takes long goes on as an
//!    [operation](crate::operations), behind the answer;
//! 5. the outcome is recorded.
//!
//! A failure of 4 removes the placement, unless the resource is there after all. A process that dies between 3 and 4 leaves a placement of
//! nothing, which the same PUT takes up again; the command line, before it makes something of that name, and the next
//! start of the server remove it. One that dies between 4 and 5 leaves the resource whole, in its group.
//!
//! The group is kept from being deleted from 1 to 5.

use serde_json::{Map, Value};
use server::FrontReply;
use uuid::Uuid;

use crate::access::forbids;
use crate::audit::{recorded, recorded_write};
use crate::call::{Call, Put, ResourceType};
use crate::error::ArmError;
use crate::etag::{check_etag, with_etag};
use crate::operations;
use crate::places::{body, hold_group, locate, name_lock, placement, tags, unplaced};
use crate::reply::{done, item};
use crate::types::importing::{self, ImportDisk};
use installation::catalog::{LOCATION, OperationState, PlacementRecord};

/// A resource that is named in a path.
pub struct Named<'a> {
    /// Its type.
    pub kind: &'static dyn ResourceType,
    /// The group, as the client has it.
    pub group: &'a str,
    /// The name, as the client has it.
    pub name: &'a str,
}

impl Named<'_> {
    /// Its id, which is its scope.
    pub fn id(&self, call: &Call<'_>) -> String {
        call.names
            .resource_id(self.group, &self.kind.full_type(), self.name)
    }

    fn action(&self, verb: &str) -> String {
        format!("{}/{verb}", self.kind.full_type())
    }

    /// What locks it.
    fn lock(&self) -> String {
        name_lock(&self.kind.full_type(), self.name)
    }

    fn missing(&self) -> ArmError {
        ArmError::no_resource(&self.kind.full_type(), self.name, self.group)
    }
}

/// `GET`
///
/// # Errors
/// 403, 404.
pub fn get(call: &Call<'_>, named: &Named<'_>) -> Result<FrontReply, ArmError> {
    call.require(&named.action("read"), &named.id(call))?;
    if let Some((placed, _)) = importing::going(call, named.kind.kind(), named.name)?
        && placed.group.eq_ignore_ascii_case(named.group)
    {
        return Ok(item(importing::view(call, named.kind, &placed)));
    }
    let placed = locate(call, named.kind, named.group, named.name)?;
    let placed = placed.ok_or_else(|| named.missing())?;
    Ok(with_etag(body(call, named.kind, &placed)?, 200))
}

/// `PUT`, and `PATCH` as a PUT of what is there with what is given.
///
/// # Errors
/// What is wrong with it.
pub fn put(call: &Call<'_>, named: &Named<'_>, is_patch: bool) -> Result<FrontReply, ArmError> {
    call.require(&named.action("write"), &named.id(call))?;
    let (held, group) = hold_group(call, named.group)?;
    let group = group.name;
    let lock = call.changes.lock(&named.lock(), call.what())?;
    call.refuse_locked(&named.action("write"), &named.id(call))?;
    if let Some(going) = importing::going(call, named.kind.kind(), named.name)? {
        if !going.0.group.eq_ignore_ascii_case(&group) {
            return Err(taken(call, named, &going.0));
        }
        if is_patch {
            return Err(importing::refuse_going(named.name));
        }
        let id = importing::join(call, &going)?;
        drop((lock, held));
        return imported(call, named, id);
    }
    let Checked {
        name,
        exists,
        is_kept,
        before,
        placed,
        wanted,
    } = checked(call, named, group, is_patch)?;
    let new = Put {
        body: &wanted,
        exists,
        placed: &placed,
    };
    if let Some(import) = ImportDisk::of(call, named.kind.kind(), &new, &placed.group)? {
        let begun = import.begin(call, named.id(call), &placed);
        let id = begun.inspect_err(|_| restore(call, &placed, before.as_ref(), is_kept))?;
        drop((lock, held));
        return imported(call, named, id);
    }
    let change = (before.as_ref(), &new);
    let operation = recorded_write(call, &named.id(call), change, || {
        call.catalog().put_placement(&placed)?;
        let applied = call.changes.retrying(|| named.kind.apply(call, &new));
        match applied {
            Ok(operation) => keep(call, &placed).map(|()| operation),
            Err(error) => {
                // Who denies access and asks for something else too has it denied whatever becomes of that.
                if !(exists && forbids(&placed.settings)) {
                    restore(call, &placed, before.as_ref(), is_kept);
                }
                Err(error)
            }
        }
    })?;
    let status = match exists {
        true => 200,
        false => named.kind.created_status(),
    };
    let reply = answer(call, named.kind, name, status)?;
    Ok(match operation {
        Some(id) => operations::watching(call, id, reply),
        None => reply,
    })
}

/// A PUT that passes all checks which change nothing.
struct Checked {
    /// The name as it is written of what is there, or as the client has it.
    name: String,
    exists: bool,
    /// Whether it is there, if only hidden.
    is_kept: bool,
    before: Option<PlacementRecord>,
    /// As it is to be.
    placed: PlacementRecord,
    /// The body.
    wanted: Value,
}

fn checked(
    call: &Call<'_>,
    named: &Named<'_>,
    group: String,
    is_patch: bool,
) -> Result<Checked, ArmError> {
    let found = named.kind.find(call, named.name)?;
    let exists = found.is_some();
    let name = found.unwrap_or_else(|| named.name.to_owned());
    let before = call.catalog().placement(named.kind.kind(), &name)?;
    let nowhere = unplaced(named.kind.kind(), &name);
    // A vault that is deleted softly is there, and in the group that it had: that of what the command line makes
    // where nobody has placed it.
    let is_kept = exists || is_kept(call, &nowhere)?;
    let placed = match &before {
        Some(placed) if is_kept => placed.clone(),
        None if is_kept => nowhere,
        // What a request that was cut off has left says nothing of this one.
        Some(_) | None => PlacementRecord {
            group: group.clone(),
            created: call.touch(),
            ..nowhere
        },
    };
    if !placed.group.eq_ignore_ascii_case(&group) && is_kept {
        return Err(taken(call, named, &placed));
    }
    let now = match exists {
        true => Some(body(call, named.kind, &placed)?),
        false if is_patch => return Err(named.missing()),
        false => None,
    };
    check_etag(call.head, now.as_ref())?;
    let wanted = match (is_patch, &now) {
        (true, Some(now)) => patched(now, &call.body),
        _ => call.body.clone(),
    };
    if !wanted.is_object() {
        let message =
            "The request content was invalid and could not be deserialized: it is no JSON object.";
        return Err(ArmError::new(400, "InvalidRequestContent", message));
    }
    let location = location(named, &wanted, exists.then_some(placed.location.as_str()))?;
    let tags = match tags(&wanted)? {
        Some(tags) => tags,
        None => placed.tags.clone(),
    };
    let as_it_is = Put {
        body: &wanted,
        exists,
        placed: &placed,
    };
    let settings = named.kind.settings(call, &as_it_is)?;
    let placed = PlacementRecord {
        group: if exists { placed.group.clone() } else { group },
        location,
        tags,
        settings,
        changed: call.touch(),
        ..placed
    };
    Ok(Checked {
        name,
        exists,
        is_kept,
        before,
        placed,
        wanted,
    })
}

/// Refuses what a PUT would refuse before it changes anything.
///
/// # Errors
/// What is wrong with it.
pub fn check(call: &Call<'_>, named: &Named<'_>) -> Result<(), ArmError> {
    call.require(&named.action("write"), &named.id(call))?;
    let (_held, group) = hold_group(call, named.group)?;
    // Whether it is the import that goes on is known once it is asked for.
    match importing::going(call, named.kind.kind(), named.name)? {
        Some(_) => Ok(()),
        None => checked(call, named, group.name, false).map(drop),
    }
}

fn answer(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    name: String,
    status: u16,
) -> Result<FrontReply, ArmError> {
    // The name as the resource has it, which may be another than was asked for.
    let name = kind.find(call, &name)?.unwrap_or(name);
    let placed = placement(call, kind.kind(), &name)?;
    Ok(with_etag(body(call, kind, &placed)?, status))
}

/// The answer to whoever asks for an import, which goes on or has ended by now.
fn imported(call: &Call<'_>, named: &Named<'_>, id: Uuid) -> Result<FrontReply, ArmError> {
    let record = operations::wait(call, id, operations::PATIENCE)?;
    match record.state {
        OperationState::Running => {
            let going = importing::going(call, named.kind.kind(), named.name)?;
            let view = going.map(|(placed, _)| importing::view(call, named.kind, &placed));
            Ok(operations::accepted(call, &record, view))
        }
        OperationState::Succeeded => answer(
            call,
            named.kind,
            named.name.into(),
            named.kind.created_status(),
        ),
        OperationState::Failed | OperationState::Canceled => Err(operations::failure(&record)),
    }
}

/// Whether a placement is of something that is only hidden: a vault that is deleted softly.
fn is_kept(call: &Call<'_>, placed: &PlacementRecord) -> Result<bool, ArmError> {
    Ok(call.catalog().name_of(placed.kind, &placed.name)?.is_some())
}

/// The command line, which was about to make something of the same name, may have taken the placement for one that a
/// dead process has left.
fn keep(call: &Call<'_>, placed: &PlacementRecord) -> Result<(), ArmError> {
    match call.catalog().placement(placed.kind, &placed.name)? {
        Some(_) => Ok(()),
        None => Ok(call.catalog().put_placement(placed)?),
    }
}

/// What a failure leaves of the placement: what there was before. What was made all the same, and could not be deleted
/// again, stays in its group with its settings, which may forbid access to it.
fn restore(
    call: &Call<'_>,
    placed: &PlacementRecord,
    before: Option<&PlacementRecord>,
    was_there: bool,
) {
    if !was_there && is_kept(call, placed).unwrap_or(true) {
        return;
    }
    let restored = match before {
        Some(before) => call.catalog().put_placement(before),
        None => call.catalog().delete_placement(placed.kind, &placed.name),
    };
    if let Err(error) = restored {
        log::error!(
            "the placement of the {} '{}' stays: {error}",
            placed.kind,
            placed.name
        );
    }
}

/// Of another group's resource somebody without a right to see it is told no more than that.
fn taken(call: &Call<'_>, named: &Named<'_>, placed: &PlacementRecord) -> ArmError {
    let place = match call.may(&named.action("read"), &call.id(placed)) {
        true => format!("the resource group '{}'", placed.group),
        false => "another resource group".into(),
    };
    ArmError::conflict(format!(
        "The {} name '{}' is taken by one in {place}: names are unique in an installation. Choose another name.",
        placed.kind, named.name
    ))
}

fn location(named: &Named<'_>, body: &Value, now: Option<&str>) -> Result<String, ArmError> {
    let normal = |text: &str| text.to_ascii_lowercase().replace(' ', "");
    let wanted = match (body.get("location").unwrap_or(&Value::Null), now) {
        (Value::String(text), _) => normal(text),
        (Value::Null, Some(now)) => now.to_owned(),
        _ => {
            let message = "The location property is required for this definition.";
            return Err(ArmError::new(400, "LocationRequired", message));
        }
    };
    match now {
        Some(now) if normal(now) != wanted => Err(ArmError::new(
            409,
            "InvalidResourceLocation",
            format!(
                "The resource '{}' already exists in location '{now}' in resource group '{}'. A resource with the \
                 same name cannot be created in location '{wanted}'. Please select a new resource name.",
                named.name, named.group
            ),
        )),
        None if wanted != LOCATION => Err(ArmError::new(
            400,
            "LocationNotAvailableForResourceType",
            format!(
                "The provided location '{wanted}' is not available for resource type '{}'. List of available regions \
                 for the resource type is '{LOCATION}'.",
                named.kind.full_type()
            ),
        )),
        _ => Ok(LOCATION.into()),
    }
}

/// What is there, with what a PATCH gives; tags are given as a whole.
pub(crate) fn patched(now: &Value, patch: &Value) -> Value {
    let mut wanted = now.clone();
    merge(&mut wanted, patch);
    settle_encryption(&mut wanted, patch);
    if let Some(tags) = patch.get("tags").filter(|tags| !tags.is_null()) {
        wanted["tags"] = tags.clone();
    }
    wanted
}

/// Takes away what a patch of the encryption leaves of before and contradicts: clients leave out what is null, and know the
/// type by the set.
fn settle_encryption(wanted: &mut Value, patch: &Value) {
    const PLATFORM: &str = "EncryptionAtRestWithPlatformKey";
    const SET: &str = "diskEncryptionSetId";
    let given = |name: &str| {
        let value = patch.pointer("/properties/encryption")?.get(name)?;
        value.as_str()
    };
    let gone = match (given("type"), given(SET)) {
        (Some(kind), None) if kind.eq_ignore_ascii_case(PLATFORM) => SET,
        (None, Some(_)) => "type",
        _ => return,
    };
    let encryption = wanted.pointer_mut("/properties/encryption");
    if let Some(encryption) = encryption.and_then(Value::as_object_mut) {
        encryption.shift_remove(gone);
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in patch {
        match value {
            Value::Null => {
                if let Some(fields) = into.as_object_mut() {
                    fields.shift_remove(name);
                }
            }
            value => merge(&mut into[name.as_str()], value),
        }
    }
}

/// `DELETE`
///
/// # Errors
/// 403, and why it cannot go.
pub fn delete(call: &Call<'_>, named: &Named<'_>) -> Result<FrontReply, ArmError> {
    call.require(&named.action("delete"), &named.id(call))?;
    let is_cancelled = importing::cancel(
        call,
        named.kind.kind(),
        (named.group, named.name),
        &named.id(call),
    )?;
    let _lock = call.changes.lock(&named.lock(), call.what())?;
    call.refuse_locked(&named.action("delete"), &named.id(call))?;
    if call.catalog().group(named.group)?.is_none() {
        return Err(ArmError::no_group(named.group));
    }
    let Some(placed) = locate(call, named.kind, named.group, named.name)? else {
        return Ok(done(if is_cancelled { 200 } else { 204 }));
    };
    if call.head.header("if-match").is_some() {
        check_etag(call.head, Some(&body(call, named.kind, &placed)?))?;
    }
    recorded(call, "ResourceDelete", &named.id(call), || {
        call.changes
            .retrying(|| named.kind.delete(call, &placed.name))
    })?;
    Ok(done(200))
}

/// What is below a resource, or is done with it.
///
/// # Errors
/// 404 for what there is not.
pub fn below(call: &Call<'_>, named: &Named<'_>, words: &[String]) -> Result<FrontReply, ArmError> {
    let verb = match call.head.method.as_str() {
        "GET" => "read".to_owned(),
        "POST" => format!("{}/action", words.join("/")),
        _ => "write".to_owned(),
    };
    call.require(&named.action(&verb), &named.id(call))?;
    let placed = locate(call, named.kind, named.group, named.name)?;
    let placed = placed.ok_or_else(|| named.missing())?;
    match named.kind.below(call, &placed, words) {
        Some(answer) => answer,
        None => Err(ArmError::new(
            404,
            "NotFound",
            format!(
                "There is no '{}' of a {} here.",
                words.join("/").chars().take(80).collect::<String>(),
                named.kind.full_type()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_changes_what_it_names() {
        let now = json!({"tags": {"a": "1"}, "properties": {"x": 1, "y": {"z": 2}}});
        let patch = json!({"tags": {"b": "2"}, "properties": {"y": {"w": 3}, "x": null}});
        assert_eq!(
            patched(&now, &patch),
            json!({"tags": {"b": "2"}, "properties": {"y": {"z": 2, "w": 3}}})
        );
        assert_eq!(patched(&now, &json!({})), now);
    }

    #[test]
    fn a_patch_of_the_encryption_says_all_of_it() {
        let with = |encryption: Value| json!({"properties": {"encryption": encryption}});
        let (platform, customer) = (
            "EncryptionAtRestWithPlatformKey",
            "EncryptionAtRestWithCustomerKey",
        );
        let set = json!({"type": customer, "diskEncryptionSetId": "a"});
        for (patch, wanted) in [
            (json!({"type": platform}), json!({"type": platform})),
            (
                json!({"diskEncryptionSetId": "b"}),
                json!({"diskEncryptionSetId": "b"}),
            ),
            (json!({"type": customer}), set.clone()),
            (json!({}), set.clone()),
        ] {
            let found = patched(&with(set.clone()), &with(patch.clone()));
            assert_eq!(found, with(wanted), "{patch}");
        }
    }
}
