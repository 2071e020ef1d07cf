//! What the catalog keeps of vaults, disk encryption sets, identities and disks.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::settings::{DesIdentity, VaultKind};
use crate::envelope::ResourceKind;
use keys::sha256;

/// The revision of a stored record; it changes with every update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rev(pub(super) i64);

/// A record together with the revision it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// To be given back with an update or delete.
    pub rev: Rev,
    /// What is stored.
    pub record: T,
}

/// The two identities that exist once in an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstallationRecord {
    /// Object id on whose behalf the command line manages vaults.
    pub operator: Uuid,
    /// Object id that uses the platform-managed key.
    pub platform: Uuid,
}

impl InstallationRecord {
    /// Tells the installation from others: the tenant of its identities.
    pub fn id(&self) -> Uuid {
        // Made of what is random and stays, so that it need not be stored.
        let hash = sha256(
            &[
                b"sealdisk installation id v1\0".as_slice(),
                self.operator.as_bytes(),
            ]
            .concat(),
        );
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        uuid::Builder::from_custom_bytes(id).into_uuid()
    }
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

/// Whose keys encrypt what is under a disk encryption set, by Azure's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionType {
    /// The data is encrypted under a DEK that the set's key wraps.
    #[default]
    #[serde(rename = "EncryptionAtRestWithCustomerKey")]
    CustomerKey,
    /// The data is encrypted twice, under two DEKs: the set's key wraps the inner one, the platform-managed key the
    /// outer one.
    #[serde(rename = "EncryptionAtRestWithPlatformAndCustomerKeys")]
    PlatformAndCustomerKeys,
}

impl EncryptionType {
    /// Azure's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CustomerKey => "EncryptionAtRestWithCustomerKey",
            Self::PlatformAndCustomerKeys => "EncryptionAtRestWithPlatformAndCustomerKeys",
        }
    }
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
    /// How what is made under it is encrypted; it stays.
    #[serde(default)]
    pub encryption_type: EncryptionType,
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
    /// Until when that is good, if not for ever.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub secret_ends: Option<OffsetDateTime>,
    /// Whether it is an application, to which the management API gives its secret.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_application: bool,
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

/// A layer of a disk, a snapshot or an image, with a key that wraps its DEK. With double encryption there are two.
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
    /// Its layers, from the bottom up, each with all that it takes to unwrap its DEK.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// A [`GroupRecord`](super::GroupRecord).
    Group,
    /// A [`RoleAssignmentRecord`](super::RoleAssignmentRecord).
    RoleAssignment,
    /// A [`FederatedCredentialRecord`](super::FederatedCredentialRecord).
    FederatedCredential,
    /// A [`DeviceLogin`](super::DeviceLogin).
    DeviceLogin,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Vault,
        Self::DiskEncryptionSet,
        Self::Disk,
        Self::Snapshot,
        Self::Image,
        Self::Identity,
        Self::Group,
        Self::RoleAssignment,
        Self::FederatedCredential,
        Self::DeviceLogin,
    ];

    /// The word for it that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::DiskEncryptionSet => "disk-encryption-set",
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
            Self::Identity => "identity",
            Self::Group => "group",
            Self::RoleAssignment => "role-assignment",
            Self::FederatedCredential => "federated-credential",
            Self::DeviceLogin => "device-login",
        }
    }

    /// What a stored word means.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
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
            Self::Group => "resource group",
            Self::RoleAssignment => "role assignment",
            Self::FederatedCredential => "federated credential",
            Self::DeviceLogin => "login on a device",
        })
    }
}
