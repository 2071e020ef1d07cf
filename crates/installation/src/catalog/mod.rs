//! The catalog: which vaults, disk encryption sets and disks this installation knows.
//!
//! It is reached through one trait, so that a database shared by a fleet can stand in for the
//! local SQLite file. Every record is stored with a revision; an update or delete names the
//! revision that it was derived from and is refused when someone else was faster. Rows of disks
//! are an index only: they can be made again from the headers beside the ciphertext.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::envelope::ResourceKind;
use vault::sqlite::DatabaseError;

mod copy;
mod departed;
mod identities;
mod noted;
mod resources;
mod schema;
mod settings;
mod sqlite;
#[cfg(test)]
mod tests;

pub use copy::{COPY_FILE, CatalogCopy};
pub use departed::{DepartedKey, DepartedRecord, Departure};
pub use settings::{DesIdentity, HsmSettings, VaultKind};
pub use sqlite::SqliteCatalog;

/// The revision of a stored record; it changes with every update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rev(i64);

/// A record together with the revision it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// To be given back with an update or delete.
    pub rev: Rev,
    /// What is stored.
    pub record: T,
}

/// The two principals that exist once in an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstallationRecord {
    /// Object id on whose behalf the command line administrates.
    pub operator: Uuid,
    /// Object id that uses the platform-managed key.
    pub platform: Uuid,
}

/// A vault of this installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultRecord {
    /// Its name, unique.
    pub name: String,
    /// Its URL, without a trailing slash.
    pub url: String,
    /// What kind of vault it is.
    pub kind: VaultKind,
    /// When it was made, or connected.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// A disk encryption set: the key that wraps its disks' DEKs, and the identity that may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskEncryptionSetRecord {
    /// Its name, unique.
    pub name: String,
    /// Where its identity comes from.
    pub identity: DesIdentity,
    /// Object id of its identity.
    pub principal_id: Uuid,
    /// URL of the active key, with or without a version.
    pub key_url: String,
    /// URLs of keys that were active before and may still wrap disks, newest first.
    pub previous_keys: Vec<String>,
    /// Whether the latest version of the key is to be followed.
    pub auto_rotation: bool,
    /// When the active key changed last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_rotation: Option<OffsetDateTime>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// Whose an identity is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "name")]
pub enum IdentityOwner {
    /// A user, known by this name.
    Named(String),
    /// The disk encryption set of this name, whose system-assigned identity it is.
    DiskEncryptionSet(String),
}

impl IdentityOwner {
    /// What the name of a set follows where an identity is chosen by one word.
    pub const SET_PREFIX: &str = "disk-encryption-set/";

    /// The name of the user or of the set.
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) | Self::DiskEncryptionSet(name) => name,
        }
    }
}

/// The one word that chooses the identity.
impl fmt::Display for IdentityOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::DiskEncryptionSet(set) => write!(f, "{}{set}", Self::SET_PREFIX),
        }
    }
}

/// An identity that the token service of this installation knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityRecord {
    /// What access policies name, Azure's `principalId`.
    pub object_id: Uuid,
    /// What a client chooses the identity by, Azure's `clientId`.
    pub client_id: Uuid,
    /// Whose it is.
    pub owner: IdentityOwner,
    /// SHA-256 of its secret, when it has one.
    pub secret_hash: Option<[u8; 32]>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// How far the life of a disk has got. Anything but `Ready` is what an interrupted command left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// The name is taken, the files are being made.
    Creating,
    /// In use.
    Ready,
    /// The header is to be erased.
    Deleting,
    /// The header was erased, the files are being removed.
    Erased,
}

/// A layer of a disk, a snapshot or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerUse {
    /// The layer.
    pub layer: Uuid,
    /// The set whose key wraps its DEK; `None` is the platform-managed key.
    pub disk_encryption_set: Option<String>,
    /// URL, with version, of the key that wraps it.
    pub key_url: String,
}

/// A disk, a snapshot or an image, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    /// Its unique id.
    pub id: Uuid,
    /// What it is.
    pub kind: ResourceKind,
    /// Its name, unique among those of its kind.
    pub name: String,
    /// The directory of its header and layers.
    pub directory: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The set whose key wraps it; `None` is the platform-managed key.
    pub disk_encryption_set: Option<String>,
    /// URL, with version, of the key that wraps its top layer.
    pub key_url: String,
    /// Its layers, from the bottom up.
    pub layers: Vec<LayerUse>,
    /// When it was made.
    pub created: OffsetDateTime,
    /// How far it is.
    pub state: DiskState,
}

impl DiskRecord {
    /// The key versions that wrap those of its layers that are under a set, or under the
    /// platform-managed key.
    pub fn keys_under(&self, set: Option<&str>) -> impl Iterator<Item = &str> {
        // A row from before layers were noted.
        let own = (self.layers.is_empty() && self.disk_encryption_set.as_deref() == set)
            .then_some(self.key_url.as_str());
        let under = move |layer: &&LayerUse| layer.disk_encryption_set.as_deref() == set;
        let layers = self.layers.iter().filter(under);
        own.into_iter()
            .chain(layers.map(|layer| layer.key_url.as_str()))
    }
}

/// What a record is, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`VaultRecord`].
    Vault,
    /// A [`DiskEncryptionSetRecord`].
    DiskEncryptionSet,
    /// A [`DiskRecord`] of a disk.
    Disk,
    /// A [`DiskRecord`] of a snapshot.
    Snapshot,
    /// A [`DiskRecord`] of an image.
    Image,
    /// An [`IdentityRecord`].
    Identity,
}

impl From<ResourceKind> for Kind {
    fn from(kind: ResourceKind) -> Self {
        match kind {
            ResourceKind::Disk => Self::Disk,
            ResourceKind::Snapshot => Self::Snapshot,
            ResourceKind::Image => Self::Image,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vault => "key vault",
            Self::DiskEncryptionSet => "disk encryption set",
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
            Self::Identity => "identity",
        })
    }
}

/// Why the catalog refused or failed.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// There is no such record.
    #[error("there is no {kind} named '{name}'; `sealdisk {} list` shows those that exist",
        command(*kind))]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("a {kind} named '{name}' exists already; choose another name")]
    Exists {
        /// What was to be made.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The record changed since it was read.
    #[error("the {kind} '{name}' was changed by someone else at the same time; try again")]
    Changed {
        /// What was to be changed.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// A disk encryption set cannot go while anything is encrypted under it.
    #[error(
        "the disk encryption set '{name}' is used by the {kind} '{user}' ({count} in all); \
         delete them or move them with `sealdisk {kind} update {user} --platform-managed`"
    )]
    InUse {
        /// The set.
        name: String,
        /// What the first of them is.
        kind: ResourceKind,
        /// Its name.
        user: String,
        /// How many there are.
        count: i64,
    },
    /// A vault cannot be disconnected while the key of a disk encryption set is in it.
    #[error(
        "the key vault '{name}' has the key of the disk encryption set '{set}'; give the set \
         another key with `sealdisk disk-encryption-set update {set} --key-url …` or delete it"
    )]
    VaultInUse {
        /// The vault.
        name: String,
        /// The first set that uses it.
        set: String,
    },
    /// A disk encryption set whose identity somebody else manages.
    #[error(
        "the identity of the disk encryption set '{name}' is not system-assigned: ask whoever \
         manages it for its tokens"
    )]
    NotSystemAssigned {
        /// The set.
        name: String,
    },
    /// A row holds something that this program never writes.
    #[error("the catalog's record of '{name}' is damaged: {what}")]
    Damaged {
        /// The record.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The catalog is gone, and making an empty one would give everything new identities.
    #[error(
        "the catalog {path} is not there, but {found} is: making a new one would give every \
         identity a new id, which no access policy knows; restore a backup (`sealdisk backup \
         restore`), or make it again from what is there with `sealdisk catalog rebuild`"
    )]
    Lost {
        /// Where it should be.
        path: PathBuf,
        /// What shows that there was one.
        found: PathBuf,
    },
    /// The copy of what no header says could not be read or written.
    #[error("cannot {call} the catalog's copy {path}: {why}")]
    Copy {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The database was not opened.
    #[error(transparent)]
    Open(#[from] DatabaseError),
    /// A statement failed.
    #[error("the catalog could not be read or written: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl CatalogError {
    /// A code for programs, Azure's where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound {
                kind: Kind::Vault, ..
            } => "VaultNotFound",
            Self::NotFound { .. } => "ResourceNotFound",
            Self::Exists { .. } | Self::Changed { .. } => "Conflict",
            Self::InUse { .. } => "InUseDiskEncryptionSetCannotBeDeleted",
            Self::VaultInUse { .. } => "VaultInUse",
            Self::NotSystemAssigned { .. } => "BadParameter",
            Self::Lost { .. } => "CatalogLost",
            Self::Damaged { .. } | Self::Copy { .. } | Self::Open(_) | Self::Sqlite(_) => {
                "CatalogError"
            }
        }
    }
}

fn command(kind: Kind) -> &'static str {
    match kind {
        Kind::Vault => "keyvault",
        Kind::DiskEncryptionSet => "disk-encryption-set",
        Kind::Disk => "disk",
        Kind::Snapshot => "snapshot",
        Kind::Image => "image",
        Kind::Identity => "identity",
    }
}

/// The records of an installation. A method returns only after what it changed is durable.
pub trait Catalog: Send + Sync {
    /// The installation's principals; the first call makes them.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn installation(&self) -> Result<InstallationRecord, CatalogError>;

    /// Registers a vault.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_vault(&self, record: &VaultRecord) -> Result<(), CatalogError>;

    /// The vault of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn vault(&self, name: &str) -> Result<Stored<VaultRecord>, CatalogError>;

    /// The vault with that URL, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vault_by_url(&self, url: &str) -> Result<Option<Stored<VaultRecord>>, CatalogError>;

    /// Replaces the record of that name if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn update_vault(&self, rev: Rev, record: &VaultRecord) -> Result<Rev, CatalogError>;

    /// Forgets a vault if it is still at `rev` and no disk encryption set, nor a disk of one, uses
    /// a key in it.
    ///
    /// # Errors
    /// [`CatalogError::VaultInUse`], [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_vault(&self, name: &str, rev: Rev) -> Result<(), CatalogError>;

    /// Forgets a vault whatever uses it, because it is gone for good.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_vault(&self, name: &str) -> Result<(), CatalogError>;

    /// All vaults, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vaults(&self) -> Result<Vec<Stored<VaultRecord>>, CatalogError>;

    /// Adds a disk encryption set.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError>;

    /// The disk encryption set of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn des(&self, name: &str) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError>;

    /// All disk encryption sets, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn all_des(&self) -> Result<Vec<Stored<DiskEncryptionSetRecord>>, CatalogError>;

    /// Replaces the record of that name if it is still at `rev`. An identity of this installation
    /// that is the set's no more is deleted.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn update_des(&self, rev: Rev, record: &DiskEncryptionSetRecord) -> Result<Rev, CatalogError>;

    /// Deletes a set if it is still at `rev` and nothing is under it.
    ///
    /// # Errors
    /// [`CatalogError::InUse`], [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError>;

    /// Adds a disk, a snapshot or an image.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name or id is taken, [`CatalogError::NotFound`] when one of
    /// its disk encryption sets is not there.
    fn insert_disk(&self, record: &DiskRecord) -> Result<Rev, CatalogError>;

    /// What has that name among those of its kind.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn resource(&self, kind: ResourceKind, name: &str) -> Result<Stored<DiskRecord>, CatalogError>;

    /// The disk of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn disk(&self, name: &str) -> Result<Stored<DiskRecord>, CatalogError> {
        self.resource(ResourceKind::Disk, name)
    }

    /// All disks, snapshots and images, by kind and name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn resources(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// All disks, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn disks(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        let mut all = self.resources()?;
        all.retain(|row| row.record.kind == ResourceKind::Disk);
        Ok(all)
    }

    /// Everything that is under one disk encryption set, or under the platform-managed key, itself or
    /// by one of its layers; by kind and name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn resources_under(&self, des: Option<&str>) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// Replaces the record with that id if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`] (of the record, or of a disk
    /// encryption set), [`CatalogError::Exists`] when the new name is taken.
    fn update_disk(&self, rev: Rev, record: &DiskRecord) -> Result<Rev, CatalogError>;

    /// Deletes a record if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_disk(&self, record: &DiskRecord, rev: Rev) -> Result<(), CatalogError>;

    /// Deletes a record if it is still at `rev`, and keeps in mind that what it is of may still exist, until
    /// [`insert_disk`](Self::insert_disk) adds it again in the same directory.
    ///
    /// # Errors
    /// As [`delete_disk`](Self::delete_disk).
    fn depart_disk(
        &self,
        record: &DiskRecord,
        rev: Rev,
        departed: &DepartedRecord,
    ) -> Result<(), CatalogError>;

    /// When this catalog was made again after a loss, if what the log of the vault with that URL names was
    /// not compared with it since.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn not_noted_since(&self, vault_url: &str) -> Result<Option<OffsetDateTime>, CatalogError>;

    /// Notes that it was compared, with what is not known by a record but may exist; or that the vault is
    /// new.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn note_vault(&self, vault_url: &str, not_found: &[DepartedRecord])
    -> Result<(), CatalogError>;

    /// What has no record any more and may still exist, by name and time.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn departed(&self) -> Result<Vec<DepartedRecord>, CatalogError>;

    /// Forgets one of those: it is gone. False when there was none with that id.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_departed(&self, id: Uuid) -> Result<bool, CatalogError>;

    /// Notes that a layer is to be merged into the one above it when that is possible.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn insert_merge(&self, layer: Uuid) -> Result<(), CatalogError>;

    /// Forgets that a layer is to be merged. One that was not noted is none.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_merge(&self, layer: Uuid) -> Result<(), CatalogError>;

    /// The layers that are to be merged.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn merges(&self) -> Result<Vec<Uuid>, CatalogError>;

    /// Adds the identity of a named user.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_identity(&self, record: &IdentityRecord) -> Result<(), CatalogError>;

    /// The identity of the user of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn identity(&self, name: &str) -> Result<Stored<IdentityRecord>, CatalogError>;

    /// The system-assigned identity of a disk encryption set; the first call makes its record,
    /// which the deletion of the set deletes.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when there is no such set.
    fn identity_of_des(&self, des: &str) -> Result<Stored<IdentityRecord>, CatalogError>;

    /// All identities that have a record: those of users by name, then those of sets.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identities(&self) -> Result<Vec<Stored<IdentityRecord>>, CatalogError>;

    /// The identity with that object id, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identity_by_object(&self, object_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError>;

    /// The identity with that client id, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identity_by_client(&self, client_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError>;

    /// Replaces the secret of an identity; `hash` is the SHA-256 of the new one.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], also when it is gone.
    fn set_identity_secret(
        &self,
        identity: &Stored<IdentityRecord>,
        hash: &[u8; 32],
    ) -> Result<(), CatalogError>;

    /// Deletes an identity.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], also when it is gone.
    fn delete_identity(&self, identity: &Stored<IdentityRecord>) -> Result<(), CatalogError>;
}
