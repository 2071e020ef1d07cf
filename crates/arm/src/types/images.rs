//! `Microsoft.Compute/images`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::{one_of, optional_text, refuse_unknown};
use super::disks::{GIB, all_of, find_of};
use super::snapshots::delete_source;
use super::sources::{Ids, encryption_view, refuse_changed, source};

use crate::call::{Call, Put, ResourceType, Wanted};
use crate::error::ArmError;
use crate::placed::of_many;
use disks::{Disk, LayerOp, SnapshotRequest};
use installation::catalog::{Kind, PlacementRecord};
use installation::envelope::ResourceKind;

const KNOWN: &[&str] = &["storageProfile", "hyperVGeneration"];
const IGNORED: &[&str] = &["provisioningState"];
const PROFILE: &str = "/properties/storageProfile";

/// Images.
pub struct Images;

impl ResourceType for Images {
    fn kind(&self) -> Kind {
        Kind::Image
    }

    fn provider(&self) -> &'static str {
        "Microsoft.Compute"
    }

    fn name(&self) -> &'static str {
        "images"
    }

    fn find(&self, call: &Call<'_>, name: &str) -> Result<Option<String>, ArmError> {
        find_of(call, ResourceKind::Image, name)
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        all_of(call, ResourceKind::Image)
    }

    fn listed(
        &self,
        call: &Call<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Vec<PlacementRecord>>, ArmError> {
        of_many(call, ResourceKind::Image, wanted).map(Some)
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let view = disks::outline(call.installation(), ResourceKind::Image, &placed.name)?;
        let settings = &placed.settings;
        let mut profile = match settings["storageProfile"].is_object() {
            true => settings["storageProfile"].clone(),
            false => json!({"osDisk": {"osType": "Linux", "osState": "Generalized"}}),
        };
        profile["osDisk"]["diskSizeGB"] = json!(view.disk_size_bytes.div_ceil(GIB));
        let encryption = encryption_view(&Ids::new(call), &view.encryption);
        if let Some(id) = encryption.get("diskEncryptionSetId") {
            profile["osDisk"]["diskEncryptionSet"] = json!({"id": id});
        }
        if profile["dataDisks"].is_null() {
            profile["dataDisks"] = json!([]);
        }
        Ok(json!({"properties": {
            "storageProfile": profile,
            "hyperVGeneration": settings["hyperVGeneration"].as_str().unwrap_or("V1"),
            "provisioningState": "Succeeded",
        }}))
    }

    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        refuse_unknown(put.body, KNOWN, IGNORED)?;
        let generation = one_of(put.body, "/properties/hyperVGeneration", &["V1", "V2"])?;
        if put.exists {
            let now = self.show(call, put.placed)?;
            refuse_changed(&now["properties"]["storageProfile"], put.body, PROFILE)?;
            return Ok(put.placed.settings.clone());
        }
        made_of(call, put.body)?;
        Ok(json!({
            "storageProfile": put.body.pointer(PROFILE),
            "hyperVGeneration": generation.unwrap_or("V1"),
        }))
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        if put.exists {
            return Ok(None);
        }
        let (kind, from) = made_of(call, put.body)?;
        let name = put.placed.name.clone();
        match kind {
            ResourceKind::Disk => {
                let request = SnapshotRequest {
                    kind: ResourceKind::Image,
                    name,
                    incremental: false,
                    data_dir: None,
                };
                let disk = Disk::find(call.installation(), &from)?;
                call.changes.change_layers(
                    call.installation(),
                    &disk,
                    &LayerOp::CreateSnapshot(request),
                )?;
            }
            _ => disks::image_of_snapshot(call.installation(), &name, &from, None)?,
        }
        Ok(None)
    }

    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError> {
        delete_source(call, ResourceKind::Image, name)
    }

    fn created_status(&self) -> u16 {
        201
    }
}

/// The disk or the snapshot that a new image is to be of.
fn made_of(call: &Call<'_>, body: &Value) -> Result<(ResourceKind, String), ArmError> {
    if optional_text(body, "/properties/sourceVirtualMachine/id")?.is_some() {
        let target = "properties.sourceVirtualMachine";
        return Err(ArmError::not_offered(target, "virtual machines"));
    }
    let others = body.pointer(&format!("{PROFILE}/dataDisks"));
    if others
        .and_then(Value::as_array)
        .is_some_and(|disks| !disks.is_empty())
    {
        let target = "properties.storageProfile.dataDisks";
        return Err(ArmError::not_offered(target, "images of several disks"));
    }
    let os_disk = format!("{PROFILE}/osDisk");
    if optional_text(body, &format!("{os_disk}/blobUri"))?.is_some() {
        let target = "properties.storageProfile.osDisk.blobUri";
        return Err(ArmError::not_offered(target, "images of blobs"));
    }
    let disk = optional_text(body, &format!("{os_disk}/managedDisk/id"))?;
    let snapshot = optional_text(body, &format!("{os_disk}/snapshot/id"))?;
    let target = match snapshot {
        Some(_) => "properties.storageProfile.osDisk.snapshot.id",
        None => "properties.storageProfile.osDisk.managedDisk.id",
    };
    let id = snapshot.or(disk).ok_or_else(|| {
        ArmError::parameter(
            target,
            format!("Required parameter '{target}' is missing (null)."),
        )
    })?;
    let found = source(call, target, id)?;
    match found.0 {
        ResourceKind::Disk | ResourceKind::Snapshot => Ok(found),
        ResourceKind::Image => Err(ArmError::parameter(
            target,
            format!("The value of parameter {target} is no disk and no snapshot."),
        )),
    }
}
