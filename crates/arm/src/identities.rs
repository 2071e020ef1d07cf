//! Who can be named: the identities of users, and those of disk encryption sets.

use uuid::Uuid;

use crate::error::ArmError;
use installation::Installation;
use installation::catalog::{DesIdentity, IdentityRecord};

/// An identity, as Graph describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalView {
    /// Its object id.
    pub object_id: Uuid,
    /// Its client id, where it has one.
    pub client_id: Option<Uuid>,
    /// Its name.
    pub name: String,
}

impl From<IdentityRecord> for PrincipalView {
    fn from(record: IdentityRecord) -> Self {
        Self {
            object_id: record.object_id,
            client_id: Some(record.client_id),
            name: record.owner.name().into(),
        }
    }
}

/// The identity with that object id.
///
/// # Errors
/// When the catalog cannot be read.
pub fn find(
    installation: &Installation,
    object_id: Uuid,
) -> Result<Option<PrincipalView>, ArmError> {
    let catalog = installation.catalog();
    if let Some(record) = catalog.identity_by_object(object_id)? {
        return Ok(Some(record.into()));
    }
    // The identity of a set has a record once it has asked for a token.
    let sets = catalog.all_des()?.into_iter();
    let of_set = sets
        .map(|set| set.record)
        .find(|set| set.principal_id == object_id && set.identity != DesIdentity::None);
    Ok(of_set.map(|set| PrincipalView {
        object_id,
        client_id: None,
        name: set.name,
    }))
}

/// The identity of that name, client id or object id.
///
/// # Errors
/// When the catalog cannot be read.
pub fn named(installation: &Installation, name: &str) -> Result<Option<PrincipalView>, ArmError> {
    let catalog = installation.catalog();
    if let Ok(id) = Uuid::try_parse(name) {
        if let Some(record) = catalog.identity_by_client(id)? {
            return Ok(Some(record.into()));
        }
        return find(installation, id);
    }
    match installation.find_identity(name) {
        Ok(found) => Ok(Some(found.record.into())),
        Err(installation::InstallationError::Catalog(
            installation::catalog::CatalogError::NotFound { .. },
        )) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
