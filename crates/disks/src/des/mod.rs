//! Disk encryption sets: the key that wraps disks, and the identity that may use it.

mod cut_off;
mod dependencies;
mod identity;
mod key_user;
mod outcome;
mod rotate;
mod safety;
mod seen_keys;
mod set;
#[cfg(test)]
mod tests;
mod usage;

pub use cut_off::{active_key, left_behind};
pub use dependencies::{Cut, Dependencies, Loss, SeenSet, SeenVault};
pub use identity::{assign_identity, remove_identity};
pub use key_user::KeyUser;
pub use outcome::{DeletedDes, LeftBehind, UpdatedDes};
pub use rotate::{FollowedDes, follow_latest_keys};
pub(crate) use safety::record_forgotten;
pub use safety::{SafeToDisable, Safety};
pub use seen_keys::SeenKeys;
pub(crate) use set::check_des_name;
pub use set::{DesChange, NewDes, create, delete, update};
pub use usage::{
    KeyUsage, VersionInUse, WhatIf, key_usage, refused_purge, what_if_deleted, what_if_disabled,
};
