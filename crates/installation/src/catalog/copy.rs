//! A copy of what the catalog alone knows: `STATE_DIR/catalog-copy.json`.
//!
//! Disks, snapshots and images are described by their headers. Vaults, disk encryption sets and
//! identities are nowhere but in the catalog, and their random ids are what access policies name; so is
//! what has left the catalog and may still exist. So
//! after each change of those the whole of them is written to this file, from which `sealdisk catalog
//! rebuild` makes a lost catalog again with the same ids. There is no secret in it: of an identity's
//! secret it has, as the catalog, the SHA-256.
//!
//! # Order of steps
//!
//! The change is durable in the catalog; then, under a `flock` of the state directory, all rows are
//! read, written beside the file, synced, and renamed over it. A crash before the rename leaves the
//! copy as it was before the change, and the next change of any record, or the next process that finds
//! no copy, brings it up to date. The file is never torn.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{
    CatalogError, DepartedRecord, DiskEncryptionSetRecord, FederatedCredentialRecord, GroupRecord,
    IdentityRecord, InstallationRecord, LockRecord, PlacementRecord, RestoredRecord,
    RoleAssignmentRecord, VaultRecord,
};

/// The name of the copy, beside the catalog.
pub const COPY_FILE: &str = "catalog-copy.json";
/// The format of the copy.
const FORMAT: u32 = 1;

/// What the catalog alone knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatalogCopy {
    format: u32,
    /// The installation's own identities.
    pub installation: InstallationRecord,
    /// Its vaults.
    pub vaults: Vec<VaultRecord>,
    /// Its disk encryption sets.
    pub disk_encryption_sets: Vec<DiskEncryptionSetRecord>,
    /// The identities that the token service knows.
    pub identities: Vec<IdentityRecord>,
    /// Which identities of other installations they trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federated_credentials: Vec<FederatedCredentialRecord>,
    /// What has no row and may still exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<DepartedRecord>,
    /// The resource groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRecord>,
    /// What the management API says of vaults, sets and identities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<PlacementRecord>,
    /// The role assignments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub role_assignments: Vec<RoleAssignmentRecord>,
    /// The management locks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<LockRecord>,
    /// The restore, or the loss, that no rebuild has made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredRecord>,
}

impl CatalogCopy {
    /// Of these records.
    pub fn new(
        installation: InstallationRecord,
        vaults: Vec<VaultRecord>,
        disk_encryption_sets: Vec<DiskEncryptionSetRecord>,
        identities: Vec<IdentityRecord>,
        departed: Vec<DepartedRecord>,
    ) -> Self {
        Self {
            format: FORMAT,
            installation,
            vaults,
            disk_encryption_sets,
            identities,
            departed,
            federated_credentials: Vec::new(),
            groups: Vec::new(),
            placements: Vec::new(),
            role_assignments: Vec::new(),
            locks: Vec::new(),
            restored: None,
        }
    }

    /// The copy, with what is the management API's.
    #[must_use]
    pub fn with_management(
        mut self,
        groups: Vec<GroupRecord>,
        placements: Vec<PlacementRecord>,
        role_assignments: Vec<RoleAssignmentRecord>,
    ) -> Self {
        (self.groups, self.placements) = (groups, placements);
        self.role_assignments = role_assignments;
        self
    }

    /// The copy, with management locks.
    #[must_use]
    pub fn with_locks(mut self, locks: Vec<LockRecord>) -> Self {
        self.locks = locks;
        self
    }

    /// The copy, with whom identities trust.
    #[must_use]
    pub fn with_federated(mut self, credentials: Vec<FederatedCredentialRecord>) -> Self {
        self.federated_credentials = credentials;
        self
    }

    /// The copy, with the restore that no rebuild has made up for.
    #[must_use]
    pub fn with_restored(mut self, restored: Option<RestoredRecord>) -> Self {
        self.restored = restored;
        self
    }

    /// The copy beside the catalog `catalog`; `None` when there is none.
    ///
    /// # Errors
    /// [`CatalogError::Copy`] when it cannot be read or is none.
    pub fn read(catalog: &Path) -> Result<Option<Self>, CatalogError> {
        let path = path_of(catalog);
        let fail = |why: String| CatalogError::Copy {
            call: "read",
            path: path.clone(),
            why,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e.to_string())),
        };
        let copy: Self = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        match copy.format {
            FORMAT => Ok(Some(copy)),
            other => Err(fail(format!("format {other} is not known, {FORMAT} is"))),
        }
    }

    /// Replaces the copy beside `catalog` by what `current` reads while nobody else does so.
    pub(super) fn replace(
        catalog: &Path,
        current: impl FnOnce() -> Result<Self, CatalogError>,
    ) -> Result<(), CatalogError> {
        let path = path_of(catalog);
        let fail = |e: io::Error| CatalogError::Copy {
            call: "write",
            path: path.clone(),
            why: e.to_string(),
        };
        let dir = File::open(catalog.parent().unwrap_or(Path::new("."))).map_err(fail)?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|e| fail(e.into()))?;
        let text = serde_json::to_vec_pretty(&current()?).map_err(|e| fail(e.into()))?;
        let new = path.with_extension("json.new");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&new)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| dir.sync_all());
        written.map_err(fail)
    }
}

/// The copy that belongs to a catalog.
pub(super) fn path_of(catalog: &Path) -> PathBuf {
    catalog.with_file_name(COPY_FILE)
}
