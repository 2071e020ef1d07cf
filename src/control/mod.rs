//! What the commands do: the catalog, the vaults and the disks of one installation tied together.

pub mod attach;
pub mod backup;
mod changes;
mod context;
mod des;
pub mod disks;
mod elsewhere;
mod error;
pub mod files;
mod identity;
pub mod import;
mod principals;
mod rebuild;
mod retry;
mod runtime;
mod vault_lifecycle;
mod vaults;

pub use context::{Installation, RESTORING, default_state_dir};
pub use des::{
    DeletedDes, DesChange, FollowedDes, KeyUsage, KeyUser, LeftBehind, NewDes, SafeToDisable,
    Safety, UpdatedDes, VersionInUse, WhatIf,
};
pub use error::ControlError;
pub use identity::KeyAccess;
pub use principals::{DeletedIdentity, IdentitySecret};
pub use rebuild::{Rebuilt, RebuiltSet};
pub use runtime::{goes_at_logout, runtime_dir, runtime_map};
pub use vault_lifecycle::DeletedVault;
pub use vaults::{platform_notice, vault_notice};

use retry::retrying;
