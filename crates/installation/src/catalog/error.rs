//! Why the catalog refused or failed.

use std::path::PathBuf;

use thiserror::Error;

use super::record::Kind;
use crate::envelope::ResourceKind;
use database::{ErrorKind, OpenError};

/// Why the catalog refused or failed.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// There is no such record.
    #[error("there is no {kind} named '{name}'{}", shown_by(*kind))]
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
    /// An identity cannot go while it is that of a disk encryption set.
    #[error(
        "the identity '{name}' is that of the disk encryption set '{set}'; give the set another one, or delete it. To \
         cut off its disks, take away what the identity may do in the set's key vault"
    )]
    IdentityInUse {
        /// The identity.
        name: String,
        /// The first set that has it.
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
    /// A resource group cannot go while anything is in it.
    #[error("the resource group '{name}' has {count} resources; delete them first")]
    GroupInUse {
        /// The group.
        name: String,
        /// How many there are.
        count: i64,
    },
    /// A management lock forbids it.
    #[error(
        "the {kind} '{name}' cannot be {change}: {lock}; `sealdisk lock list` shows all locks, `sealdisk lock delete` \
         takes one off"
    )]
    Locked {
        /// What was to be made, changed or deleted.
        kind: Kind,
        /// Its name.
        name: String,
        /// What was to be done with it.
        change: &'static str,
        /// The lock, and what it is on.
        lock: String,
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
    Open(#[from] OpenError),
    /// A statement failed.
    #[error("the catalog could not be read or written: {0}")]
    Database(#[from] database::Error),
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
            Self::IdentityInUse { .. } => "IdentityInUse",
            Self::GroupInUse { .. } => "ResourceGroupInUse",
            Self::Locked { .. } => "ScopeLocked",
            Self::NotSystemAssigned { .. } => "BadParameter",
            Self::Lost { .. } => "CatalogLost",
            Self::Damaged { .. } | Self::Copy { .. } | Self::Open(_) | Self::Database(_) => {
                "CatalogError"
            }
        }
    }

    /// Whether there is no room on the file system of the catalog.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Open(error) => error.is_no_space(),
            Self::Database(error) => error.kind() == ErrorKind::Full,
            _ => false,
        }
    }
}

/// How to find those that exist, as the end of a sentence.
fn shown_by(kind: Kind) -> String {
    let command = match kind {
        Kind::Vault => "keyvault",
        Kind::DiskEncryptionSet => "disk-encryption-set",
        Kind::Disk => "disk",
        Kind::Snapshot => "snapshot",
        Kind::Image => "image",
        Kind::Identity => "identity",
        Kind::RoleAssignment => "role assignment",
        Kind::FederatedCredential => "identity federated-credential",
        Kind::DeviceLogin => return "; it may have expired: begin it again".into(),
        Kind::Group => return "; `az group list` shows those that exist".into(),
    };
    format!("; `sealdisk {command} list` shows those that exist")
}
