//! What a new catalog has.

use uuid::Uuid;

use installation::catalog::{DiskRecord, RestoredRecord};

/// What a rebuild has brought back.
#[derive(Default)]
pub struct Rebuilt {
    /// Whether the ids of the installation, its sets and its identities are those from before.
    pub with_identities: bool,
    /// Vaults that the catalog did not know.
    pub vaults: Vec<String>,
    /// Sets that only headers name: their identities are new.
    pub sets: Vec<RebuiltSet>,
    /// Disks, snapshots and images that the catalog did not know.
    pub resources: Vec<DiskRecord>,
    /// What used a key by a vault's log, and was not found.
    pub not_found: Vec<String>,
    /// What restored vaults lack and something that is known needs, in sentences: such a vault decides nothing about what
    /// it does not know.
    pub lacking: Vec<String>,
    /// The restore from a backup, or the loss, for which this rebuild has not made up.
    pub restored: Option<RestoredRecord>,
    /// What could not be brought back, and why.
    pub problems: Vec<String>,
}

/// A set that was made again from a header.
pub struct RebuiltSet {
    /// Its name.
    pub name: String,
    /// Its key, as the header has it, without a version.
    pub key_url: String,
    /// Its new identity, which has to be granted the key; `None` for a key in a vault elsewhere, for
    /// which the set needs a managed identity.
    pub principal_id: Option<Uuid>,
}
