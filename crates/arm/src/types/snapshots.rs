//! `Microsoft.Compute/snapshots`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::{one_of, optional_bool, optional_text, refuse_unknown};
use super::disks::{
    READ_ONLY, all_of, common_settings, find_of, new_clone, rewrap, show_many, shown,
};
use super::sources::{Ids, encryption, is_encryption, refuse_changed, refuse_other_dek, source};

use crate::access;
use crate::call::{Call, Put, ResourceType, Wanted};
use crate::copy_start::{self, COPY_START};
use crate::copying;
use crate::error::ArmError;
use crate::placed::of_many;
use disks::{DeepCopyRequest, Disk, DiskError, LayerOp, Outline, SnapshotRequest};
use installation::catalog::{Kind, PlacementRecord};
use installation::envelope::ResourceKind;
use server::FrontReply;

/// What a body may say of a snapshot.
const KNOWN: &[&str] = &[
    "creationData",
    "diskSizeGB",
    "encryption",
    "incremental",
    "networkAccessPolicy",
    "publicNetworkAccess",
    "osType",
    "hyperVGeneration",
];
const SKUS: &[&str] = &["Standard_LRS", "Standard_ZRS", "Premium_LRS"];

/// Snapshots.
pub struct Snapshots;

impl ResourceType for Snapshots {
    fn kind(&self) -> Kind {
        Kind::Snapshot
    }

    fn provider(&self) -> &'static str {
        "Microsoft.Compute"
    }

    fn name(&self) -> &'static str {
        "snapshots"
    }

    fn find(&self, call: &Call<'_>, name: &str) -> Result<Option<String>, ArmError> {
        find_of(call, ResourceKind::Snapshot, name)
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        all_of(call, ResourceKind::Snapshot)
    }

    fn listed(
        &self,
        call: &Call<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Vec<PlacementRecord>>, ArmError> {
        of_many(call, ResourceKind::Snapshot, wanted).map(Some)
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let view = disks::outline(call.installation(), ResourceKind::Snapshot, &placed.name)?;
        Ok(body_of(call, &Ids::new(call), placed, &view))
    }

    fn show_many(
        &self,
        call: &Call<'_>,
        placed: &[PlacementRecord],
    ) -> Result<Vec<Option<Value>>, ArmError> {
        let ids = Ids::new(call);
        show_many(call, ResourceKind::Snapshot, placed, |placed, view| {
            body_of(call, &ids, placed, view)
        })
    }

    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        refuse_unknown(put.body, KNOWN, READ_ONLY)?;
        optional_bool(put.body, "/properties/incremental")?;
        let settings = common_settings(put, SKUS)?;
        if put.exists {
            let now = self.show(call, put.placed)?;
            let now = &now["properties"];
            if !is_encryption(&now["encryption"], put.body) {
                encryption(call, put.body)?;
            }
            refuse_changed(&now["creationData"], put.body, "/properties/creationData")?;
            let fixed = json!({"incremental": now["incremental"], "diskSizeGB": now["diskSizeGB"]});
            let wanted = json!({"properties": {
                "incremental": put.body["properties"]["incremental"],
                "diskSizeGB": put.body["properties"]["diskSizeGB"],
            }});
            refuse_changed(&fixed, &wanted, "/properties")?;
        } else {
            encryption(call, put.body)?;
            made_of(call, put.body)?;
        }
        Ok(settings)
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        let kind = ResourceKind::Snapshot;
        let name = &put.placed.name;
        if !put.exists {
            return make(call, put);
        }
        access::end_forbidden(call.installation(), kind, name, &put.placed.settings)?;
        let view = disks::outline(call.installation(), kind, name)?;
        match rewrap(call, kind, put, &view)? {
            Some(id) => Ok(Some(id)),
            None => Ok(copy_start::go_on(call, kind, put.placed, &view)),
        }
    }

    fn below(
        &self,
        call: &Call<'_>,
        placed: &PlacementRecord,
        words: &[String],
    ) -> Option<Result<FrontReply, ArmError>> {
        access::below(call, placed, words)
    }

    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError> {
        delete_source(call, ResourceKind::Snapshot, name)
    }
}

fn body_of(call: &Call<'_>, ids: &Ids<'_, '_>, placed: &PlacementRecord, view: &Outline) -> Value {
    let mut body = shown(ids, placed, view, "Standard_LRS");
    body["properties"]["incremental"] = json!(view.incremental);
    body["properties"]["completionPercent"] = json!(100.0);
    if placed.settings["creationData"].is_null() {
        // What the command line made: of which disk no header says.
        body["properties"]["creationData"] = json!({"createOption": "Copy"});
    }
    copy_start::tell(call, placed, view, &mut body["properties"]);
    body
}

/// Makes a snapshot; the operation that copies its data, if it is a deep copy.
fn make(call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
    let incremental = optional_bool(put.body, "/properties/incremental")?.unwrap_or(false);
    match made_of(call, put.body)? {
        Made::Of(disk) => make_of(call, put, &disk, incremental),
        Made::DeepCopy(kind, source) => {
            let set = encryption(call, put.body)?;
            let request = DeepCopyRequest {
                kind: ResourceKind::Snapshot,
                request: new_clone(put, (kind, source), None, set),
                incremental,
                rate: None,
            };
            copy_start::make(call, put.placed, request)
        }
    }
}

/// Makes a snapshot, and wraps its DEKs under its set. One that cannot be under that set is not there.
fn make_of(
    call: &Call<'_>,
    put: &Put<'_>,
    disk: &str,
    incremental: bool,
) -> Result<Option<Uuid>, ArmError> {
    let (installation, kind) = (call.installation(), ResourceKind::Snapshot);
    let name = &put.placed.name;
    if let Some(set) = encryption(call, put.body)? {
        refuse_other_dek(call, disk, set.as_deref())?;
    }
    let request = SnapshotRequest {
        kind,
        name: name.clone(),
        incremental,
        data_dir: None,
    };
    let disk = Disk::find(installation, disk)?;
    call.changes
        .change_layers(installation, &disk, &LayerOp::CreateSnapshot(request))?;
    let wrapped = call.changes.retrying(|| {
        let view = disks::outline(installation, kind, name)?;
        rewrap(call, kind, put, &view)
    });
    wrapped.inspect_err(|_| {
        if let Err(error) = call.changes.retrying(|| delete_source(call, kind, name)) {
            log::error!(
                "the snapshot {name}, which was not to be, stays: {}",
                error.message
            );
        }
    })
}

/// What a new snapshot is to be made of.
enum Made {
    /// A disk, whose data it shares.
    Of(String),
    /// A disk or a snapshot, all of whose data is copied.
    DeepCopy(ResourceKind, String),
}

/// What a new snapshot is to be made of.
fn made_of(call: &Call<'_>, body: &Value) -> Result<Made, ArmError> {
    let options = &["Copy", COPY_START, "Import", "Upload", "Empty"];
    let option = one_of(body, "/properties/creationData/createOption", options)?;
    let required = |target: &str| {
        ArmError::parameter(
            target,
            format!("Required parameter '{target}' is missing (null)."),
        )
    };
    match option {
        None => Err(required("properties.creationData.createOption")),
        Some(option @ ("Copy" | COPY_START)) => {
            let target = "properties.creationData.sourceResourceId";
            let id = optional_text(body, "/properties/creationData/sourceResourceId")?;
            let (kind, name) = source(call, target, id.ok_or_else(|| required(target))?)?;
            match (option, kind) {
                (COPY_START, ResourceKind::Disk | ResourceKind::Snapshot) => {
                    Ok(Made::DeepCopy(kind, name))
                }
                (_, ResourceKind::Disk) => Ok(Made::Of(name)),
                _ => Err(ArmError::not_offered(
                    target,
                    "snapshots of anything but a disk, or, by a deep copy (CopyStart), a snapshot",
                )),
            }
        }
        Some(other) => Err(ArmError::not_offered(
            "properties.creationData.createOption",
            &format!("the createOption '{other}' of a snapshot"),
        )),
    }
}

/// Deletes a snapshot or an image. The layers that it leaves are merged in the background; that they are
/// to be is in the catalog, so that it is gone on with after a kill.
pub fn delete_source(call: &Call<'_>, kind: ResourceKind, name: &str) -> Result<(), ArmError> {
    let runtime = &call.changes.runtime_dir;
    let delete = || disks::delete_source(call.installation(), kind, name, runtime);
    match delete() {
        Err(DiskError::InUse { .. }) if copying::end(call, kind, name)? => delete()?,
        deleted => deleted?,
    }
    call.changes.merge_later();
    Ok(())
}
