//! Format version 1, which is read and no longer written: disks of one layer.
//!
//! Its payload is that of version 2 without `kind`, `generation`, `incremental`, `source` and `job`,
//! and its layer has no `origin`, `size` and `diskEncryptionSet` of its own.

use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{DekCheck, Envelope, HeaderPayload, LayerRecord, ResourceKind, USUAL_SECTOR_SIZE};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Payload {
    disk: Uuid,
    name: String,
    size: u64,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    disk_encryption_set: Option<String>,
    attach: Uuid,
    layers: [Layer; 1],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Layer {
    id: Uuid,
    data_unit: u32,
    envelope: Envelope,
    check: DekCheck,
}

impl From<Payload> for HeaderPayload {
    fn from(old: Payload) -> Self {
        let Payload { disk, size, .. } = old;
        let layers = old.layers.map(|layer| LayerRecord {
            id: layer.id,
            origin: disk,
            size,
            data_unit: layer.data_unit,
            disk_encryption_set: old.disk_encryption_set.clone(),
            envelope: layer.envelope,
            platform_envelope: None,
            check: layer.check,
        });
        Self {
            kind: ResourceKind::Disk,
            disk,
            name: old.name,
            size,
            created: old.created,
            disk_encryption_set: old.disk_encryption_set,
            attach: old.attach,
            generation: 1,
            incremental: false,
            source: None,
            job: None,
            gone: Vec::new(),
            session: None,
            write_through: false,
            failed_sync: None,
            upload: None,
            logical_sector_size: USUAL_SECTOR_SIZE,
            layers: layers.into(),
        }
    }
}
