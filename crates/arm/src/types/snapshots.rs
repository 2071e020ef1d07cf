//! `Microsoft.Compute/snapshots`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::{one_of, optional_bool, optional_text, refuse_unknown};
use super::disks::{READ_ONLY, all_of, common_settings, find_of, rewrap, show_many, shown};
use super::sources::{Ids, encryption, is_encryption, refuse_changed, refuse_other_dek, source};

use crate::access;
use crate::call::{Call, Put, ResourceType, Wanted};
use crate::error::ArmError;
use crate::placed::of_many;
use disks::{Disk, LayerOp, Outline, SnapshotRequest};
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
        Ok(body_of(&Ids::new(call), placed, &view))
    }

    fn show_many(
        &self,
        call: &Call<'_>,
        placed: &[PlacementRecord],
    ) -> Result<Vec<Option<Value>>, ArmError> {
        let ids = Ids::new(call);
        show_many(call, ResourceKind::Snapshot, placed, |placed, view| {
            body_of(&ids, placed, view)
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
        rewrap(call, kind, put, &view)
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

fn body_of(ids: &Ids<'_, '_>, placed: &PlacementRecord, view: &Outline) -> Value {
    let mut body = shown(ids, placed, view, "Standard_LRS");
    body["properties"]["incremental"] = json!(view.incremental);
    body["properties"]["completionPercent"] = json!(100.0);
    if placed.settings["creationData"].is_null() {
        // What the command line made: of which disk no header says.
        body["properties"]["creationData"] = json!({"createOption": "Copy"});
    }
    body
}

/// Makes a snapshot, and wraps its DEKs under its set. One that cannot be under that set is not there.
fn make(call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
    let (installation, kind) = (call.installation(), ResourceKind::Snapshot);
    let name = &put.placed.name;
    let disk = made_of(call, put.body)?;
    if let Some(set) = encryption(call, put.body)? {
        refuse_other_dek(call, &disk, set.as_deref())?;
    }
    let request = SnapshotRequest {
        kind,
        name: name.clone(),
        incremental: optional_bool(put.body, "/properties/incremental")?.unwrap_or(false),
        data_dir: None,
    };
    let disk = Disk::find(installation, &disk)?;
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

/// The disk that a new snapshot is to be of.
fn made_of(call: &Call<'_>, body: &Value) -> Result<String, ArmError> {
    let options = &["Copy", "CopyStart", "Import", "Upload", "Empty"];
    let option = one_of(body, "/properties/creationData/createOption", options)?;
    let required = |target: &str| {
        ArmError::parameter(
            target,
            format!("Required parameter '{target}' is missing (null)."),
        )
    };
    match option {
        None => Err(required("properties.creationData.createOption")),
        Some("Copy") => {
            let target = "properties.creationData.sourceResourceId";
            let id = optional_text(body, "/properties/creationData/sourceResourceId")?;
            match source(call, target, id.ok_or_else(|| required(target))?)? {
                (ResourceKind::Disk, name) => Ok(name),
                _ => Err(ArmError::not_offered(
                    target,
                    "snapshots of anything but a disk",
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
    disks::delete_source(call.installation(), kind, name, &call.changes.runtime_dir)?;
    call.changes.merge_later();
    Ok(())
}
