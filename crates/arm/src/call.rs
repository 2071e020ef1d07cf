//! A request of a known identity, and the types of resources that it may be about.

use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::access::Sessions;
use crate::changing::Changes;
use crate::error::ArmError;
use crate::locked::refuse;
use crate::names::Names;
use crate::operations::Share;
use crate::query::Query;
use crate::roles::{Roles, permitted};
use installation::Installation;
use installation::catalog::{
    Catalog, Kind, OperationRecord, OperationState, PlacementRecord, Touch,
};
use server::{FrontReply, Head, Site};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// Its object id.
    pub object_id: Uuid,
    /// Its client id.
    pub client_id: Uuid,
}

/// What answers a request.
pub type Route = fn(&Call<'_>) -> Result<FrontReply, ArmError>;

/// A request of a known identity.
pub struct Call<'a> {
    /// Whose request it is.
    pub site: &'a Site<'a>,
    /// What makes changes.
    pub changes: &'a Arc<Changes>,
    /// The disks whose data somebody has access to.
    pub access: &'a Arc<Sessions>,
    /// The types of resources.
    pub types: &'static [&'static dyn ResourceType],
    /// What answers requests: those that the server makes of itself for somebody, too.
    pub route: Route,
    /// The request without its body.
    pub head: &'a Head,
    /// What its query says.
    pub query: Query,
    /// Its body; null when there is none, and for a deployment, whose body need not be JSON.
    pub body: Value,
    /// Its body as it was sent.
    pub raw: &'a [u8],
    /// Who asks.
    pub principal: Principal,
    /// The roles of whoever asks.
    pub roles: Roles,
    /// What ids and URLs are made of.
    pub names: Names,
}

impl Call<'_> {
    /// The installation.
    pub fn installation(&self) -> &Installation {
        self.site.installation()
    }

    /// Its catalog.
    pub fn catalog(&self) -> &dyn Catalog {
        self.site.installation().catalog()
    }

    /// What it asks for, for those who wait for its end.
    pub fn what(&self) -> String {
        format!("{} {}", self.head.method, self.head.path)
    }

    /// Whether whoever asks may do that at a scope.
    pub fn may(&self, action: &str, scope: &str) -> bool {
        permitted(&self.roles, action, scope)
    }

    /// Refuses what whoever asks may not do, and what a lock forbids.
    ///
    /// # Errors
    /// 403 and 409, in Azure's words.
    pub fn require(&self, action: &str, scope: &str) -> Result<(), ArmError> {
        self.require_right(action, scope)?;
        self.refuse_locked(action, scope)
    }

    /// Refuses what a lock forbids, once more where a name is locked: a lock may have been put on it meanwhile.
    ///
    /// # Errors
    /// 409, in Azure's words.
    pub fn refuse_locked(&self, action: &str, scope: &str) -> Result<(), ArmError> {
        let full_type = |kind| self.full_type(kind);
        refuse(self.installation(), full_type, action, scope)
    }

    fn require_right(&self, action: &str, scope: &str) -> Result<(), ArmError> {
        if self.may(action, scope) {
            return Ok(());
        }
        let Principal {
            object_id,
            client_id,
        } = self.principal;
        self.site.note_refused(
            self.head.peer,
            "ManagementRefused",
            object_id,
            "AuthorizationFailed",
            &format!("{action} over {scope}"),
        );
        Err(ArmError::new(
            403,
            "AuthorizationFailed",
            format!(
                "The client '{client_id}' with object id '{object_id}' does not have authorization to perform \
                 action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, \
                 please refresh your credentials."
            ),
        ))
    }

    /// Refuses a request that uses something which whoever asks may not use. What is used is not changed.
    ///
    /// # Errors
    /// 403, in Azure's words.
    pub fn require_linked(&self, action: &str, scope: &str) -> Result<(), ArmError> {
        self.require_right(action, scope).map_err(|error| ArmError {
            code: "LinkedAuthorizationFailed".into(),
            ..error
        })
    }

    /// Now, and who asks.
    pub fn touch(&self) -> Touch {
        Touch {
            at: OffsetDateTime::now_utc(),
            by: self.principal.object_id,
        }
    }

    /// The type of that provider and name, in any case.
    pub fn type_of(&self, provider: &str, name: &str) -> Option<&'static dyn ResourceType> {
        self.types.iter().copied().find(|kind| {
            kind.provider().eq_ignore_ascii_case(provider) && kind.name().eq_ignore_ascii_case(name)
        })
    }

    /// The type of what the catalog calls so.
    pub fn type_of_kind(&self, kind: Kind) -> Option<&'static dyn ResourceType> {
        self.types
            .iter()
            .copied()
            .find(|known| known.kind() == kind)
    }

    /// The full name of the type of what the catalog calls so.
    pub fn full_type(&self, kind: Kind) -> String {
        let found = self.type_of_kind(kind).map(ResourceType::full_type);
        found.unwrap_or_default()
    }

    /// The id of a resource, which is its scope.
    pub fn id(&self, placed: &PlacementRecord) -> String {
        let full_type = self.full_type(placed.kind);
        self.names
            .resource_id(&placed.group, &full_type, &placed.name)
    }
}

/// What a type of resources can do. The rest, groups, tags, locations, access, records and what a kill
/// leaves, is the same for all and in `resources.rs`.
pub trait ResourceType: Sync {
    /// What the catalog calls it.
    fn kind(&self) -> Kind;

    /// The namespace: `Microsoft.Compute`.
    fn provider(&self) -> &'static str;

    /// The type in it: `disks`.
    fn name(&self) -> &'static str;

    /// The name as it is written of the one that a name means, in any case. `None` also for one that is
    /// soft-deleted.
    ///
    /// # Errors
    /// When it cannot be found out.
    fn find(&self, call: &Call<'_>, name: &str) -> Result<Option<String>, ArmError> {
        Ok(call.catalog().name_of(self.kind(), name)?)
    }

    /// The names of all of them.
    ///
    /// # Errors
    /// When they cannot be read.
    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError>;

    /// Some of them with where they are, by name, for a type of which there are thousands: `None` where all of them
    /// are read.
    ///
    /// # Errors
    /// When they cannot be read.
    fn listed(
        &self,
        _call: &Call<'_>,
        _wanted: &Wanted<'_>,
    ) -> Result<Option<Vec<PlacementRecord>>, ArmError> {
        Ok(None)
    }

    /// The body of one of them, without what all have: `properties`, `sku`, `identity`.
    ///
    /// # Errors
    /// When it cannot be read.
    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError>;

    /// The same of many, for a list: `None` of what was deleted meanwhile, and of what cannot be read, of which its own
    /// GET tells.
    ///
    /// # Errors
    /// When none can be read.
    fn show_many(
        &self,
        call: &Call<'_>,
        placed: &[PlacementRecord],
    ) -> Result<Vec<Option<Value>>, ArmError> {
        Ok(placed
            .iter()
            .map(|placed| self.show(call, placed).ok())
            .collect())
    }

    /// What the catalog is to keep of a body, once it is checked as far as that goes without changing
    /// anything.
    ///
    /// # Errors
    /// What is wrong with the body.
    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError>;

    /// Makes or changes it, as the body says; `put.placed` has the new settings. Repeated, it changes
    /// nothing more. What takes long goes on as the operation of that id.
    ///
    /// # Errors
    /// Why not: one that was to be made is not there then, but for a deep copy whose data could not be copied yet.
    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError>;

    /// Deletes it.
    ///
    /// # Errors
    /// Why not.
    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError>;

    /// What is below one of them, or is done with it: `words` follow its name. `None` where a type has nothing below.
    ///
    /// # Errors
    /// A refusal; 404 for what there is not.
    fn below(
        &self,
        _call: &Call<'_>,
        _placed: &PlacementRecord,
        _words: &[String],
    ) -> Option<Result<FrontReply, ArmError>> {
        None
    }

    /// The status for one that was made.
    fn created_status(&self) -> u16 {
        200
    }

    /// `Microsoft.Compute/disks`
    fn full_type(&self) -> String {
        format!("{}/{}", self.provider(), self.name())
    }
}

/// Which resources of a type are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Those in a group, which is given in any case.
    pub group: Option<&'a str>,
    /// Those whose names come after this one.
    pub after: Option<&'a str>,
    /// So many at most.
    pub limit: usize,
}

/// A resource that is to be made or changed.
#[derive(Clone, Copy)]
pub struct Put<'a> {
    /// The body.
    pub body: &'a Value,
    /// Whether it is there already.
    pub exists: bool,
    /// Name, group, tags and settings: as they are, for [`ResourceType::settings`], and as they are to be
    /// for [`ResourceType::apply`].
    pub placed: &'a PlacementRecord,
}

/// What takes long, and goes on after its request, and after a restart of the server.
pub trait Work: Send {
    /// What the catalog keeps, so that it can be gone on with.
    fn kept(&self) -> Value;

    /// Which limit it counts against when it begins.
    fn share(&self) -> Share {
        Share::Work
    }

    /// Does it. `call` is one of whoever has begun it; `record` says which steps are done already, which are not done
    /// again. Repeated from the beginning, it changes nothing more.
    ///
    /// # Errors
    /// Why it has failed.
    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError>;
}
