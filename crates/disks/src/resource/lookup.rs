//! From a name to a resource.

use std::fs;
use std::path::Path;

use crate::resource::directory::header_claims;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::staging::sweep_one;
use installation::Installation;
use installation::catalog::{CatalogError, Change, DiskRecord, DiskState, Stored};
use installation::envelope::ResourceKind;

impl Disk {
    /// The disk of that name.
    ///
    /// # Errors
    /// When there is none, or it is being made or deleted.
    pub fn find(installation: &Installation, name: &str) -> Result<Self, DiskError> {
        Self::of_kind(installation, ResourceKind::Disk, name)
    }

    /// The disk in that directory, by the header that is there; nothing where the catalog has none.
    ///
    /// # Errors
    /// When the header cannot be read, or the disk is being made or deleted.
    pub fn in_directory(
        installation: &Installation,
        directory: &Path,
    ) -> Result<Option<Self>, DiskError> {
        let there = header_claims(directory)?.disk;
        let found = installation.catalog().resources_with_ids(&[there])?;
        let here = |row: &Stored<DiskRecord>| {
            let is_disk = row.record.kind == ResourceKind::Disk;
            is_disk && fs::canonicalize(&row.record.directory).is_ok_and(|d| d == directory)
        };
        match found.into_iter().find(here) {
            Some(row) => Self::find(installation, &row.record.name).map(Some),
            None => Ok(None),
        }
    }

    /// What has that name among those of its kind.
    ///
    /// # Errors
    /// When there is none, or it is being made or deleted.
    pub fn of_kind(
        installation: &Installation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<Self, DiskError> {
        let record = lookup(installation, kind, name)?.record;
        if matches!(record.state, DiskState::Deleting | DiskState::Erased) {
            return Err(DiskError::Unfinished {
                kind,
                name: name.into(),
                doing: "deleted",
            });
        }
        Ok(Self { record })
    }
}

/// Refuses a name that something of this kind has already.
pub(crate) fn refuse_taken_name(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(), CatalogError> {
    match installation.catalog().resource(kind, name) {
        Err(CatalogError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(CatalogError::Exists {
            kind: kind.into(),
            name: name.into(),
        }),
        Err(error) => Err(error),
    }
}

/// Refuses to make or change what a management lock forbids.
pub(crate) fn refuse_locked(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(), CatalogError> {
    let catalog = installation.catalog();
    catalog.refuse_locked(kind.into(), name, Change::Write)
}

/// The catalog's row of a resource that is not in the making.
pub(crate) fn lookup(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<Stored<DiskRecord>, DiskError> {
    let catalog = installation.catalog();
    let row = catalog.resource(kind, name)?;
    if row.record.state != DiskState::Creating {
        return Ok(row);
    }
    sweep_one(installation, kind, name)?;
    let row = catalog.resource(kind, name)?;
    if row.record.state == DiskState::Creating {
        return Err(DiskError::Unfinished {
            kind,
            name: name.into(),
            doing: "created",
        });
    }
    Ok(row)
}

/// The kinds of those disks, snapshots and images that have a name.
///
/// # Errors
/// [`CatalogError`].
pub fn resources_named(
    installation: &Installation,
    name: &str,
) -> Result<Vec<ResourceKind>, CatalogError> {
    let mut kinds = Vec::new();
    for kind in ResourceKind::ALL {
        match installation.catalog().resource(kind, name) {
            Ok(_) => kinds.push(kind),
            Err(CatalogError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(kinds)
}
