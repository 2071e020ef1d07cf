//! Operations of the management API that outlive their requests, and the server: what is asked for, and what has become
//! of it. Deployments are such operations that are kept, with their group, when they have ended.
//!
//! The copy of the catalog has none of them: what they have made is there without them.

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CatalogError;
use super::management::Touch;

/// An operation.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationRecord {
    /// Its id.
    pub id: Uuid,
    /// Of which deployment it is, if it is of one.
    pub deployment: Option<DeploymentName>,
    /// The id of the resource that it is about.
    pub target: String,
    /// What has become of it.
    pub state: OperationState,
    /// When it was asked for, and by whom.
    pub started: Touch,
    /// When it was changed last.
    pub changed: OffsetDateTime,
    /// What is needed to go on with it after a restart; null when that is not possible.
    pub request: Value,
    /// What clients are told of it.
    pub answer: Value,
}

/// A deployment's name, unique in its group in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentName {
    /// The group.
    pub group: String,
    /// The name.
    pub name: String,
}

/// What has become of an operation, by Azure's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// It goes on, or did so when the server ended.
    Running,
    /// All is done.
    Succeeded,
    /// It ended before all was done.
    Failed,
    /// It ended before all was done because somebody wanted that.
    Canceled,
}

impl OperationState {
    const ALL: [Self; 4] = [Self::Running, Self::Succeeded, Self::Failed, Self::Canceled];

    /// Azure's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }

    /// The state of that name.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// The part of the catalog that has the operations of the management API.
pub trait OperationCatalog: Send + Sync {
    /// Adds an operation, or replaces its state and its answer. One of a deployment takes the place of the one that the
    /// deployment had before.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when the deployment's group is not there.
    fn put_operation(&self, record: &OperationRecord) -> Result<(), CatalogError>;

    /// The operation with that id.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn operation(&self, id: Uuid) -> Result<Option<OperationRecord>, CatalogError>;

    /// That of the deployment of that name, in any case.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn deployment(&self, group: &str, name: &str) -> Result<Option<OperationRecord>, CatalogError>;

    /// The ids of those of all deployments in a group, the one that was changed last first.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn deployments(&self, group: &str) -> Result<Vec<Uuid>, CatalogError>;

    /// Those that go on, or did so when the server ended, the oldest first.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn running_operations(&self) -> Result<Vec<OperationRecord>, CatalogError>;

    /// Notes that another server goes on with one: `request` in the place of what it has, unless it has another than
    /// `known` by now, or has ended; whether it is noted.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn take_operation(
        &self,
        id: Uuid,
        known: &Value,
        request: &Value,
    ) -> Result<bool, CatalogError>;

    /// Forgets one; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_operation(&self, id: Uuid) -> Result<bool, CatalogError>;

    /// Notes that somebody wants an operation to end; whether it goes on.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn cancel_operation(&self, id: Uuid) -> Result<bool, CatalogError>;

    /// Whether somebody wants an operation to end, or has deleted it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn is_operation_cancelled(&self, id: Uuid) -> Result<bool, CatalogError>;

    /// Forgets operations of no deployment that ended before a time.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn forget_operations(&self, ended_before: OffsetDateTime) -> Result<(), CatalogError>;
}
