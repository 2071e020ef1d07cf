//! Requests that the server makes of itself for whoever has begun an operation: through the same code as theirs, with
//! the roles that they have by then.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use server::{FrontReply, Head};
use url::form_urlencoded;
use uuid::Uuid;

use super::failure::failure;
use super::parts::Server;
use crate::call::{Call, Principal};
use crate::error::ArmError;
use crate::names::Names;
use crate::query::Query;
use installation::catalog::OperationState;

/// Versions of the API are any dates; this is for what has none.
const VERSION: &str = "2025-01-02";
/// How often it is looked what has become of an operation at another server.
const LOOK: Duration = Duration::from_secs(1);

/// Who works for somebody.
pub struct Worker<'a> {
    /// Where.
    pub server: Server<'a>,
    /// For whom: the object id.
    pub principal: Uuid,
    /// The host by which they know the server, with its port.
    pub authority: String,
    /// Where they have asked from.
    pub peer: SocketAddr,
}

impl<'a> Worker<'a> {
    /// For whoever asks now.
    pub fn of_call(call: &'a Call<'a>) -> Self {
        Self {
            server: Server::of(call),
            principal: call.principal.object_id,
            authority: call.head.authority.clone(),
            peer: call.head.peer,
        }
    }

    /// The names that whoever has begun the operation knows.
    pub fn names(&self) -> Names {
        let head = Head::new("GET", &self.authority, "", self.peer);
        Names::new(self.server.site, &head)
    }

    /// Asks; `id` is a path, not percent-encoded.
    ///
    /// # Errors
    /// The refusal.
    pub fn ask(
        &self,
        method: &str,
        id: &str,
        api_version: &str,
        body: Value,
    ) -> Result<FrontReply, ArmError> {
        self.as_call(method, id, api_version, body, self.server.route)
    }

    /// Does something in the name of whoever has begun the operation.
    ///
    /// # Errors
    /// Its refusal; 401 when they are there no more.
    pub fn as_call<T>(
        &self,
        method: &str,
        id: &str,
        api_version: &str,
        body: Value,
        act: impl FnOnce(&Call<'_>) -> Result<T, ArmError>,
    ) -> Result<T, ArmError> {
        let mut head = Head::new(method, &self.authority, "", self.peer);
        head.path = id.replace('%', "%25");
        let version = match api_version.is_empty() {
            true => VERSION,
            false => api_version,
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        head.query = query.append_pair("api-version", version).finish();
        let Server {
            site,
            changes,
            access,
            types,
            route,
        } = self.server;
        let catalog = site.installation().catalog();
        let identity = catalog.identity_by_object(self.principal)?;
        let identity = identity.ok_or_else(|| {
            let message = "The identity that has begun the operation was deleted.";
            ArmError::new(401, "InvalidAuthenticationToken", message)
        })?;
        let call = Call {
            site,
            changes,
            access,
            types,
            route,
            head: &head,
            query: Query::parse(&head.query)?,
            body,
            raw: &[],
            principal: Principal {
                object_id: identity.object_id,
                client_id: identity.client_id,
            },
            roles: catalog.roles_of(identity.object_id)?,
            names: Names::new(site, &head),
        };
        act(&call)
    }

    /// What a PUT has come to: where it has begun an operation, that is waited for.
    ///
    /// # Errors
    /// Why the operation has failed.
    pub fn settled(
        &self,
        reply: FrontReply,
        id: &str,
        api_version: &str,
    ) -> Result<FrontReply, ArmError> {
        let mut headers = reply.headers.iter();
        let Some((_, url)) = headers.find(|(name, _)| *name == "azure-asyncoperation") else {
            return Ok(reply);
        };
        let path = url.split('?').next();
        let operation = path.and_then(|path| Uuid::try_parse(path.rsplit('/').next()?).ok());
        let Some(operation) = operation else {
            return Err(ArmError::internal(format!(
                "an operation about {id} has no id"
            )));
        };
        let Server { site, changes, .. } = self.server;
        loop {
            changes.going.wait(operation, Duration::MAX);
            let known = site.installation().catalog().operation(operation)?;
            return match known {
                Some(record) if record.state == OperationState::Succeeded => {
                    self.ask("GET", id, api_version, Value::Null)
                }
                // Another server has begun it, or goes on with it.
                Some(record)
                    if record.state == OperationState::Running
                        && changes.owners.is_of_another(&record) =>
                {
                    std::thread::sleep(LOOK);
                    continue;
                }
                Some(record) => Err(failure(&record)),
                None => Err(ArmError::internal(format!(
                    "an operation about {id} is gone"
                ))),
            };
        }
    }
}
