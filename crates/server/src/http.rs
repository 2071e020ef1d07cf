//! From an HTTP request to its answer.
//!
//! The order is Azure's, and that of its clients, whose first request has neither a token nor a
//! body: who asks (401 with a challenge), then what for (404, 405, 400), then the body (413, 408,
//! 400), then the vault's own checks. A body is not even read for somebody unknown, and not parsed
//! for an identity that is gone.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONNECTION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::ApiError;
use super::connections::Connections;
use super::floods::Refused;
use super::framing;
use super::host::VaultHost;
use super::linger::lingering;
use super::local::LocalOnly;
use super::operation::{Answer, Operation, claimed_purpose};
use super::query::Query;
use super::reply::{Reply, TokenError, respond};
use super::request_head::{authority, bearer};
use super::request_span;
use super::route::{NoRoute, Route, segments};
use super::shared::{Cost, Lane, Shared};
use super::shortened::shortened;
use super::token::{Flavour, TokenRequest};
use installation::catalog::{CatalogError, IdentityOwner, IdentityRecord};
use installation::{InstallationError, PLATFORM_VAULT};
use vault::{Caller, EmbeddedVault, KeyPermission, Origin};

/// Largest body that is read. The largest one that makes sense is a backup of a key.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

/// What a listener serves.
pub enum Service {
    /// Vaults, over TLS, and the token service with [`Flavour::IdentityEndpoint`].
    Vaults,
    /// Tokens of whoever proves to be their identity, in the clear, for this host alone.
    IdentityEndpoint,
    /// Tokens of the identities named, in the clear, for this host alone.
    Imds(Vec<String>),
}

/// One address that is listened on.
pub struct Listener {
    /// What all listeners have in common.
    pub shared: Arc<Shared>,
    /// Its connections.
    pub connections: Connections,
    /// What it serves.
    pub service: Service,
    /// Who may ask, where it gives tokens in the clear.
    pub local: Option<LocalOnly>,
    /// How long a client may take to send a request's body.
    pub patience: Duration,
}

/// Answers one request.
pub async fn handle(
    State(listener): State<Arc<Listener>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let _working = listener.connections.begin(peer);
    let id = Uuid::new_v4();
    let (mut parts, body) = request.into_parts();
    request_span::begin(&mut parts);
    let body = lingering(&parts.headers, body);
    let path = parts.uri.path();
    let reply = match &listener.service {
        _ if let Err(error) = framing::check(&parts.headers) => error.into(),
        _ if let Err(error) = listener.admit(peer, &parts).await => TokenError(error).into(),
        Service::Imds(names) => listener.imds(names, peer, &parts).await,
        _ if is(path, &["msi", "token"]) => listener.identity_endpoint(peer, &parts).await,
        Service::IdentityEndpoint => not_found(path).into(),
        Service::Vaults => listener.vaults(peer, &parts, body).await,
    };
    log::debug!(
        "{id} {peer} {} {} {}",
        parts.method,
        shortened(path),
        reply.status.as_u16()
    );
    request_span::end(&parts, reply.status, reply.body.as_ref());
    let mut response = respond(id, &parts.headers, reply);
    if framing::ends_connection(&parts.headers) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

impl Listener {
    /// Refuses whoever may not ask a listener of this host alone, whatever is asked. The log says who
    /// was refused.
    async fn admit(&self, peer: SocketAddr, parts: &Parts) -> Result<(), ApiError> {
        let Some(local) = &self.local else {
            return Ok(());
        };
        let admitted = match local.check_host(parts) {
            Ok(()) => {
                let local = local.clone();
                let work = move |_: &Arc<Shared>| local.check_peer(peer).map(drop);
                self.shared.blocking(Lane::Tokens, Cost::Usual, work).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &admitted {
            log::warn!("no token for {peer}: {}", error.message);
            self.note_token(peer, None, error);
        }
        admitted
    }

    async fn vaults(&self, peer: SocketAddr, parts: &Parts, body: Body) -> Reply {
        let host = match vault_host(parts, &self.shared.domains) {
            Ok(host) => host,
            Err(error) => match self.shared.front_of(authority(parts)) {
                Some(front) => return self.front(front, peer, parts, body).await,
                None => return error.into(),
            },
        };
        match self.vault_operation(peer, parts, body, &host).await {
            Ok(answer) => answer.into(),
            Err(error) if error.status == StatusCode::UNAUTHORIZED => Reply {
                challenge: Some(self.shared.challenge(&host)),
                ..error.into()
            },
            Err(error) => error.into(),
        }
    }

    async fn vault_operation(
        &self,
        peer: SocketAddr,
        parts: &Parts,
        body: Body,
        host: &VaultHost,
    ) -> Result<Answer, ApiError> {
        let token = bearer(&parts.headers)?;
        let verify = || self.shared.tokens.verify(token);
        let verified = request_span::verified(parts, &host.vault, verify);
        let claims =
            verified.inspect_err(|e| self.note_login(peer, &host.vault, Uuid::nil(), e))?;
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        let route = Route::find(method, path).map_err(|no| match no {
            NoRoute::Path => not_found(path),
            NoRoute::Method => ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("{method} is not what can be done with this path"),
            ),
        })?;
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        let body = read(&parts.headers, body, BODY_LIMIT, self.patience).await?;
        let cost = match route.is_slow() {
            true => Cost::Slow,
            false => Cost::Usual,
        };
        let caller = Caller {
            purpose: claimed_purpose(&parts.headers),
            ..Caller::remote(claims.oid, peer)
        };
        let (name, oid) = (host.vault.clone(), claims.oid);
        // What takes something away is let through, and so are the checks of running disks: the
        // vault itself tells which of those cost nothing.
        let uses = matches!(route, Route::Crypt(..) | Route::Get(..) | Route::List);
        if uses
            && !caller.purpose.check
            && let Some(seconds) = self.shared.over_limit(&name, oid)
        {
            self.note_throttled(peer, &name, oid);
            return Err(ApiError::throttled(seconds));
        }
        let (host, span) = (host.clone(), request_span::of(parts));
        let lane = Lane::Vault(name.clone(), oid);
        let answer = self
            .shared
            .blocking(lane, cost, move |shared| {
                let _entered = span.enter();
                run(shared, &caller, route, &query, &body, &host)
            })
            .await;
        match &answer {
            Err(e) if e.status == StatusCode::UNAUTHORIZED => {
                self.note_login(peer, &name, oid, e);
            }
            Err(ApiError {
                status: StatusCode::TOO_MANY_REQUESTS,
                retry_after: Some(seconds),
                ..
            }) => self.shared.set_over_limit(&name, oid, *seconds),
            _ => {}
        }
        answer
    }

    /// Notes for the log that a token was not accepted.
    fn note_login(&self, peer: SocketAddr, vault: &str, identity: Uuid, error: &ApiError) {
        let refused = Refused {
            operation: "LoginRefused",
            caller: identity,
            code: error.code.into(),
            detail: format!("key vault {}: {}", shortened(vault), error.message),
        };
        self.shared.floods.note(refused, peer);
    }

    fn note_throttled(&self, peer: SocketAddr, vault: &str, identity: Uuid) {
        let refused = Refused {
            operation: "VaultThrottled",
            caller: identity,
            code: "TooManyRequests".into(),
            detail: format!("key vault {vault}"),
        };
        self.shared.floods.note(refused, peer);
    }

    /// Notes for the log that somebody was given no token. `claimed` is whom the request is about, as
    /// it says.
    fn note_token(&self, peer: SocketAddr, claimed: Option<Uuid>, error: &ApiError) {
        if !error.status.is_client_error() {
            return;
        }
        let claimed = claimed.map(|id| format!("; claimed client id {id}"));
        let refused = Refused {
            operation: "TokenRefused",
            caller: Uuid::nil(),
            code: error.code.into(),
            detail: format!(
                "{}{}",
                shortened(&error.message),
                claimed.unwrap_or_default()
            ),
        };
        self.shared.floods.note(refused, peer);
    }

    async fn imds(&self, names: &[String], peer: SocketAddr, parts: &Parts) -> Reply {
        let path = parts.uri.path();
        if !is(path, &["metadata", "identity", "oauth2", "token"]) {
            return TokenError(not_found(path)).into();
        }
        let names = names.to_vec();
        let reply = imds_request(parts);
        let reply = match reply {
            Ok(request) => {
                let span = request_span::of(parts);
                let work = move |shared: &Arc<Shared>| {
                    let _entered = span.enter();
                    let identity = choose(shared, &names, &request)?;
                    give(shared, &identity, &request, peer)
                };
                self.shared.blocking(Lane::Tokens, Cost::Usual, work).await
            }
            Err(error) => Err(error),
        };
        reply.map_or_else(
            |error| {
                self.note_token(peer, None, &error);
                TokenError(error).into()
            },
            Reply::ok,
        )
    }

    async fn identity_endpoint(&self, peer: SocketAddr, parts: &Parts) -> Reply {
        let reply = match identity_request(parts) {
            Ok((request, secret)) => {
                let span = request_span::of(parts);
                let work = move |shared: &Arc<Shared>| {
                    let _entered = span.enter();
                    let identity = shared
                        .installation
                        .identity_by_secret(&secret)?
                        .ok_or_else(|| {
                            ApiError::new(
                                StatusCode::UNAUTHORIZED,
                                "invalid_client",
                                "X-IDENTITY-HEADER is not the secret of an identity",
                            )
                        })?;
                    if !request.means(&identity) {
                        return Err(super::token::bad(
                            "Identity not found: the secret belongs to another one",
                        ));
                    }
                    give(shared, &identity, &request, peer)
                };
                self.shared.blocking(Lane::Tokens, Cost::Usual, work).await
            }
            Err(error) => Err(error),
        };
        // The first part of a secret is the client id, which is none.
        let claimed = || {
            let secret = parts.headers.get("x-identity-header")?.to_str().ok()?;
            Uuid::try_parse(secret.split_once('.')?.0).ok()
        };
        reply.map_or_else(
            |error| {
                self.note_token(peer, claimed(), &error);
                TokenError(error).into()
            },
            Reply::ok,
        )
    }
}

/// The part of an operation that blocks.
fn run(
    shared: &Shared,
    caller: &Caller,
    route: Route,
    query: &Query,
    body: &[u8],
    host: &VaultHost,
) -> Result<Answer, ApiError> {
    let known = shared
        .installation
        .catalog()
        .identity_by_object(caller.object_id);
    let Some(identity) = known.map_err(ApiError::internal)? else {
        return Err(ApiError::unauthorized(
            "AKV10046: The identity of the token was deleted.",
        ));
    };
    let caller = &Caller {
        is_service: matches!(identity.owner, IdentityOwner::DiskEncryptionSet(_)),
        ..caller.clone()
    };
    let vault = shared.vault(&host.vault)?;
    let permission = route.permission();
    match Operation::parse(route, body) {
        Ok(operation) => {
            if let Operation::Purge(key) = &operation {
                check_purge(shared, &vault, caller, key)?;
            }
            operation.run(&vault, caller, host, query)
        }
        Err(malformed) => {
            // Who may not do it at all is told that, and nothing about the form of requests.
            if let Some(permission) = permission {
                vault.check_permission(caller, permission)?;
            }
            Err(malformed)
        }
    }
}

/// Whoever may purge a key does not take the platform's from what it wraps.
fn check_purge(
    shared: &Shared,
    vault: &EmbeddedVault,
    caller: &Caller,
    key: &str,
) -> Result<(), ApiError> {
    if !vault.name().eq_ignore_ascii_case(PLATFORM_VAULT) {
        return Ok(());
    }
    let may = vault.check_permission(caller, KeyPermission::Purge);
    let error = match may {
        Ok(()) => match disks::des::refused_purge(&shared.installation, vault.name(), key) {
            Ok(None) => return Ok(()),
            Ok(Some(why)) => ApiError::new(StatusCode::CONFLICT, "Conflict", why),
            Err(error) => return Err(ApiError::internal(error)),
        },
        Err(error) => error.into(),
    };
    // The vault is not asked, whose log would have it.
    if let Origin::Remote(peer) = caller.origin {
        let refused = Refused {
            operation: "KeyPurge",
            caller: caller.object_id,
            code: error.code.to_string(),
            detail: shortened(&format!("{}/{key}: {}", vault.name(), error.message)),
        };
        shared.floods.note(refused, peer);
    }
    Err(error)
}

/// A token, once it is recorded who gets it.
fn give(
    shared: &Shared,
    identity: &IdentityRecord,
    request: &TokenRequest,
    peer: SocketAddr,
) -> Result<Value, ApiError> {
    let issued = shared.tokens.issue(identity, &request.resource)?;
    shared.installation.record_token(identity, peer)?;
    Ok(request.answer(identity, &issued))
}

/// The identity that a request to a listener of these identities means.
fn choose(
    shared: &Shared,
    names: &[String],
    request: &TokenRequest,
) -> Result<IdentityRecord, ApiError> {
    if names.len() > 1 && request.is_open() {
        return Err(super::token::bad(
            "Multiple identities are assigned to this endpoint; choose one with client_id",
        ));
    }
    for name in names {
        let identity = match shared.installation.find_identity(name) {
            Ok(found) => found.record,
            // It was deleted since, or its set has an identity of elsewhere now.
            Err(InstallationError::Catalog(
                CatalogError::NotFound { .. } | CatalogError::NotSystemAssigned { .. },
            )) => continue,
            // A catalog that cannot be read says nothing about who exists.
            Err(error) => return Err(ApiError::internal(error)),
        };
        if request.means(&identity) {
            return Ok(identity);
        }
    }
    Err(super::token::bad("Identity not found"))
}

/// A page in a browser, or a server that is tricked into fetching a URL, can set no header, and a
/// proxy says for whom it asks: neither gets a token. What is wrong with the request has a code of its
/// own: `invalid_request` says to clients that the identity is gone.
fn imds_request(parts: &Parts) -> Result<TokenRequest, ApiError> {
    is_get(parts)?;
    if parts.headers.contains_key("x-forwarded-for") {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "proxied_request",
            "requests through a proxy are refused",
        ));
    }
    let metadata = parts.headers.get("metadata").and_then(|v| v.to_str().ok());
    if !metadata.is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        // Azure's code.
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad_request_102",
            "Required metadata header not specified",
        ));
    }
    TokenRequest::parse(Flavour::Imds, parts.uri.query().unwrap_or_default())
}

fn identity_request(parts: &Parts) -> Result<(TokenRequest, String), ApiError> {
    is_get(parts)?;
    let secret = parts.headers.get("x-identity-header");
    let secret = secret
        .and_then(|v| v.to_str().ok())
        .ok_or_else(|| super::token::bad("the header X-IDENTITY-HEADER is missing"))?;
    let query = parts.uri.query().unwrap_or_default();
    let request = TokenRequest::parse(Flavour::IdentityEndpoint, query)?;
    Ok((request, secret.into()))
}

fn is_get(parts: &Parts) -> Result<(), ApiError> {
    if parts.method == axum::http::Method::GET {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request",
        "tokens are asked for with GET",
    ))
}

fn is(path: &str, expected: &[&str]) -> bool {
    segments(path).is_some_and(|segments| {
        segments.len() == expected.len()
            && segments
                .iter()
                .zip(expected)
                .all(|(segment, expected)| segment.eq_ignore_ascii_case(expected))
    })
}

fn vault_host(parts: &Parts, domains: &[String]) -> Result<VaultHost, ApiError> {
    VaultHost::parse(authority(parts), domains)
}

fn not_found(path: &str) -> ApiError {
    let path = shortened(path);
    ApiError::new(
        StatusCode::NOT_FOUND,
        "NotFound",
        format!("there is nothing at {path}"),
    )
}

/// Reads the body, as long as it is not too large and does not take too long.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    patience: Duration,
) -> Result<Vec<u8>, ApiError> {
    let announced = headers
        .get(axum::http::header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    let room = announced.unwrap_or_default() as usize;
    timeout(patience, collect(body, limit, room))
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "RequestTimeout",
                "the request's body took too long",
            ))
        })
}

async fn collect(mut body: Body, limit: usize, room: usize) -> Result<Vec<u8>, ApiError> {
    // As long as was announced, so that nothing of it stays behind where it grew.
    let mut content = Vec::with_capacity(room);
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| ApiError::bad("the request's body broke off"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if content.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        content.extend_from_slice(&data);
    }
    Ok(content)
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "RequestBodyTooLarge",
        format!("the request's body is larger than {limit} bytes"),
    )
}
