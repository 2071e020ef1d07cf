//! What disks, snapshots and images are made of, and under which key: ids of resources in bodies.

use std::cell::RefCell;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::bodies::{dotted, one_of, optional_text};

use crate::call::{Call, ResourceType};
use crate::error::ArmError;
use crate::id::ResourceId;
use crate::places::locate;
use disks::EncryptionView;
use installation::catalog::{DEFAULT_GROUP, Kind, PlacementRecord};
use installation::envelope::ResourceKind;

/// Azure's names of kinds of keys.
pub const PLATFORM: &str = "EncryptionAtRestWithPlatformKey";
/// The same with a disk encryption set.
pub const CUSTOMER: &str = "EncryptionAtRestWithCustomerKey";
/// Both: the data is encrypted twice.
pub const BOTH: &str = "EncryptionAtRestWithPlatformAndCustomerKeys";

/// An id in a body, of a type that there is, which need not be there.
pub struct Linked {
    /// Its type.
    pub kind: &'static dyn ResourceType,
    id: ResourceId,
}

impl Linked {
    /// Parses an id.
    ///
    /// # Errors
    /// 400 for what is no id of a resource here, 404 for a type that there is not.
    pub fn parse(call: &Call<'_>, target: &str, id: &str) -> Result<Self, ArmError> {
        let wrong = |why: &str| {
            let why = format!("The value of parameter {target} is invalid: {why}.");
            ArmError::parameter(target, why)
        };
        let id = ResourceId::parse(id).map_err(|error| wrong(&error.to_string()))?;
        let own = call.names.subscription.to_string();
        if !id.subscription.eq_ignore_ascii_case(&own) {
            return Err(wrong("resources of other subscriptions are not there"));
        }
        let [word] = id.typed.types.as_slice() else {
            return Err(wrong("it names no resource"));
        };
        match call.type_of(&id.typed.provider, word) {
            Some(kind) => Ok(Self { kind, id }),
            None => Err(missing(&id)),
        }
    }

    /// The name, as the client has it.
    pub fn name(&self) -> &str {
        self.id.name()
    }

    /// Finds it, once whoever asks is known to be allowed to use it: who may not is not told whether it is there.
    ///
    /// # Errors
    /// 403, then 404.
    pub fn find(&self, call: &Call<'_>, verb: &str) -> Result<PlacementRecord, ArmError> {
        let full_type = self.kind.full_type();
        let scope = call
            .names
            .resource_id(&self.id.group, &full_type, self.name());
        call.require_linked(&format!("{full_type}/{verb}"), &scope)?;
        locate(call, self.kind, &self.id.group, self.name())?.ok_or_else(|| missing(&self.id))
    }
}

fn missing(id: &ResourceId) -> ArmError {
    ArmError::no_resource(&id.typed.full_type(), id.name(), &id.group)
}

/// The set that a body's `encryption` names: `None` when the body says nothing of it, `Some(None)` for the
/// platform-managed key.
///
/// # Errors
/// 400; 403 for a set that whoever asks may not see, and 404.
pub fn encryption(call: &Call<'_>, body: &Value) -> Result<Option<Option<String>>, ArmError> {
    let pointer = "/properties/encryption";
    let target = "properties.encryption.diskEncryptionSetId";
    let kind = one_of(
        body,
        &format!("{pointer}/type"),
        &[PLATFORM, CUSTOMER, BOTH],
    )?;
    let set = optional_text(body, &format!("{pointer}/diskEncryptionSetId"))?;
    match (kind, set) {
        (Some(kind @ (CUSTOMER | BOTH)), None) => Err(ArmError::parameter(
            target,
            format!("Required parameter '{target}' is missing (null): {kind} needs a set."),
        )),
        (Some(_), Some(_)) if kind == Some(PLATFORM) => Err(ArmError::parameter(
            target,
            format!("{PLATFORM} has no disk encryption set; leave '{target}' out."),
        )),
        (Some(_), None) => Ok(Some(None)),
        (None, None) => Ok(None),
        (wanted, Some(id)) => {
            let linked = Linked::parse(call, target, id)?;
            if linked.kind.kind() != Kind::DiskEncryptionSet {
                let why = format!("The value of parameter {target} is no disk encryption set.");
                return Err(ArmError::parameter(target, why));
            }
            let placed = linked.find(call, "read")?;
            let is = set_type(call, &placed.name)?;
            if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
                let target = "properties.encryption.type";
                let why = format!(
                    "The encryption type {wanted} is not that of the disk encryption set '{}', which is {is}.",
                    placed.name
                );
                return Err(ArmError::parameter(target, why));
            }
            Ok(Some(Some(placed.name)))
        }
    }
}

/// Refuses to have a snapshot under a set that encrypts another number of times than its disk is encrypted: its data is
/// not copied.
///
/// # Errors
/// That, and what is wrong with the disk.
pub fn refuse_other_dek(call: &Call<'_>, disk: &str, set: Option<&str>) -> Result<(), ArmError> {
    match disks::needs_other_dek(call.installation(), ResourceKind::Disk, disk, set)? {
        false => Ok(()),
        true => Err(ArmError::parameter(
            "properties.encryption",
            format!(
                "A snapshot is encrypted as often as its disk, and the disk '{disk}' is encrypted another number of \
                 times than this set does. Move the disk to the set first."
            ),
        )),
    }
}

/// Whether a body has the `encryption` of an answer, as clients send it back that change something else. The type in it
/// is what is so in all layers, which need not be that of the set.
pub fn is_encryption(now: &Value, body: &Value) -> bool {
    let set = |encryption: &Value| encryption["diskEncryptionSetId"].is_string();
    body.pointer("/properties/encryption")
        .is_some_and(|wanted| set(now) == set(wanted) && same(now, wanted))
}

/// The type of the set of that name.
fn set_type(call: &Call<'_>, set: &str) -> Result<&'static str, ArmError> {
    Ok(call.catalog().des(set)?.record.encryption_type.as_str())
}

/// `properties.encryption` of an answer: what is so in all layers.
pub fn encryption_view(ids: &Ids<'_, '_>, encryption: &EncryptionView) -> Value {
    let mut view = json!({"type": encryption.kind});
    if let Some(set) = &encryption.disk_encryption_set_id {
        view["diskEncryptionSetId"] = json!(ids.of(Kind::DiskEncryptionSet, set));
    }
    view
}

/// Ids of resources of this installation, each of which is looked up once: thousands of disks are under few sets.
pub struct Ids<'c, 'a> {
    call: &'c Call<'a>,
    known: RefCell<HashMap<(Kind, String), String>>,
}

impl<'c, 'a> Ids<'c, 'a> {
    /// None is known yet.
    pub fn new(call: &'c Call<'a>) -> Self {
        Self {
            call,
            known: RefCell::default(),
        }
    }

    /// As [`id_of`].
    pub fn of(&self, kind: Kind, name: &str) -> String {
        let mut known = self.known.borrow_mut();
        let found = known.entry((kind, name.to_owned()));
        found
            .or_insert_with(|| id_of(self.call, kind, name))
            .clone()
    }
}

/// The id of a resource of this installation.
pub fn id_of(call: &Call<'_>, kind: Kind, name: &str) -> String {
    let placed = call.catalog().placement(kind, name).ok().flatten();
    let group = placed.map_or_else(|| DEFAULT_GROUP.to_owned(), |placed| placed.group);
    call.names.resource_id(&group, &call.full_type(kind), name)
}

/// The source of a copy, whose data whoever asks may read.
///
/// # Errors
/// 400; 403 for one whose data whoever asks may not read, and 404.
pub fn source(call: &Call<'_>, target: &str, id: &str) -> Result<(ResourceKind, String), ArmError> {
    let linked = Linked::parse(call, target, id)?;
    let (resource, verb) = match linked.kind.kind() {
        Kind::Disk => (ResourceKind::Disk, "beginGetAccess/action"),
        Kind::Snapshot => (ResourceKind::Snapshot, "beginGetAccess/action"),
        Kind::Image => (ResourceKind::Image, "read"),
        _ => {
            let why = format!("The value of parameter {target} is no disk, snapshot or image.");
            return Err(ArmError::parameter(target, why));
        }
    };
    let placed = linked.find(call, verb)?;
    Ok((resource, placed.name))
}

/// Refuses another creationData than the resource was made with: it is never run again.
///
/// # Errors
/// 409.
pub fn refuse_changed(now: &Value, body: &Value, pointer: &str) -> Result<(), ArmError> {
    let Some(wanted) = body.pointer(pointer).and_then(Value::as_object) else {
        return Ok(());
    };
    for (name, value) in wanted {
        let known = now.get(name).unwrap_or(&Value::Null);
        if !value.is_null() && !same(known, value) {
            let name = format!("{}.{name}", dotted(pointer));
            return Err(ArmError {
                target: Some(name.clone()),
                ..ArmError::new(
                    409,
                    "PropertyChangeNotAllowed",
                    format!("Changing property '{name}' is not allowed."),
                )
            });
        }
    }
    Ok(())
}

/// Compares what clients send back: ids in any case, with what was left out.
fn same(known: &Value, wanted: &Value) -> bool {
    match (known, wanted) {
        (Value::String(known), Value::String(wanted)) => known.eq_ignore_ascii_case(wanted),
        (Value::Object(known), Value::Object(wanted)) => wanted.iter().all(|(name, value)| {
            value.is_null() || same(known.get(name).unwrap_or(&Value::Null), value)
        }),
        (Value::Array(known), Value::Array(wanted)) => {
            known.len() == wanted.len() && known.iter().zip(wanted).all(|(k, w)| same(k, w))
        }
        (known, wanted) => known == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_back_is_no_change() {
        let now = json!({"createOption": "Copy", "sourceResourceId": "/subscriptions/S/x"});
        let body = |data: Value| json!({"properties": {"creationData": data}});
        let pointer = "/properties/creationData";
        for data in [
            json!({"createOption": "copy", "sourceResourceId": "/SUBSCRIPTIONS/s/X"}),
            json!({"createOption": "Copy", "imageReference": null}),
            json!({}),
        ] {
            refuse_changed(&now, &body(data), pointer).unwrap();
        }
        for (data, name) in [
            (
                json!({"createOption": "Empty"}),
                "properties.creationData.createOption",
            ),
            (
                json!({"sourceUri": "x"}),
                "properties.creationData.sourceUri",
            ),
        ] {
            let error = refuse_changed(&now, &body(data), pointer).unwrap_err();
            assert_eq!(error.target.as_deref(), Some(name));
            assert_eq!(error.code, "PropertyChangeNotAllowed");
        }
    }
}
