//! What the commands do: the catalog, the vaults and the disks of one installation tied together.

pub mod attach;
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
mod retry;
mod runtime;
mod vaults;

pub use context::{Installation, default_state_dir};
pub use des::{
    DeletedDes, DesChange, FollowedDes, KeyUsage, KeyUser, LeftBehind, NewDes, SafeToDisable,
    Safety, UpdatedDes, WhatIf,
};
pub use error::ControlError;
pub use identity::KeyAccess;
pub use principals::{DeletedIdentity, IdentitySecret};
pub use runtime::{goes_at_logout, runtime_dir, runtime_map};

use retry::retrying;
