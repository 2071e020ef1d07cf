//! What the management API alone knows: resource groups, in which of them a resource is and what else
//! it says of it, and role assignments.
//!
//! A resource without a placement was made by the command line and is in the group
//! [`DEFAULT_GROUP`]. A placement goes with what it is of, by the database's own doing, so that no
//! command can leave it to the next resource of that name; so do the role assignments of an identity.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CatalogError;
use super::record::Kind;
use crate::envelope::ResourceKind;

/// The group of what was made by the command line.
pub const DEFAULT_GROUP: &str = "default";
/// The one location that there is.
pub const LOCATION: &str = "local";

/// A resource group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupRecord {
    /// Its name, unique in any case.
    pub name: String,
    /// Where it is.
    pub location: String,
    /// What the user attaches to it.
    pub tags: BTreeMap<String, String>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

/// What the management API says of a resource and nothing else does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlacementRecord {
    /// What the resource is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Where it is.
    pub location: String,
    /// What the user attaches to it.
    pub tags: BTreeMap<String, String>,
    /// Properties that the API keeps and answers with.
    pub settings: Value,
    /// When it was made, and by whom.
    pub created: Touch,
    /// When it was changed last, and by whom.
    pub changed: Touch,
}

/// A moment, and the identity that did something then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Touch {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who.
    pub by: Uuid,
}

/// That an identity has a role at a scope and below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleAssignmentRecord {
    /// Its name.
    pub id: Uuid,
    /// The scope: the id of a subscription, a group or a resource.
    pub scope: String,
    /// The role.
    pub role: Uuid,
    /// Object id of the identity.
    pub principal: Uuid,
    /// What the identity is, as the client has said.
    pub principal_type: String,
    /// When it was made, and by whom.
    pub created: Touch,
}

/// The part of the catalog that is the management API's.
pub trait ManagementCatalog: Send + Sync {
    /// All resource groups, by name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn groups(&self) -> Result<Vec<GroupRecord>, CatalogError>;

    /// The group of that name, in any case.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn group(&self, name: &str) -> Result<Option<GroupRecord>, CatalogError>;

    /// Adds a group, or replaces what is said of the one of that name.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn put_group(&self, record: &GroupRecord) -> Result<(), CatalogError>;

    /// Deletes a group in which nothing is placed; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError::GroupInUse`].
    fn delete_group(&self, name: &str) -> Result<bool, CatalogError>;

    /// The placement of a resource, whose name is given in any case.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn placement(&self, kind: Kind, name: &str) -> Result<Option<PlacementRecord>, CatalogError>;

    /// All placements.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn placements(&self) -> Result<Vec<PlacementRecord>, CatalogError>;

    /// All placements of a kind.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn placements_of(&self, kind: Kind) -> Result<Vec<PlacementRecord>, CatalogError>;

    /// Disks, snapshots or images that are complete, by name, each with where it is if that is said: those in a group,
    /// which is given in any case, and after a name, and so many at most.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn placed_resources(
        &self,
        kind: ResourceKind,
        group: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Option<PlacementRecord>)>, CatalogError>;

    /// Places a resource, or replaces what is said of it.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when the group is not there.
    fn put_placement(&self, record: &PlacementRecord) -> Result<(), CatalogError>;

    /// Forgets a placement. One that is not there is none.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_placement(&self, kind: Kind, name: &str) -> Result<(), CatalogError>;

    /// Forgets where a request of the management API, which was cut off, was about to put something of that name:
    /// what is made of it otherwise is in the first group.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_left(&self, kind: Kind, name: &str) -> Result<(), CatalogError> {
        if self.placement(kind, name)?.is_some() && self.name_of(kind, name)?.is_none() {
            self.delete_placement(kind, name)?;
        }
        Ok(())
    }

    /// The name, as it is written, of what has this one in any case.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn name_of(&self, kind: Kind, name: &str) -> Result<Option<String>, CatalogError>;

    /// All role assignments.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn role_assignments(&self) -> Result<Vec<RoleAssignmentRecord>, CatalogError>;

    /// Those of an identity.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn roles_of(&self, principal: Uuid) -> Result<Vec<RoleAssignmentRecord>, CatalogError>;

    /// Adds a role assignment.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the identity has that role there, or the id is taken.
    fn insert_role_assignment(&self, record: &RoleAssignmentRecord) -> Result<(), CatalogError>;

    /// Deletes a role assignment; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_role_assignment(&self, id: Uuid) -> Result<bool, CatalogError>;
}
