//! Who can be named: the identities of users, and those of disk encryption sets.

use std::cell::OnceCell;
use std::collections::HashMap;

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
    /// What it is as an application, if it is one.
    pub application: Option<IdentityRecord>,
}

impl From<IdentityRecord> for PrincipalView {
    fn from(record: IdentityRecord) -> Self {
        Self {
            object_id: record.object_id,
            client_id: Some(record.client_id),
            name: record.owner.name().into(),
            application: record.is_application.then_some(record),
        }
    }
}

/// Looks up several identities: the disk encryption sets are read once for all of them.
pub struct Principals<'a> {
    installation: &'a Installation,
    /// The names of sets, by the object ids of their identities.
    sets: OnceCell<HashMap<Uuid, String>>,
}

impl<'a> Principals<'a> {
    /// Those of an installation.
    pub fn of(installation: &'a Installation) -> Self {
        Self {
            installation,
            sets: OnceCell::new(),
        }
    }

    /// The identity with that object id.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn find(&self, object_id: Uuid) -> Result<Option<PrincipalView>, ArmError> {
        let catalog = self.installation.catalog();
        if let Some(record) = catalog.identity_by_object(object_id)? {
            return Ok(Some(record.into()));
        }
        // The identity of a set has a record once it has asked for a token.
        let sets = match self.sets.get() {
            Some(sets) => sets,
            None => {
                let all = catalog.all_des()?.into_iter().map(|set| set.record);
                let with = all.filter(|set| set.identity != DesIdentity::None);
                let read = with.map(|set| (set.principal_id, set.name)).collect();
                self.sets.get_or_init(|| read)
            }
        };
        Ok(sets.get(&object_id).map(|name| PrincipalView {
            object_id,
            client_id: None,
            name: name.clone(),
            application: None,
        }))
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
    Principals::of(installation).find(object_id)
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
