//! Why the catalog refused or failed.

use std::path::PathBuf;

use thiserror::Error;
use uuid::Uuid;

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
    /// The database on the server has nothing of the catalog that was there.
    #[error(
        "the catalog at {place} is empty, but {found} shows that there was one: making a new one would give every identity \
         a new id, which no access policy knows; restore the server's backup, or give the right --catalog"
    )]
    LostOnServer {
        /// The database.
        place: String,
        /// What shows it.
        found: PathBuf,
    },
    /// The catalog of the state directory is on a server.
    #[error(
        "the catalog of the installation in {state_dir} is at {place}: give --catalog, or set SEALDISK_CATALOG, with its \
         address"
    )]
    Elsewhere {
        /// The state directory.
        state_dir: PathBuf,
        /// Where the catalog is.
        place: String,
    },
    /// The file's catalog was moved to a server.
    #[error(
        "the catalog {path} was moved to {place}: give --catalog, or set SEALDISK_CATALOG, with its address; if that says \
         that the move has not ended, run `sealdisk catalog migrate --to` again"
    )]
    Moved {
        /// The file.
        path: PathBuf,
        /// Where the catalog is.
        place: String,
    },
    /// The state directory has a catalog of its own.
    #[error(
        "the installation in the state directory has its catalog in {path}, and not at {place}: move it there with \
         `sealdisk catalog migrate --to`, or give another --state-dir"
    )]
    InFile {
        /// The file.
        path: PathBuf,
        /// The database that was given.
        place: String,
    },
    /// What is in the state directory is of no installation that is known to be at that server.
    #[error(
        "{found} is of an installation that is not known to have its catalog at {place}: give another --state-dir, or the \
         right --catalog"
    )]
    Unrelated {
        /// What is there.
        found: PathBuf,
        /// The database that was given.
        place: String,
    },
    /// The catalog there is another installation's.
    #[error(
        "the catalog at {place} is that of the installation {there}, and {found} belongs to the installation {here}: give \
         the right --catalog or --state-dir"
    )]
    OtherInstallation {
        /// The database.
        place: String,
        /// Whose it is.
        there: Uuid,
        /// What says whose the state directory is.
        found: PathBuf,
        /// Whose that is.
        here: Uuid,
    },
    /// The file is of before its catalog was moved.
    #[error(
        "the catalog {path} is not marked as moved, and {place} has the catalog of the same installation: it is an older \
         one, of a backup say; move it away, and give --catalog"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Where the catalog is.
        place: String,
    },
    /// The catalog there is not the one any more that was opened.
    #[error(
        "the catalog at {place} is another one than it was when it was opened: look at what was done with the database, and \
         start this again"
    )]
    Exchanged {
        /// The database.
        place: String,
    },
    /// A catalog is being moved there.
    #[error(
        "the catalog of the installation {installation} is being moved to {place}, and all of it is not there yet: if nobody \
         is at it, run `sealdisk catalog migrate --to` again on the host that it comes from"
    )]
    Arriving {
        /// The database.
        place: String,
        /// Whose catalog it is.
        installation: Uuid,
    },
    /// What is noted of where the catalog is could not be read or written.
    #[error("cannot {call} {path}, which says where the catalog is: {why}")]
    Note {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
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
    /// A schema for a vault could not be made.
    #[error(
        "a key vault on the server has a schema of its own, which could not be made: {source}; its role needs that right: \
         GRANT CREATE ON DATABASE … TO …"
    )]
    MakeSchema {
        /// What the server said.
        #[source]
        source: database::Error,
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
            Self::Lost { .. } | Self::LostOnServer { .. } => "CatalogLost",
            Self::Elsewhere { .. }
            | Self::Moved { .. }
            | Self::InFile { .. }
            | Self::Unrelated { .. }
            | Self::OtherInstallation { .. }
            | Self::Older { .. }
            | Self::Exchanged { .. } => "CatalogElsewhere",
            Self::Arriving { .. } => "CatalogArriving",
            Self::Damaged { .. }
            | Self::Copy { .. }
            | Self::Note { .. }
            | Self::MakeSchema { .. }
            | Self::Open(_)
            | Self::Database(_) => "CatalogError",
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
