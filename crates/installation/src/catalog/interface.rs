//! The one interface of the catalog, whichever database it is in.

use time::OffsetDateTime;
use uuid::Uuid;

use super::departed::DepartedRecord;
use super::error::CatalogError;
use super::federated::FederatedCredentialRecord;
use super::record::{
    DiskEncryptionSetRecord, DiskRecord, IdentityRecord, InstallationRecord, Rev, Stored,
    VaultRecord,
};
use super::restored::RestoredRecord;
use crate::envelope::ResourceKind;

/// The records of an installation. A method returns only after what it changed is durable.
pub trait Catalog:
    super::ManagementCatalog
    + super::AccessCatalog
    + super::LockCatalog
    + super::LoginCatalog
    + super::OperationCatalog
    + Send
    + Sync
{
    /// Whether what is open is what others find who open the catalog now.
    fn is_current(&self) -> bool;

    /// Goes over to the catalog that is in the place of the one that is open, if another one is, and gives back what
    /// [`Catalog::installation`] says of that. While there is none the old one is used on.
    ///
    /// # Errors
    /// [`CatalogError::Open`]: the other one cannot be used, and the old one knows nothing of what was changed since.
    /// [`CatalogError::Moved`] and [`CatalogError::Exchanged`], too: it is not the catalog of this installation any more.
    fn renew(&self) -> Result<Option<InstallationRecord>, CatalogError>;

    /// Ends the threads and connections that it has, until it is used again.
    fn rest(&self);

    /// The vaults that are on its server; `None` for a catalog that is in a file, with its vaults beside it.
    fn server_vaults(&self) -> Option<&dyn super::ServerVaults>;

    /// The installation's own identities; the first call makes them.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn installation(&self) -> Result<InstallationRecord, CatalogError>;

    /// Registers a vault.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_vault(&self, record: &VaultRecord) -> Result<(), CatalogError>;

    /// The vault of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn vault(&self, name: &str) -> Result<Stored<VaultRecord>, CatalogError>;

    /// The vault with that URL, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vault_by_url(&self, url: &str) -> Result<Option<Stored<VaultRecord>>, CatalogError>;

    /// Replaces the record of that name if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn update_vault(&self, rev: Rev, record: &VaultRecord) -> Result<Rev, CatalogError>;

    /// Forgets a vault if it is still at `rev` and no disk encryption set, nor a disk of one, uses
    /// a key in it.
    ///
    /// # Errors
    /// [`CatalogError::VaultInUse`], [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_vault(&self, name: &str, rev: Rev) -> Result<(), CatalogError>;

    /// Forgets a vault whatever uses it, because it is gone for good.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_vault(&self, name: &str) -> Result<(), CatalogError>;

    /// Notes that the keys of the vault with that URL are destroyed, until there is another one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn note_purged_vault(&self, url: &str) -> Result<(), CatalogError>;

    /// When the vault with that URL was purged. `None` does not say that it was not: it may be a vault that this
    /// catalog does not know.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vault_purged_at(&self, url: &str) -> Result<Option<OffsetDateTime>, CatalogError>;

    /// Forgets which vaults were purged.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_purged_vaults(&self) -> Result<(), CatalogError>;

    /// All vaults, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vaults(&self) -> Result<Vec<Stored<VaultRecord>>, CatalogError>;

    /// Adds a disk encryption set.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError>;

    /// The disk encryption set of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn des(&self, name: &str) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError>;

    /// All disk encryption sets, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn all_des(&self) -> Result<Vec<Stored<DiskEncryptionSetRecord>>, CatalogError>;

    /// Replaces the record of that name if it is still at `rev`. An identity of this installation
    /// that is the set's no more is deleted.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn update_des(&self, rev: Rev, record: &DiskEncryptionSetRecord) -> Result<Rev, CatalogError>;

    /// Deletes a set if it is still at `rev` and nothing is under it.
    ///
    /// # Errors
    /// [`CatalogError::InUse`], [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError>;

    /// Adds a disk, a snapshot or an image.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name or id is taken, [`CatalogError::NotFound`] when one of
    /// its disk encryption sets is not there.
    fn insert_disk(&self, record: &DiskRecord) -> Result<Rev, CatalogError>;

    /// What has that name among those of its kind.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn resource(&self, kind: ResourceKind, name: &str) -> Result<Stored<DiskRecord>, CatalogError>;

    /// The disk of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn disk(&self, name: &str) -> Result<Stored<DiskRecord>, CatalogError> {
        self.resource(ResourceKind::Disk, name)
    }

    /// All disks, snapshots and images, by kind and name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn resources(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// Those that are not ready, by kind and name: of commands that go on, or were interrupted.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn unfinished(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// Those of a kind that have one of these names, by name: one look for many.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn resources_named(
        &self,
        kind: ResourceKind,
        names: &[&str],
    ) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// All disks, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn disks(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        let mut all = self.resources()?;
        all.retain(|row| row.record.kind == ResourceKind::Disk);
        Ok(all)
    }

    /// Everything that is under one disk encryption set, or under the platform-managed key, itself or
    /// by one of its layers; by kind and name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn resources_under(&self, des: Option<&str>) -> Result<Vec<Stored<DiskRecord>>, CatalogError>;

    /// Replaces the record with that id if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`] (of the record, or of a disk
    /// encryption set), [`CatalogError::Exists`] when the new name is taken.
    fn update_disk(&self, rev: Rev, record: &DiskRecord) -> Result<Rev, CatalogError>;

    /// Deletes a record if it is still at `rev`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], [`CatalogError::NotFound`].
    fn delete_disk(&self, record: &DiskRecord, rev: Rev) -> Result<(), CatalogError>;

    /// Deletes a record if it is still at `rev`, and keeps in mind that what it is of may still exist, until
    /// [`insert_disk`](Self::insert_disk) adds it again in the same directory.
    ///
    /// # Errors
    /// As [`delete_disk`](Self::delete_disk).
    fn depart_disk(
        &self,
        record: &DiskRecord,
        rev: Rev,
        departed: &DepartedRecord,
    ) -> Result<(), CatalogError>;

    /// When this catalog was made again after a loss, or restored, if what the log of the vault with that URL names was
    /// not compared with it since.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn not_noted_since(&self, vault_url: &str) -> Result<Option<OffsetDateTime>, CatalogError>;

    /// Notes that it was compared, with what is not known by a record but may exist; or that the vault is
    /// new.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn note_vault(&self, vault_url: &str, not_found: &[DepartedRecord])
    -> Result<(), CatalogError>;

    /// Marks the catalog as restored from a backup: what was made since is in no record, and no vault's log was
    /// compared with it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn mark_restored(&self, record: &RestoredRecord) -> Result<(), CatalogError>;

    /// That mark, as long as nothing has made up for it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn restored(&self) -> Result<Option<RestoredRecord>, CatalogError>;

    /// Removes the mark: all that there is has a record.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn clear_restored(&self) -> Result<(), CatalogError>;

    /// What has no record any more and may still exist, by name and time.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn departed(&self) -> Result<Vec<DepartedRecord>, CatalogError>;

    /// Forgets one of those: it is gone. False when there was none with that id.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_departed(&self, id: Uuid) -> Result<bool, CatalogError>;

    /// Notes that a layer is to be merged into the one above it when that is possible.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn insert_merge(&self, layer: Uuid) -> Result<(), CatalogError>;

    /// Forgets that a layer is to be merged. One that was not noted is none.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_merge(&self, layer: Uuid) -> Result<(), CatalogError>;

    /// The layers that are to be merged.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn merges(&self) -> Result<Vec<Uuid>, CatalogError>;

    /// Adds the identity of a named user.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn insert_identity(&self, record: &IdentityRecord) -> Result<(), CatalogError>;

    /// The identity of the user of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    fn identity(&self, name: &str) -> Result<Stored<IdentityRecord>, CatalogError>;

    /// The system-assigned identity of a disk encryption set; the first call makes its record,
    /// which the deletion of the set deletes.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when there is no such set.
    fn identity_of_des(&self, des: &str) -> Result<Stored<IdentityRecord>, CatalogError>;

    /// All identities that have a record: those of users by name, then those of sets.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identities(&self) -> Result<Vec<Stored<IdentityRecord>>, CatalogError>;

    /// The identity with that object id, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identity_by_object(&self, object_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError>;

    /// The identity with that client id, if there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn identity_by_client(&self, client_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError>;

    /// Replaces the secret of an identity, or takes it away; `hash` is the SHA-256 of the new one, which is good until
    /// `ends`.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], also when it is gone.
    fn set_identity_secret(
        &self,
        identity: &Stored<IdentityRecord>,
        hash: Option<&[u8; 32]>,
        ends: Option<OffsetDateTime>,
    ) -> Result<(), CatalogError>;

    /// Deletes an identity that is that of no disk encryption set.
    ///
    /// # Errors
    /// [`CatalogError::Changed`], also when it is gone; [`CatalogError::IdentityInUse`].
    fn delete_identity(&self, identity: &Stored<IdentityRecord>) -> Result<(), CatalogError>;

    /// Adds a federated credential of an identity, which goes with it.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the identity has one of that name.
    fn insert_federated_credential(
        &self,
        record: &FederatedCredentialRecord,
    ) -> Result<(), CatalogError>;

    /// The federated credentials of an identity, or of all.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn federated_credentials(
        &self,
        identity: Option<Uuid>,
    ) -> Result<Vec<FederatedCredentialRecord>, CatalogError>;

    /// Deletes a federated credential; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_federated_credential(&self, identity: Uuid, name: &str)
    -> Result<bool, CatalogError>;
}
