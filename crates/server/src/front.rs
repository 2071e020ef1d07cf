//! What a server serves besides vaults, at hosts of its own: the management API.
//!
//! This crate has the connections, the limits, the threads and the tokens; a [`Front`] says what is
//! asked and answers it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::ApiError;
use super::floods::{Floods, Refused};
use super::host::Audience;
use super::request_head::{authority, bearer};
use super::shortened::shortened;
use super::token::{Claims, Issued, TokenService};
use super::transfer::TransferReply;
use installation::catalog::IdentityRecord;
use installation::{Installation, InstallationError};

/// What is served besides vaults.
pub trait Front: Send + Sync {
    /// The hosts at which it is served, without a port.
    fn hosts(&self) -> Vec<String>;

    /// What is to be done before anything is served.
    ///
    /// # Errors
    /// [`InstallationError`]: nothing is served.
    fn begin(&self, site: &Site<'_>) -> Result<(), InstallationError>;

    /// What is to be done every few seconds while it is served. It may block.
    fn keep_up(&self, _site: &Site<'_>) {}

    /// What is asked, in a few words without the names in it, as traces have it.
    fn name(&self, head: &Head) -> &'static str;

    /// Who asks, and how long the body may be; it must not block.
    ///
    /// # Errors
    /// The answer to somebody whose body is not even read.
    fn admit(&self, site: &Site<'_>, head: &Head) -> Result<Admitted, Box<FrontReply>>;

    /// Answers a request. It may block.
    fn answer(&self, site: &Site<'_>, head: &Head, body: &[u8]) -> FrontReply;

    /// Whether a request is for the bytes of a disk: [`Front::transfer`] answers it then. It must not block.
    fn is_transfer(&self, head: &Head) -> bool;

    /// As [`Front::admit`] of a request for the bytes of a disk. It may block.
    ///
    /// # Errors
    /// The answer to somebody whose body is not even read.
    fn admit_transfer(&self, site: &Site<'_>, head: &Head) -> Result<usize, TransferReply>;

    /// Answers a request for the bytes of a disk. It may block.
    fn transfer(&self, site: &Site<'_>, head: &Head, body: Zeroizing<Vec<u8>>) -> TransferReply;
}

/// What is known of a request before its body is read.
pub struct Admitted {
    /// How long the body may be, in bytes.
    pub body: usize,
    /// The object id of whoever has shown a token; nothing of who logs in, or asks for what everybody may know.
    pub identity: Option<Uuid>,
}

/// A request without its body.
#[derive(Debug, Clone)]
pub struct Head {
    /// The method.
    pub method: String,
    /// The host, with its port, as the client has it.
    pub authority: String,
    /// The path, as it was sent.
    pub path: String,
    /// What followed `?`.
    pub query: String,
    /// Who is at the other end.
    pub peer: SocketAddr,
    headers: HeaderMap,
}

impl Head {
    /// A request with these headers.
    pub fn new(method: &str, authority: &str, path_and_query: &str, peer: SocketAddr) -> Self {
        let (path, query) = path_and_query
            .split_once('?')
            .unwrap_or((path_and_query, ""));
        Self {
            method: method.into(),
            authority: authority.into(),
            path: path.into(),
            query: query.into(),
            peer,
            headers: HeaderMap::new(),
        }
    }

    /// With further headers, where they are such.
    #[must_use]
    pub fn with_headers(mut self, headers: &[(&'static str, &str)]) -> Self {
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                self.headers.append(*name, value);
            }
        }
        self
    }

    pub(crate) fn of(parts: &Parts, peer: SocketAddr) -> Self {
        Self {
            method: parts.method.as_str().into(),
            authority: authority(parts).into(),
            path: parts.uri.path().into(),
            query: parts.uri.query().unwrap_or_default().into(),
            peer,
            headers: parts.headers.clone(),
        }
    }

    /// A header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that may be there more than once as long as it says the same.
    ///
    /// # Errors
    /// It says several things.
    pub fn only(&self, name: &str) -> Result<Option<&str>, ManyValues> {
        let mut all = self.headers.get_all(name).iter();
        let first = all.next();
        match all.all(|other| Some(other) == first) {
            true => Ok(self.header(name)),
            false => Err(ManyValues),
        }
    }
}

/// That a header says several things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManyValues;

/// What a request is answered with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FrontReply {
    /// The HTTP status.
    pub status: u16,
    /// The body, if there is one.
    pub body: Option<Value>,
    /// A body that is JSON already, in place of the other one: a list of thousands.
    pub text: Option<String>,
    /// Further headers, whose names are in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// After how many seconds it may be tried again.
    pub retry_after: Option<u64>,
}

/// What a [`Front`] uses of its server.
pub struct Site<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) tokens: &'a TokenService,
    pub(crate) domains: &'a [String],
    pub(crate) floods: &'a Floods,
    pub(crate) threads: &'a dyn Threads,
}

/// What a thread of a [`Front`] does.
pub(crate) type Work = Box<dyn FnOnce(&Site<'_>) + Send>;

/// Where a [`Front`] has threads from that outlive a request.
pub(crate) trait Threads: Send + Sync {
    /// Does something on a thread of that name.
    ///
    /// # Errors
    /// When there is no thread.
    fn spawn(&self, name: &str, work: Work) -> io::Result<()>;
}

impl Site<'_> {
    /// The installation.
    pub fn installation(&self) -> &Installation {
        self.installation
    }

    /// The domains below which vaults have their names, the default first.
    pub fn domains(&self) -> &[String] {
        self.domains
    }

    /// Does something on a thread of its own, which nobody waits for: it ends with the process at the latest.
    ///
    /// # Errors
    /// When there is no thread: nothing is done.
    pub fn spawn(
        &self,
        name: &str,
        work: impl FnOnce(&Site<'_>) + Send + 'static,
    ) -> io::Result<()> {
        self.threads.spawn(name, Box::new(work))
    }

    /// What the token of a request says, if it is for the management API, or, where the directory is asked, for that.
    /// Whether its identity exists is to be looked up.
    ///
    /// # Errors
    /// 401.
    pub fn verify(&self, head: &Head, of_directory: bool) -> Result<Arc<Claims>, ApiError> {
        let token = bearer(&head.headers)?;
        let wanted: &[Audience] = match of_directory {
            true => &[Audience::Management, Audience::Directory],
            false => &[Audience::Management],
        };
        self.tokens.verify_for(token, wanted)
    }

    /// The public keys of the token service, as a JWK set.
    pub fn token_keys(&self) -> Value {
        self.tokens.published_keys()
    }

    /// A token of an identity, once it is recorded who gets it.
    ///
    /// # Errors
    /// 400 for a resource for which there are no tokens; why it was not recorded.
    pub fn issue(
        &self,
        identity: &IdentityRecord,
        resource: &str,
        peer: SocketAddr,
    ) -> Result<Issued, ApiError> {
        let issued = self.tokens.issue(identity, resource)?;
        self.installation.record_token(identity, peer)?;
        Ok(issued)
    }

    /// Who signs tokens, as they have it.
    pub fn issuer(&self) -> &str {
        self.tokens.issuer()
    }

    /// Signs what is no token for a service.
    ///
    /// # Errors
    /// 500.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, ApiError> {
        self.tokens.sign(claims)
    }

    /// What something says that [`Site::sign`] has signed for `audience` and that is valid now.
    ///
    /// # Errors
    /// 401.
    pub fn signed<T: DeserializeOwned>(&self, token: &str, audience: &str) -> Result<T, ApiError> {
        self.tokens.signed(token, audience)
    }

    /// Has the log say that somebody was refused; how many times, when it is done again and again.
    pub fn note_refused(
        &self,
        peer: SocketAddr,
        operation: &'static str,
        caller: Uuid,
        code: &str,
        detail: &str,
    ) {
        let refused = Refused {
            operation,
            caller,
            code: code.into(),
            detail: shortened(detail),
        };
        self.floods.note(refused, peer);
    }
}

/// Whether a host, which may have a port, is one of these.
pub fn is_one_of(authority: &str, hosts: &[String]) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => authority,
    };
    hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_with_and_without_a_port() {
        let hosts = ["localhost".to_owned(), "[::1]".into()];
        for (authority, known) in [
            ("localhost", true),
            ("LocalHost:8443", true),
            ("[::1]:8443", true),
            ("[::1]", true),
            ("localhost:", false),
            ("localhost:x", false),
            ("localhost:99999", false),
            ("localhost.example.com", false),
            ("evil\"localhost", false),
            ("", false),
        ] {
            assert_eq!(is_one_of(authority, &hosts), known, "{authority}");
        }
    }
}
