//! The JSON payload of a header: what it says and which values are acceptable.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{DekCheck, Envelope};

/// The largest disk, 64 TiB (Azure's Ultra disks have the same limit): far below where offsets in
/// files or the 2^64 sectors of a tweak end.
pub const MAX_DISK_SIZE: u64 = 64 << 40;

/// Longest name of a disk, in bytes: Azure's limit.
const MAX_NAME_LEN: usize = 80;

/// What a header says about its disk. Field names are the JSON's.
///
/// A field that this version does not know makes the header unreadable, because whoever added it
/// without a new format version may rely on its being honoured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderPayload {
    /// The disk.
    pub disk: Uuid,
    /// Its name when the header was written.
    pub name: String,
    /// Provisioned size in bytes, a multiple of every layer's data unit.
    pub size: u64,
    /// When the disk was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The disk encryption set whose key wraps the DEKs; `None` is the platform-managed key.
    pub disk_encryption_set: Option<String>,
    /// Changes with each attach and ties the pending map on tmpfs to the disk's state.
    pub attach: Uuid,
    /// The layers, bottom to top; only the last one is written to.
    pub layers: Vec<LayerRecord>,
}

/// One layer: its files are `ID.data` and `ID.map` beside the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayerRecord {
    /// The layer.
    pub id: Uuid,
    /// Bytes that are encrypted under one tweak: 512 or 4096.
    pub data_unit: u32,
    /// Its wrapped DEK.
    pub envelope: Envelope,
    /// Tells a wrong DEK.
    pub check: DekCheck,
}

impl HeaderPayload {
    /// The layer that is written to, whose DEK authenticates the header.
    pub fn top(&self) -> Option<&LayerRecord> {
        self.layers.last()
    }

    /// The rules that a payload keeps, read or written.
    ///
    /// Text from an unauthenticated header reaches terminals and paths, so none of it may hold
    /// anything but the characters that names and URLs have.
    pub(super) fn check(&self) -> Result<(), String> {
        check_disk_name(&self.name)?;
        if let Some(set) = &self.disk_encryption_set {
            plain("the disk encryption set's name", set)?;
        }
        let [layer] = self.layers.as_slice() else {
            return Err(format!(
                "it has {} layers where this version knows disks of one",
                self.layers.len()
            ));
        };
        if !matches!(layer.data_unit, 512 | 4096) {
            return Err(format!(
                "a data unit of {} bytes (512 and 4096 exist)",
                layer.data_unit
            ));
        }
        if self.size == 0 || self.size > MAX_DISK_SIZE {
            return Err(format!(
                "a size of {} bytes (1 to {MAX_DISK_SIZE} are possible)",
                self.size
            ));
        }
        if !self.size.is_multiple_of(u64::from(layer.data_unit)) {
            return Err(format!(
                "a size of {} bytes is no multiple of the data unit, {}",
                self.size, layer.data_unit
            ));
        }
        let envelope = &layer.envelope;
        plain("the vault's URL", &envelope.vault_url)?;
        plain("the key's name", &envelope.key_name)?;
        plain("the key's version", &envelope.key_version)?;
        if envelope.wrapped.is_empty() {
            return Err("the wrapped key is empty".into());
        }
        Ok(())
    }
}

/// Azure's rule for the name of a disk: 1 to 80 letters, digits, `_`, `.` and `-`, starting with a
/// letter, digit or `_`. Such a name is a safe file name too.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_disk_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(format!("a disk's name has 1 to {MAX_NAME_LEN} characters"));
    }
    if !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
        return Err(format!(
            "the name {name:?} is not acceptable: a disk's name has letters, digits, '_', '.' and \
             '-' only and starts with a letter, digit or '_'"
        ));
    }
    Ok(())
}

fn plain(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 512 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{what} is empty, too long or has odd characters"));
    }
    Ok(())
}
