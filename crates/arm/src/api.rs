//! The management API as a server has it: who asks, then what for.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use server::{Admitted, ApiError, Front, FrontReply, Head, Site, TransferReply};
use zeroize::Zeroizing;

use crate::access::{self, Sessions};
use crate::call::{Call, Principal};
use crate::changing::Changes;
use crate::deployments;
use crate::error::ArmError;
use crate::login::{Attempts, Public};
use crate::names::Names;
use crate::operations::{self, Server};
use crate::places::forget_unused;
use crate::query::Query;
use crate::roles::follow_roles_of_all;
use crate::route;
use crate::types::TYPES;
use crate::works::work_of;
use installation::{InstallationError, Place};

/// Longest body of a request of somebody unknown: that for a token.
const TOKEN_BODY: usize = 16 * 1024;
/// Longest body of any other.
const BODY: usize = 1 << 20;
/// Longest body of a deployment, as in Azure.
const DEPLOYMENT_BODY: usize = 4 << 20;

/// The management API of an installation.
pub struct Api {
    hosts: Vec<String>,
    changes: Arc<Changes>,
    access: Arc<Sessions>,
    attempts: Attempts,
}

impl Api {
    /// Served at this host under its usual names, at the address that is listened on, and at `hosts`. Images are
    /// imported from below `import_dir`, an absolute path, if there is one.
    pub fn new(
        hosts: &[String],
        address: IpAddr,
        place: Place,
        runtime_dir: PathBuf,
        import_dir: Option<PathBuf>,
    ) -> Self {
        let mut all = vec!["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into()];
        if !address.is_unspecified() {
            all.push(match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            });
        }
        all.extend(hosts.iter().cloned());
        Self {
            hosts: all,
            access: Arc::new(Sessions::new(place.clone(), runtime_dir.clone())),
            changes: Arc::new(Changes::new(place, runtime_dir).importing_from(import_dir)),
            attempts: Attempts::default(),
        }
    }

    fn server<'a>(&'a self, site: &'a Site<'a>) -> Server<'a> {
        Server {
            site,
            changes: &self.changes,
            access: &self.access,
            types: TYPES,
            route: route::answer,
        }
    }

    fn go_on(&self, site: &Site<'_>) {
        if let Err(error) = operations::go_on(self.server(site), work_of) {
            log::error!(
                "operations that were cut off are not gone on with: {}",
                error.message
            );
        }
    }

    fn answer_known(
        &self,
        site: &Site<'_>,
        head: &Head,
        body: &[u8],
    ) -> Result<FrontReply, ArmError> {
        let names = Names::new(site, head);
        let is_graph = route::is_graph(head);
        let claims = site.verify(head, is_graph);
        let claims = claims.map_err(|error| unknown(&error))?;
        let catalog = site.installation().catalog();
        if catalog.identity_by_object(claims.oid)?.is_none() {
            let message = "The identity of the access token was deleted.";
            return Err(ArmError::new(401, "InvalidAuthenticationToken", message));
        }
        let query = match Query::parse(&head.query) {
            Ok(query) => query,
            // Graph has its version in the path.
            Err(_) if is_graph => Query::parse(&format!("api-version=2020-01-01&{}", head.query))?,
            Err(error) => return Err(error),
        };
        let raw = body;
        let body = match raw.iter().all(u8::is_ascii_whitespace) || deployments::is_one(head) {
            true => Value::Null,
            false => serde_json::from_slice(raw).map_err(|error| {
                ArmError::new(
                    400,
                    "InvalidRequestContent",
                    format!(
                        "The request content was invalid and could not be deserialized: '{error}'."
                    ),
                )
            })?,
        };
        let call = Call {
            site,
            changes: &self.changes,
            access: &self.access,
            types: TYPES,
            route: route::answer,
            head,
            query,
            body,
            raw,
            principal: Principal {
                object_id: claims.oid,
                client_id: claims.appid,
            },
            roles: catalog.roles_of(claims.oid)?,
            names,
        };
        route::answer(&call)
    }
}

impl Front for Api {
    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }

    fn begin(&self, site: &Site<'_>) -> Result<(), InstallationError> {
        let installation = site.installation();
        // Neither keeps anything from being served: what fails is tried again with the next change.
        if let Err(error) = forget_unused(installation) {
            log::error!(
                "what dead processes left is not cleared away: {}",
                error.message
            );
        }
        let follow = || {
            let lock = installation.lock_policies()?;
            let assignments = installation.catalog().role_assignments()?;
            follow_roles_of_all(installation, &lock, &assignments)
        };
        if let Err(error) = follow() {
            log::error!("a key vault does not follow the role assignments: {error}");
        }
        if let Err(error) = operations::forget_ended(self.server(site)) {
            log::error!(
                "operations that ended long ago are not forgotten: {}",
                error.message
            );
        }
        self.changes.owners.keep();
        self.go_on(site);
        Ok(())
    }

    fn keep_up(&self, site: &Site<'_>) {
        if self.changes.owners.own_id().is_some() {
            self.changes.owners.keep();
            self.go_on(site);
        }
    }

    fn name(&self, head: &Head) -> &'static str {
        match Public::find(head) {
            Some(_) => "login",
            None if route::is_graph(head) => "graph",
            None => "management",
        }
    }

    fn admit(&self, site: &Site<'_>, head: &Head) -> Result<Admitted, Box<FrontReply>> {
        if Public::find(head).is_some() {
            return Ok(Admitted {
                body: TOKEN_BODY,
                identity: None,
            });
        }
        match site.verify(head, route::is_graph(head)) {
            Ok(claims) => Ok(Admitted {
                body: match deployments::is_one(head) {
                    true => DEPLOYMENT_BODY,
                    false => BODY,
                },
                identity: Some(claims.oid),
            }),
            Err(error) => {
                let refusal = unknown(&error);
                if head.header("authorization").is_some() {
                    let caller = uuid::Uuid::nil();
                    let detail = format!("management API: {}", refusal.message);
                    site.note_refused(head.peer, "LoginRefused", caller, &refusal.code, &detail);
                }
                Err(Box::new(challenged(refusal.reply(), head)))
            }
        }
    }

    fn answer(&self, site: &Site<'_>, head: &Head, body: &[u8]) -> FrontReply {
        if let Some(public) = Public::find(head) {
            return public.answer(site, &self.attempts, head, body);
        }
        match self.answer_known(site, head, body) {
            Ok(reply) => reply,
            Err(error) if error.status == 401 => challenged(error.reply(), head),
            Err(error) => error.reply(),
        }
    }

    fn is_transfer(&self, head: &Head) -> bool {
        access::is_transfer(head)
    }

    fn admit_transfer(&self, site: &Site<'_>, head: &Head) -> Result<usize, TransferReply> {
        access::admit(site, head)
    }

    fn transfer(&self, site: &Site<'_>, head: &Head, body: Zeroizing<Vec<u8>>) -> TransferReply {
        access::transfer(&self.access, site, head, body)
    }
}

/// A token that is not accepted, in Azure's words.
fn unknown(error: &ApiError) -> ArmError {
    // The vaults' words begin with a code of theirs.
    let (code, message) = match error.message.split_once(": ") {
        Some((code, message)) if code.starts_with("AKV") => (code, message),
        _ => ("", error.message.as_str()),
    };
    match code {
        "AKV10000" => ArmError::new(
            401,
            "AuthenticationFailed",
            "Authentication failed. The 'Authorization' header is missing.",
        ),
        "AKV10022" => ArmError::new(
            401,
            "InvalidAuthenticationTokenAudience",
            "The access token has been obtained for wrong audience or resource.",
        ),
        _ => ArmError::new(401, "InvalidAuthenticationToken", message),
    }
}

fn challenged(reply: FrontReply, head: &Head) -> FrontReply {
    let base = head.authority.to_ascii_lowercase();
    let challenge = format!(
        "Bearer authorization_uri=\"https://{base}/adfs\", error=\"invalid_token\", \
         error_description=\"The authentication failed because of missing or invalid 'Authorization' header.\""
    );
    FrontReply {
        headers: vec![("www-authenticate", challenge)],
        ..reply
    }
}
