//! The JSON payload of a header: what it says and which values are acceptable.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use keys::units::MAX_LAYERS;

use super::{DekCheck, Envelope, FailedSync, Session};

/// The largest disk, 64 TiB (Azure's Ultra disks have the same limit): far below where offsets in
/// files or the 2^64 sectors of a tweak end.
pub const MAX_DISK_SIZE: u64 = 64 << 40;

/// The logical sector size that is not written down: that of nearly all disks.
pub const USUAL_SECTOR_SIZE: u32 = 512;

/// The most layers that were dropped and that a header still names.
pub const MAX_GONE: usize = 64;

/// Longest name of a resource, in bytes: Azure's limit.
const MAX_NAME_LEN: usize = 80;

/// What a header is the header of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// Can be attached; its top layer is written to.
    Disk,
    /// What a disk held at a moment; none of its layers changes, but that of a deep copy, into which goes what it inherits.
    Snapshot,
    /// What new disks are made of; none of its layers changes.
    Image,
}

impl ResourceKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Disk, Self::Snapshot, Self::Image];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }

    /// The word with its indefinite article.
    pub fn with_article(self) -> &'static str {
        match self {
            Self::Disk => "a disk",
            Self::Snapshot => "a snapshot",
            Self::Image => "an image",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a header says about its disk, snapshot or image. Field names are the JSON's.
///
/// A field that this version does not know makes the header unreadable, because whoever added it
/// without a new format version may rely on its being honoured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderPayload {
    /// What it is.
    pub kind: ResourceKind,
    /// The id of the resource.
    pub disk: Uuid,
    /// Its name when the header was written.
    pub name: String,
    /// Provisioned size in bytes: that of the top layer.
    pub size: u64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The disk encryption set whose key wraps the layers that are its own, the top one among them;
    /// `None` is the platform-managed key.
    pub disk_encryption_set: Option<String>,
    /// Changes with each attach and ties the runtime map on tmpfs to the disk's state.
    pub attach: Uuid,
    /// How many DEKs a disk was rotated through, from 1 on.
    pub generation: u32,
    /// A snapshot of what changed since the one before.
    pub incremental: bool,
    /// What a disk, or a snapshot that is a deep copy in the making, was cloned from and still shares layers of.
    pub source: Option<CloneSource>,
    /// What is being done to the layers of a disk, or of such a snapshot.
    pub job: Option<Job>,
    /// The logical block size that guests see, 512 or 4096: the disk's size and all requests are
    /// multiples of it.
    #[serde(default = "usual_sector_size", skip_serializing_if = "is_usual")]
    pub logical_sector_size: u32,
    /// The layers, bottom to top; only a disk's last one is written to.
    pub layers: Vec<LayerRecord>,
    /// Layers that were dropped on purpose and whose files may still be there: whoever finds such files
    /// may remove them. Files of any other layer may belong to a newer header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Uuid>,
    /// From a disk's attach until it is detached in order, or what its daemon left is made durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// The guest asked for write-through (`writeback` set to 0), as of the last orderly detach.
    #[serde(default, skip_serializing_if = "is_false")]
    pub write_through: bool,
    /// A sync of a layer failed, until the disk is repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_sync: Option<FailedSync>,
    /// A disk that is being uploaded, which nobody may use before it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
}

fn usual_sector_size() -> u32 {
    USUAL_SECTOR_SIZE
}

fn is_usual(size: &u32) -> bool {
    *size == USUAL_SECTOR_SIZE
}

/// How far the upload of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upload {
    /// The footer that was written last is that of a fixed VHD of the disk's size.
    pub footer: bool,
}

/// The snapshot, the image or the disk from which a disk or a snapshot was cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneSource {
    /// Which of them.
    pub kind: ResourceKind,
    /// Its id.
    pub id: Uuid,
    /// Its name when the clone was made.
    pub name: String,
}

/// Work on a disk's layers that goes on until the header no longer says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// What it is for.
    pub kind: JobKind,
    /// The layers whose content goes up into the top one, and which are dropped in the end.
    pub drop: Vec<Uuid>,
    /// It is not to go on until somebody says so.
    pub paused: bool,
    /// Bytes per second that it may copy; `None` is without limit.
    pub rate: Option<u64>,
}

/// What a [`Job`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobKind {
    /// The disk gets a new DEK.
    Rotate,
    /// The disk, or the snapshot, gets independent of what it was cloned from, and of its snapshots.
    Flatten,
    /// The layer of a deleted snapshot goes into the one above it.
    Merge,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rotate => "rotate-dek",
            Self::Flatten => "flatten",
            Self::Merge => "merge",
        })
    }
}

/// One layer: its files are `ID.data` and `ID.map` beside the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayerRecord {
    /// The layer.
    pub id: Uuid,
    /// The disk for which it was made, which its map names.
    pub origin: Uuid,
    /// Bytes of the disk that it covers: the disk's size when it was frozen, or has now.
    pub size: u64,
    /// Bytes that are encrypted under one tweak: 512 or 4096.
    pub data_unit: u32,
    /// The disk encryption set whose identity unwraps its DEK; `None` is the platform-managed key.
    pub disk_encryption_set: Option<String>,
    /// Its wrapped DEK; with double encryption, the inner one of two.
    pub envelope: Envelope,
    /// With double encryption: its outer DEK, wrapped by the platform-managed key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_envelope: Option<Envelope>,
    /// Tells a wrong DEK, or a wrong one of two.
    pub check: DekCheck,
}

impl HeaderPayload {
    /// The layer that is written to, whose DEK authenticates the header.
    pub fn top(&self) -> Option<&LayerRecord> {
        self.layers.last()
    }

    /// The layer of that id.
    pub fn layer(&self, id: Uuid) -> Option<&LayerRecord> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// The rules that a payload keeps, read or written.
    ///
    /// Text from an unauthenticated header reaches terminals and paths, so none of it may hold
    /// anything but the characters that names and URLs have.
    pub(super) fn check(&self) -> Result<(), String> {
        check_resource_name(self.kind, &self.name)?;
        if self.generation == 0 {
            return Err("the generation 0 (they are counted from 1)".into());
        }
        if self.incremental && self.kind != ResourceKind::Snapshot {
            return Err(format!("{} that is incremental", self.kind.with_article()));
        }
        if !matches!(self.logical_sector_size, 512 | 4096)
            || !self.size.is_multiple_of(self.logical_sector_size.into())
        {
            return Err(format!(
                "logical sectors of {} bytes (512 and 4096 exist), and a size of {} bytes, which is to be \
                 a multiple",
                self.logical_sector_size, self.size
            ));
        }
        self.check_layers()?;
        self.check_gone()?;
        self.check_source()?;
        self.check_job()?;
        self.check_use()
    }

    /// What is said of a disk's use.
    fn check_use(&self) -> Result<(), String> {
        let used = self.session.is_some() || self.write_through || self.failed_sync.is_some();
        if self.upload.is_some() && (used || self.kind != ResourceKind::Disk) {
            return Err("an upload of what is no disk, or was attached".into());
        }
        if used && self.kind != ResourceKind::Disk {
            return Err(format!("{} that was attached", self.kind.with_article()));
        }
        self.session.as_ref().map_or(Ok(()), Session::check)?;
        match &self.failed_sync {
            Some(failed) => failed.check(),
            None => Ok(()),
        }
    }

    fn check_layers(&self) -> Result<(), String> {
        let count = self.layers.len();
        let Some(top) = self.top().filter(|_| count <= MAX_LAYERS) else {
            return Err(format!(
                "it has {count} layers (1 to {MAX_LAYERS} are possible)"
            ));
        };
        let (mut ids, mut beneath) = (HashSet::new(), 0);
        for layer in &self.layers {
            layer.check()?;
            if !ids.insert(layer.id) {
                return Err(format!("the layer {} is there twice", layer.id));
            }
            if layer.size < beneath {
                return Err(format!(
                    "the layer {} has {} bytes, the one beneath it {beneath}",
                    layer.id, layer.size
                ));
            }
            beneath = layer.size;
        }
        if top.size != self.size {
            return Err(format!(
                "a size of {} bytes where the top layer has {}",
                self.size, top.size
            ));
        }
        if top.disk_encryption_set != self.disk_encryption_set {
            return Err("its top layer is not under its disk encryption set".into());
        }
        Ok(())
    }

    fn check_gone(&self) -> Result<(), String> {
        if self.gone.len() > MAX_GONE {
            return Err(format!(
                "{} layers that are gone (at most {MAX_GONE} are possible)",
                self.gone.len()
            ));
        }
        let mut ids = HashSet::new();
        match self
            .gone
            .iter()
            .find(|id| self.layer(**id).is_some() || !ids.insert(**id))
        {
            Some(id) => Err(format!(
                "the layer {id} is gone, and there or gone once more"
            )),
            None => Ok(()),
        }
    }

    /// Whether it is a snapshot into whose own layer all is being copied that it inherits. That is all that ever goes on
    /// with a snapshot.
    fn is_deep_copy(&self) -> bool {
        let is_flattened = |job: &Job| job.kind == JobKind::Flatten;
        self.kind == ResourceKind::Snapshot && self.job.as_ref().is_some_and(is_flattened)
    }

    fn check_source(&self) -> Result<(), String> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        if self.kind != ResourceKind::Disk && !self.is_deep_copy() {
            return Err(format!(
                "{} that is a clone of {}",
                self.kind.with_article(),
                source.kind.with_article()
            ));
        }
        check_resource_name(source.kind, &source.name)
    }

    fn check_job(&self) -> Result<(), String> {
        let Some(job) = &self.job else {
            return Ok(());
        };
        if self.kind != ResourceKind::Disk && !self.is_deep_copy() {
            return Err(format!("a job of {}", self.kind.with_article()));
        }
        if job.rate == Some(0) {
            return Err("a job that may copy 0 bytes per second".into());
        }
        let beneath = &self.layers[..self.layers.len().saturating_sub(1)];
        let mut ids = HashSet::new();
        let is_beneath = |id: &Uuid| beneath.iter().any(|layer| layer.id == *id);
        if job.drop.is_empty() || !job.drop.iter().all(|id| is_beneath(id) && ids.insert(*id)) {
            return Err("a job on other layers than those beneath the top one".into());
        }
        Ok(())
    }
}

impl LayerRecord {
    /// All that it takes to unwrap its DEK: each envelope, with the set in whose name it is opened, `None` being the
    /// platform. Whoever cannot open one of them cannot read the layer.
    pub fn envelopes(&self) -> impl Iterator<Item = (Option<&str>, &Envelope)> {
        let own = (self.disk_encryption_set.as_deref(), &self.envelope);
        let platform = self.platform_envelope.as_ref();
        std::iter::once(own).chain(platform.map(|envelope| (None, envelope)))
    }

    /// Whether the data is encrypted twice, under two DEKs.
    pub fn is_double(&self) -> bool {
        self.platform_envelope.is_some()
    }

    fn check(&self) -> Result<(), String> {
        if let Some(set) = &self.disk_encryption_set {
            plain("the disk encryption set's name", set)?;
        }
        if !matches!(self.data_unit, 512 | 4096) {
            return Err(format!(
                "a data unit of {} bytes (512 and 4096 exist)",
                self.data_unit
            ));
        }
        if self.size == 0 || self.size > MAX_DISK_SIZE {
            return Err(format!(
                "a size of {} bytes (1 to {MAX_DISK_SIZE} are possible)",
                self.size
            ));
        }
        if !self.size.is_multiple_of(u64::from(self.data_unit)) {
            return Err(format!(
                "a size of {} bytes is no multiple of the data unit, {}",
                self.size, self.data_unit
            ));
        }
        for (_, envelope) in self.envelopes() {
            plain("the vault's URL", &envelope.vault_url)?;
            plain("the key's name", &envelope.key_name)?;
            plain("the key's version", &envelope.key_version)?;
            if envelope.wrapped.is_empty() {
                return Err("the wrapped key is empty".into());
            }
        }
        Ok(())
    }
}

/// As [`check_resource_name`] for a disk.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_disk_name(name: &str) -> Result<(), String> {
    check_resource_name(ResourceKind::Disk, name)
}

/// Azure's rule for the name of a disk, a snapshot and an image: 1 to 80 letters, digits, `_`, `.`
/// and `-`, starting with a letter, digit or `_`. Such a name is a safe file name too.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub fn check_resource_name(kind: ResourceKind, name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let whose = kind.with_article();
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(format!("{whose}'s name has 1 to {MAX_NAME_LEN} characters"));
    }
    if !name.bytes().all(allowed) || name.starts_with(['.', '-']) {
        return Err(format!(
            "the name {name:?} is not acceptable: {whose}'s name has letters, digits, '_', '.' and \
             '-' only and starts with a letter, digit or '_'"
        ));
    }
    Ok(())
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

fn plain(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 512 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{what} is empty, too long or has odd characters"));
    }
    Ok(())
}
