//! `Microsoft.Compute/disks`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::{one_of, optional_text, refuse_unknown};
use super::import_source::{ImportSource, without_signature};
use super::sources::{Ids, encryption, encryption_view, is_encryption, refuse_changed, source};

use crate::access;
use crate::call::{Call, Put, ResourceType, Wanted};
use crate::copy_start::{self, COPY_START};
use crate::copying;
use crate::error::ArmError;
use crate::move_disk::move_disk;
use crate::names::time_text;
use crate::placed::of_many;
use disks::import::Cancel;
use disks::{
    CloneRequest, CreateRequest, DEFAULT_SECTOR_SIZE, DeepCopyRequest, Disk, DiskError, LayerOp,
    Outline,
};
use installation::catalog::{DiskState, Kind, PlacementRecord};
use installation::envelope::{CloneSource, MAX_DISK_SIZE, ResourceKind};
use server::FrontReply;

/// Azure's unit of sizes.
pub const GIB: u64 = 1 << 30;
/// What a body may say of a disk.
const KNOWN: &[&str] = &[
    "creationData",
    "diskSizeGB",
    "encryption",
    "networkAccessPolicy",
    "publicNetworkAccess",
    "osType",
    "hyperVGeneration",
];
/// What clients send back as they got it.
pub const READ_ONLY: &[&str] = &[
    "provisioningState",
    "diskState",
    "timeCreated",
    "uniqueId",
    "diskSizeBytes",
    "completionPercent",
    "incrementalSnapshotFamilyId",
    "LastOwnershipUpdateTime",
];
/// Azure's names of storage; one is as another here.
const DISK_SKUS: &[&str] = &[
    "Premium_LRS",
    "Premium_ZRS",
    "PremiumV2_LRS",
    "Standard_LRS",
    "StandardSSD_LRS",
    "StandardSSD_ZRS",
    "UltraSSD_LRS",
];

/// Azure's names of how a disk is made.
pub(super) const OPTIONS: &[&str] = &[
    "Empty",
    "Copy",
    "FromImage",
    "Attach",
    "CopyFromSanSnapshot",
    COPY_START,
    "Import",
    "ImportSecure",
    "Restore",
    "Upload",
    "UploadPreparedSecure",
];

/// Disks.
pub struct Disks;

impl ResourceType for Disks {
    fn kind(&self) -> Kind {
        Kind::Disk
    }

    fn provider(&self) -> &'static str {
        "Microsoft.Compute"
    }

    fn name(&self) -> &'static str {
        "disks"
    }

    fn find(&self, call: &Call<'_>, name: &str) -> Result<Option<String>, ArmError> {
        find_of(call, ResourceKind::Disk, name)
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        all_of(call, ResourceKind::Disk)
    }

    fn listed(
        &self,
        call: &Call<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Vec<PlacementRecord>>, ArmError> {
        of_many(call, ResourceKind::Disk, wanted).map(Some)
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let view = disks::outline(call.installation(), ResourceKind::Disk, &placed.name)?;
        Ok(body_of(call, &Ids::new(call), placed, &view))
    }

    fn show_many(
        &self,
        call: &Call<'_>,
        placed: &[PlacementRecord],
    ) -> Result<Vec<Option<Value>>, ArmError> {
        let ids = Ids::new(call);
        show_many(call, ResourceKind::Disk, placed, |placed, view| {
            body_of(call, &ids, placed, view)
        })
    }

    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        refuse_unknown(put.body, KNOWN, READ_ONLY)?;
        wanted_size(put.body)?;
        // What anybody who may read the disk is shown does not let them read the source.
        let shown = without_signature(put.body);
        let shown = Put {
            body: &shown,
            ..*put
        };
        let settings = common_settings(&shown, DISK_SKUS)?;
        if put.exists {
            let now = self.show(call, put.placed)?;
            if !is_encryption(&now["properties"]["encryption"], put.body) {
                encryption(call, put.body)?;
            }
            let data = &now["properties"]["creationData"];
            refuse_changed(data, shown.body, "/properties/creationData")?;
            let size = now["properties"]["diskSizeGB"].as_u64().unwrap_or_default();
            if wanted_size(put.body)?.is_some_and(|wanted| wanted < size) {
                return Err(smaller(&put.placed.name, size));
            }
            return Ok(settings);
        }
        encryption(call, put.body)?;
        made_of(call, put.body)?;
        Ok(settings)
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        match put.exists {
            true => change(call, put),
            false => make(call, put),
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
        let (kind, runtime) = (ResourceKind::Disk, &call.changes.runtime_dir);
        let delete = || disks::delete(call.installation(), kind, name, runtime);
        match delete() {
            Err(DiskError::InUse { .. }) if copying::end(call, kind, name)? => delete()?,
            deleted => deleted?,
        }
        // What a disk and its copy have shared.
        if !call.catalog().merges()?.is_empty() {
            call.changes.merge_later();
        }
        Ok(())
    }
}

/// The name as it is written of the one that a name means. What a dead process has left half made or half deleted
/// is cleared away before.
pub fn find_of(
    call: &Call<'_>,
    kind: ResourceKind,
    name: &str,
) -> Result<Option<String>, ArmError> {
    let catalog = call.catalog();
    let Some(found) = catalog.name_of(kind.into(), name)? else {
        return Ok(None);
    };
    match catalog.resource(kind, &found) {
        Ok(row) if row.record.state == DiskState::Ready => Ok(Some(found)),
        _ => {
            disks::sweep_one(call.installation(), kind, &found)?;
            Ok(catalog.name_of(kind.into(), name)?)
        }
    }
}

/// The names of all of a kind that are complete.
pub fn all_of(call: &Call<'_>, kind: ResourceKind) -> Result<Vec<String>, ArmError> {
    let all = Wanted {
        group: None,
        after: None,
        limit: usize::MAX,
    };
    let placed = of_many(call, kind, &all)?.into_iter();
    Ok(placed.map(|placed| placed.name).collect())
}

/// The bodies of many, with one look at the catalog for all: nothing of what was deleted meanwhile.
pub fn show_many(
    call: &Call<'_>,
    kind: ResourceKind,
    placed: &[PlacementRecord],
    show: impl Fn(&PlacementRecord, &Outline) -> Value,
) -> Result<Vec<Option<Value>>, ArmError> {
    let names: Vec<&str> = placed.iter().map(|placed| placed.name.as_str()).collect();
    let views = disks::outlines(call.installation(), kind, &names)?;
    let both = placed.iter().zip(views);
    Ok(both
        .map(|(placed, view)| view.map(|view| show(placed, &view)))
        .collect())
}

fn body_of(call: &Call<'_>, ids: &Ids<'_, '_>, placed: &PlacementRecord, view: &Outline) -> Value {
    let mut body = shown(ids, placed, view, "Premium_LRS");
    if call.changes.is_moving(&call.id(placed), view) {
        body["properties"]["provisioningState"] = json!("Updating");
    }
    copy_start::tell(call, placed, view, &mut body["properties"]);
    if let Some(attached) = &view.attached {
        let subscription = call.names.subscription_id();
        let host = attached.host_name();
        body["managedBy"] = json!(format!("{subscription}/providers/Sealdisk/hosts/{host}"));
        body["properties"]["LastOwnershipUpdateTime"] = json!(time_text(attached.since));
    }
    body
}

/// What disks and snapshots have in common of an answer.
pub fn shown(ids: &Ids<'_, '_>, placed: &PlacementRecord, view: &Outline, sku: &str) -> Value {
    let settings = &placed.settings;
    let sku = settings["sku"].as_str().unwrap_or(sku);
    let tier = sku.split('_').next().unwrap_or_default();
    let state = match view.disk_state {
        // It can be attached again: the next attach goes on with what was left.
        "Dirty" => "Unattached",
        state => state,
    };
    let mut body = json!({
        "sku": {"name": sku, "tier": tier},
        "properties": {
            "creationData": creation_data(ids, settings, view),
            "diskSizeGB": gib(view.disk_size_bytes),
            "diskSizeBytes": view.disk_size_bytes,
            "encryption": encryption_view(ids, &view.encryption),
            "diskState": state,
            "provisioningState": "Succeeded",
            "timeCreated": time_text(view.time_created),
            "uniqueId": view.unique_id,
            "networkAccessPolicy": settings["networkAccessPolicy"].as_str().unwrap_or("AllowAll"),
            "publicNetworkAccess": settings["publicNetworkAccess"].as_str().unwrap_or("Enabled"),
        },
    });
    for name in ["osType", "hyperVGeneration"] {
        if let Some(value) = settings[name].as_str() {
            body["properties"][name] = json!(value);
        }
    }
    body
}

/// A size in Azure's unit; what is no multiple is rounded up.
fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(GIB)
}

/// As the client has said, or as what is known of a disk that the command line made.
fn creation_data(ids: &Ids<'_, '_>, settings: &Value, view: &Outline) -> Value {
    if settings["creationData"].is_object() {
        return settings["creationData"].clone();
    }
    match &view.source {
        None => json!({"createOption": "Empty"}),
        Some(CloneSource { kind, name, .. }) if *kind == ResourceKind::Image => json!({
            "createOption": "FromImage",
            "imageReference": {"id": ids.of(Kind::Image, name)},
        }),
        Some(CloneSource { kind, name, .. }) => json!({
            "createOption": "Copy",
            "sourceResourceId": ids.of((*kind).into(), name),
        }),
    }
}

/// The settings that disks and snapshots have in common.
pub fn common_settings(put: &Put<'_>, skus: &[&'static str]) -> Result<Value, ArmError> {
    let before = &put.placed.settings;
    let body = put.body;
    let mut settings = json!({});
    let mut keep = |name: &str, value: Option<&str>| {
        let value = value.map(|value| json!(value));
        if let Some(value) = value.or_else(|| before.get(name).cloned()) {
            settings[name] = value;
        }
    };
    keep("sku", one_of(body, "/sku/name", skus)?);
    let policies = &["AllowAll", "AllowPrivate", "DenyAll"];
    let policy = one_of(body, "/properties/networkAccessPolicy", policies)?;
    if policy == Some("AllowPrivate") {
        let what = "the network access policy AllowPrivate, which needs private endpoints";
        let target = "properties.networkAccessPolicy";
        return Err(ArmError::not_offered(target, what));
    }
    keep("networkAccessPolicy", policy);
    let access = &["Enabled", "Disabled"];
    keep(
        "publicNetworkAccess",
        one_of(body, "/properties/publicNetworkAccess", access)?,
    );
    keep(
        "osType",
        one_of(body, "/properties/osType", &["Linux", "Windows"])?,
    );
    keep(
        "hyperVGeneration",
        one_of(body, "/properties/hyperVGeneration", &["V1", "V2"])?,
    );
    settings["creationData"] = match put.exists {
        true => before["creationData"].clone(),
        false => body["properties"]["creationData"].clone(),
    };
    Ok(settings)
}

/// `diskSizeGB` of a body.
pub(super) fn wanted_size(body: &Value) -> Result<Option<u64>, ArmError> {
    let target = "properties.diskSizeGB";
    match body.pointer("/properties/diskSizeGB") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let most = MAX_DISK_SIZE / GIB;
            let size = value.as_u64().filter(|size| (1..=most).contains(size));
            let message = || {
                format!(
                    "The value of parameter {target} is invalid: it has to be from 1 to {most}."
                )
            };
            Ok(Some(
                size.ok_or_else(|| ArmError::parameter(target, message()))?,
            ))
        }
    }
}

fn smaller(name: &str, size: u64) -> ArmError {
    ArmError {
        target: Some("properties.diskSizeGB".into()),
        ..ArmError::new(
            409,
            "ResizeDiskError",
            format!("The disk '{name}' has {size} GiB. A disk cannot be made smaller."),
        )
    }
}

/// What a new disk is to be made of.
enum Made {
    /// Nothing: zeros.
    Empty,
    /// What is going to be uploaded, of so many bytes.
    Upload(u64),
    /// What is imported, by an operation of its own.
    Import,
    /// A snapshot, an image or a disk.
    Of(ResourceKind, String),
    /// The same, all of whose data is copied.
    DeepCopy(ResourceKind, String),
}

/// What a new disk is to be made of.
fn made_of(call: &Call<'_>, body: &Value) -> Result<Made, ArmError> {
    let option = one_of(body, "/properties/creationData/createOption", OPTIONS)?;
    let required = |target: &str| {
        ArmError::parameter(
            target,
            format!("Required parameter '{target}' is missing (null)."),
        )
    };
    let data = "/properties/creationData";
    match option {
        None => Err(required("properties.creationData.createOption")),
        Some("Empty") => match wanted_size(body)? {
            Some(_) => Ok(Made::Empty),
            None => Err(required("properties.diskSizeGB")),
        },
        Some("Upload") => uploaded_size(body).map(Made::Upload),
        Some("Import") => ImportSource::of_body(call, body).map(|_| Made::Import),
        Some(option @ ("Copy" | COPY_START)) => {
            let target = "properties.creationData.sourceResourceId";
            let id = optional_text(body, &format!("{data}/sourceResourceId"))?;
            let (kind, name) = source(call, target, id.ok_or_else(|| required(target))?)?;
            Ok(match option {
                COPY_START => Made::DeepCopy(kind, name),
                _ => Made::Of(kind, name),
            })
        }
        Some("FromImage") => {
            let target = "properties.creationData.imageReference.id";
            let id = optional_text(body, &format!("{data}/imageReference/id"))?;
            let (kind, name) = source(call, target, id.ok_or_else(|| required(target))?)?;
            match kind {
                ResourceKind::Image => Ok(Made::Of(kind, name)),
                _ => Err(ArmError::parameter(
                    target,
                    format!("The value of parameter {target} is no image."),
                )),
            }
        }
        Some(other) => Err(ArmError::not_offered(
            "properties.creationData.createOption",
            &format!("the createOption '{other}' yet"),
        )),
    }
}

/// The size of a disk that is to be uploaded: that of a VHD without its footer.
fn uploaded_size(body: &Value) -> Result<u64, ArmError> {
    const MIB: u64 = 1 << 20;
    let target = "properties.creationData.uploadSizeBytes";
    let footer = disks::FOOTER_LEN as u64;
    let wanted = body.pointer("/properties/creationData/uploadSizeBytes");
    let size = wanted.and_then(|wanted| wanted.as_u64()?.checked_sub(footer));
    let is_possible = |size: &u64| size.is_multiple_of(MIB) && (MIB..=MAX_DISK_SIZE).contains(size);
    let size = size.filter(is_possible).ok_or_else(|| {
        let message = format!(
            "The value of parameter {target} is invalid: it has to be that of a fixed VHD, a multiple of 1 MiB and \
             {footer} bytes for the footer."
        );
        ArmError::parameter(target, message)
    })?;
    match wanted_size(body)? {
        Some(wanted) if wanted != gib(size) => {
            let target = "properties.diskSizeGB";
            let message = format!(
                "The value of parameter {target} is invalid: the upload has {} GiB; leave it out.",
                gib(size)
            );
            Err(ArmError::parameter(target, message))
        }
        _ => Ok(size),
    }
}

fn make(call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
    let name = put.placed.name.clone();
    let size = wanted_size(put.body)?.map(|size| size * GIB);
    let set = encryption(call, put.body)?;
    let installation = call.installation();
    match made_of(call, put.body)? {
        made @ (Made::Empty | Made::Upload(_)) => {
            let size = match made {
                Made::Upload(size) => Some(size),
                _ => size,
            };
            let request = CreateRequest {
                name,
                size,
                source: None,
                disk_encryption_set: set.flatten(),
                sector_size: DEFAULT_SECTOR_SIZE,
                logical_sector_size: None,
                data_dir: None,
            };
            match made {
                Made::Upload(_) => disks::create_for_upload(installation, &request)?,
                _ => disks::create(installation, &request, &Cancel::default(), |_| |_: u64| ())?,
            };
        }
        Made::Import => return Err(ArmError::internal("an import was no operation")),
        Made::Of(kind, source) => clone(call, new_clone(put, (kind, source), size, set))?,
        Made::DeepCopy(kind, source) => {
            let request = DeepCopyRequest {
                kind: ResourceKind::Disk,
                request: new_clone(put, (kind, source), size, set),
                incremental: false,
                rate: None,
            };
            return copy_start::make(call, put.placed, request);
        }
    }
    Ok(None)
}

/// A copy as it is asked for, whose size is in bytes.
pub fn new_clone(
    put: &Put<'_>,
    source: (ResourceKind, String),
    size: Option<u64>,
    set: Option<Option<String>>,
) -> CloneRequest {
    CloneRequest {
        name: put.placed.name.clone(),
        source,
        size,
        disk_encryption_set: set,
        sector_size: None,
        data_dir: None,
    }
}

fn clone(call: &Call<'_>, request: CloneRequest) -> Result<(), ArmError> {
    let installation = call.installation();
    match &request.source {
        (ResourceKind::Disk, source) => {
            let disk = Disk::find(installation, source)?;
            let op = LayerOp::CloneDisk(request);
            call.changes.change_layers(installation, &disk, &op)
        }
        _ => Ok(disks::clone(installation, &request).map(|_| ())?),
    }
}

fn change(call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
    let (installation, kind) = (call.installation(), ResourceKind::Disk);
    let name = &put.placed.name;
    access::end_forbidden(installation, kind, name, &put.placed.settings)?;
    let view = disks::outline(installation, kind, name)?;
    let moving = rewrap(call, kind, put, &view)?;
    let wanted = wanted_size(put.body)?.unwrap_or_default();
    if wanted > gib(view.disk_size_bytes) {
        let disk = Disk::find(call.installation(), name)?;
        let size = wanted * GIB;
        call.changes
            .change_layers(call.installation(), &disk, &LayerOp::Grow { size })?;
    }
    match moving {
        Some(id) => Ok(Some(id)),
        None => Ok(copy_start::go_on(call, kind, put.placed, &view)),
    }
}

/// Wraps the DEKs under another key, if the body says so. The data of a disk is copied under a new DEK where the key is
/// that of a set which encrypts another number of times, by the operation that is returned; of anything else it is not,
/// which is refused.
pub fn rewrap(
    call: &Call<'_>,
    kind: ResourceKind,
    put: &Put<'_>,
    view: &Outline,
) -> Result<Option<Uuid>, ArmError> {
    let now = &view.encryption;
    let wanted = match is_encryption(&encryption_view(&Ids::new(call), now), put.body) {
        // Where a move was cut off it goes on.
        true => Some(now.disk_encryption_set_id.clone()),
        false => encryption(call, put.body)?,
    };
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let (installation, name, set) = (call.installation(), &put.placed.name, wanted.as_deref());
    if kind == ResourceKind::Disk && disks::needs_other_dek(installation, kind, name, set)? {
        return move_disk(call, put.placed, view, set);
    }
    if wanted != now.disk_encryption_set_id {
        disks::update(installation, kind, name, set)?;
    }
    Ok(None)
}
