//! Where resources are, and what all of them have in a body.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::call::{Call, ResourceType};
use crate::changing::NameLock;
use crate::error::ArmError;
use crate::imported;
use crate::names::time_text;
use installation::Installation;
use installation::catalog::{DEFAULT_GROUP, GroupRecord, Kind, LOCATION, PlacementRecord, Touch};

/// After so long a placement of nothing is one that a dead process left.
const LEFT: Duration = Duration::hours(1);
/// Azure's limits of tags.
const TAGS: usize = 50;
const TAG_NAME: usize = 512;
const TAG_VALUE: usize = 256;

/// Where a resource is; `None` when there is none of that name in that group.
///
/// # Errors
/// When it cannot be read.
pub fn locate(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    group: &str,
    name: &str,
) -> Result<Option<PlacementRecord>, ArmError> {
    let Some(name) = kind.find(call, name)? else {
        return Ok(None);
    };
    let placed = placement(call, kind.kind(), &name)?;
    Ok(placed.group.eq_ignore_ascii_case(group).then_some(placed))
}

/// The placement of a resource; that of one which the command line made.
pub fn placement(call: &Call<'_>, kind: Kind, name: &str) -> Result<PlacementRecord, ArmError> {
    let known = call.catalog().placement(kind, name)?;
    // The name as the resource has it: a client may have put it in another case.
    Ok(PlacementRecord {
        name: name.into(),
        ..known.unwrap_or_else(|| unplaced(kind, name))
    })
}

/// The placement of what nobody has placed.
pub fn unplaced(kind: Kind, name: &str) -> PlacementRecord {
    let never = Touch {
        at: OffsetDateTime::UNIX_EPOCH,
        by: Uuid::nil(),
    };
    PlacementRecord {
        kind,
        name: name.into(),
        group: DEFAULT_GROUP.into(),
        location: LOCATION.into(),
        tags: BTreeMap::new(),
        settings: json!({}),
        created: never,
        changed: never,
    }
}

/// The body of a resource.
pub fn body(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    placed: &PlacementRecord,
) -> Result<Value, ArmError> {
    Ok(body_with(call, kind, placed, kind.show(call, placed)?))
}

/// The body of a resource, with what its type says of it.
pub fn body_with(
    call: &Call<'_>,
    kind: &dyn ResourceType,
    placed: &PlacementRecord,
    shown: Value,
) -> Value {
    let mut body = summary(call, kind, placed);
    if placed.created.by != Uuid::nil() {
        body["systemData"] = json!({
            "createdAt": time_text(placed.created.at),
            "createdBy": placed.created.by,
            "createdByType": "Application",
            "lastModifiedAt": time_text(placed.changed.at),
            "lastModifiedBy": placed.changed.by,
            "lastModifiedByType": "Application",
        });
    }
    if let Value::Object(fields) = shown {
        for (name, value) in fields {
            body[name] = value;
        }
    }
    body
}

/// What lists of all types say of it.
pub fn summary(call: &Call<'_>, kind: &dyn ResourceType, placed: &PlacementRecord) -> Value {
    json!({
        "id": call.names.resource_id(&placed.group, &kind.full_type(), &placed.name),
        "name": placed.name,
        "type": kind.full_type(),
        "location": placed.location,
        "tags": placed.tags,
    })
}

/// The tags of a body; `None` keeps those that there are.
///
/// # Errors
/// 400 for what are none, or too many.
pub fn tags(body: &Value) -> Result<Option<BTreeMap<String, String>>, ArmError> {
    let wrong =
        |why: &str| ArmError::new(400, "InvalidTag", format!("The tags are invalid: {why}."));
    let given = match body.get("tags") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(given)) => given,
        Some(_) => return Err(wrong("they are no object")),
    };
    if given.len() > TAGS {
        return Err(wrong("a resource has 50 at most"));
    }
    let mut tags = BTreeMap::new();
    for (name, value) in given {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            _ => return Err(wrong("a value is no text")),
        };
        let has_bad = |c: char| c.is_control() || "<>%&\\?/".contains(c);
        if name.is_empty() || name.len() > TAG_NAME || name.contains(has_bad) {
            return Err(wrong("a name is empty, too long or has one of <>%&\\?/"));
        }
        if text.chars().count() > TAG_VALUE {
            return Err(wrong("a value has more than 256 characters"));
        }
        tags.insert(name.clone(), text);
    }
    Ok(Some(tags))
}

/// What locks the name of a resource.
pub fn name_lock(full_type: &str, name: &str) -> String {
    format!("{full_type}/{name}")
}

/// What locks a group.
pub fn group_lock(name: &str) -> String {
    format!("Microsoft.Resources/resourceGroups/{name}")
}

/// A group, which is kept from being deleted while something is put into it.
///
/// # Errors
/// 404 when it is not there, 409 when it is being deleted, which does not come to its end.
pub fn hold_group<'a>(
    call: &'a Call<'_>,
    name: &str,
) -> Result<(NameLock<'a>, GroupRecord), ArmError> {
    let lock = call.changes.share(&group_lock(name), call.what())?;
    let group = call.catalog().group(name)?;
    Ok((lock, group.ok_or_else(|| ArmError::no_group(name))?))
}

/// Forgets placements of nothing that dead processes have left.
///
/// # Errors
/// When the catalog cannot be read or written.
pub fn forget_unused(installation: &Installation) -> Result<(), ArmError> {
    let catalog = installation.catalog();
    let now = OffsetDateTime::now_utc();
    for placed in catalog.placements()? {
        if now - placed.changed.at > LEFT
            && catalog.name_of(placed.kind, &placed.name)?.is_none()
            && imported::going_on(catalog, &placed)?.is_none()
        {
            catalog.delete_placement(placed.kind, &placed.name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn tags_are_texts() {
        assert_eq!(tags(&json!({})).unwrap(), None);
        let found = tags(&json!({"tags": {"a": "1", "b": null}}))
            .unwrap()
            .unwrap();
        assert_eq!((found["a"].as_str(), found["b"].as_str()), ("1", ""));
        let many: Map<String, Value> = (0..51).map(|n| (n.to_string(), json!(""))).collect();
        for bad in [
            json!([]),
            json!({"a": 1}),
            json!({"": "x"}),
            json!({"a/b": "x"}),
            json!({"a": "x".repeat(257)}),
            Value::Object(many),
        ] {
            assert!(tags(&json!({"tags": bad})).is_err(), "{bad}");
        }
    }
}
