//! What became of a disk encryption set.

use uuid::Uuid;

use crate::resource::error::DiskError;
use installation::catalog::{DiskEncryptionSetRecord, DiskRecord};
use installation::envelope::ResourceKind;

/// What became of a changed disk encryption set.
pub struct UpdatedDes {
    /// As it is now.
    pub record: DiskEncryptionSetRecord,
    /// The disks, snapshots and images that have a layer which its key wraps now and did not before.
    pub rewrapped: Vec<(ResourceKind, String)>,
    /// Those that have a layer which another key still wraps.
    pub left: Vec<LeftBehind>,
}

/// What a new key of a set could not be made to wrap.
pub struct LeftBehind {
    /// What it is.
    pub record: DiskRecord,
    /// The key version that still wraps a layer of it.
    pub key_url: String,
    /// Why.
    pub reason: DiskError,
}

/// What a deleted disk encryption set leaves behind.
pub struct DeletedDes {
    /// The identity, which is gone with it.
    pub principal_id: Uuid,
    /// The vaults that still have an access policy for that identity.
    pub vaults_with_policy: Vec<String>,
}
