//! Access over the network that was granted to the data of disks and snapshots.
//!
//! Whoever has the token of a grant reads the data, or writes that of a disk in upload, until the grant expires or is
//! revoked. The catalog has the token's hash, and nothing beside the disk's files has either: who can write those
//! grants nobody anything. A grant goes with its resource, and is in no copy of the catalog: one that is made again
//! grants nothing.

use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CatalogError;
use super::management::Touch;
use crate::envelope::ResourceKind;

/// What a grant lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read the data.
    Read,
    /// Write the data of a disk in upload.
    Write,
}

impl Access {
    /// Azure's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
        }
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        let all = [Self::Read, Self::Write];
        all.into_iter().find(|access| access.as_str() == text)
    }
}

/// Access to the data of a disk or a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRecord {
    /// Its id, which is no secret.
    pub id: Uuid,
    /// The id of the disk or snapshot.
    pub resource: Uuid,
    /// What that is.
    pub kind: ResourceKind,
    /// Its name now.
    pub name: String,
    /// What may be done.
    pub access: Access,
    /// The SHA-256 of the token.
    pub token: [u8; 32],
    /// When it ends by itself.
    pub expires: OffsetDateTime,
    /// When it was granted, and by whom.
    pub created: Touch,
}

impl AccessRecord {
    /// Whether it counts at that time.
    pub fn is_live(&self, now: OffsetDateTime) -> bool {
        now < self.expires
    }
}

/// The grants of a catalog.
pub trait AccessCatalog: Send + Sync {
    /// Adds a grant; that of a resource which is not there is none. Whether there was room among the `most` that the
    /// resource has, whoever else adds some at the same time.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn insert_access(&self, record: &AccessRecord, most: usize) -> Result<bool, CatalogError>;

    /// The grant of that id, expired or not.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn access(&self, id: Uuid) -> Result<Option<AccessRecord>, CatalogError>;

    /// The grants of a disk or a snapshot, expired or not; of all of them without an id.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn accesses(&self, resource: Option<Uuid>) -> Result<Vec<AccessRecord>, CatalogError>;

    /// Revokes a grant. One that is not there is none.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_access(&self, id: Uuid) -> Result<(), CatalogError>;
}
