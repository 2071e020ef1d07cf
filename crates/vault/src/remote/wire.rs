//! The connections of one call.
//!
//! A call has connections of its own, closed when it ends: a pool that outlived it would keep
//! buffers through which a DEK passed. The token outlives it, see [`TokenCache`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{AUTHORIZATION, HeaderName, HeaderValue, Headers};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{AsyncRawResponse, Body, Context, Method, Request, StatusCode};
use reqwest::{Certificate, Client, ClientBuilder, redirect, tls};
use url::Url;

use super::identity::{ManagedIdentity, TokenCache};
use crate::{CHECK_HEADER, DISK_HEADER, LAYER_HEADER, Purpose, VaultError, VaultErrorCode};
use traces::{Span, TRACEPARENT};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Bytes of an answer at most; a key bundle with all its tags has less than 64 KiB.
const BODY_LIMIT: usize = 1 << 20;

/// What connections need to know before they are made.
pub(super) struct WireSettings {
    certificates: Option<Vec<Certificate>>,
    /// Hosts that are this machine by their name (RFC 6761 §6.3), whatever a resolver says.
    local: Vec<String>,
}

impl WireSettings {
    /// `ca` is what `--ca-file` had; `urls` are all that will be connected to.
    pub fn new<'a>(
        ca: Option<&str>,
        urls: impl IntoIterator<Item = &'a Url>,
    ) -> Result<Self, VaultError> {
        let local = urls
            .into_iter()
            .filter_map(|url| url.host_str())
            .filter(|host| *host == "localhost" || host.ends_with(".localhost"))
            .map(str::to_owned)
            .collect();
        let certificates = ca.map(certificates).transpose()?;
        Ok(Self {
            certificates,
            local,
        })
    }

    pub fn connect(&self) -> Result<Connection, VaultError> {
        let build = |builder: ClientBuilder| {
            builder.build().map_err(|e| {
                let what = "the HTTPS client could not be set up";
                VaultError::caused(VaultErrorCode::Internal, what, e)
            })
        };
        // What the machine itself provides must not be asked for through a proxy.
        Ok(Connection(Arc::new(Clients {
            vault: build(match self.local.is_empty() {
                true => self.builder(),
                false => self.builder().no_proxy(),
            })?,
            identity: build(self.builder().no_proxy())?,
            asks_identity: AtomicBool::new(false),
        })))
    }

    fn builder(&self) -> ClientBuilder {
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .redirect(redirect::Policy::none())
            .tls_version_min(tls::Version::TLS_1_2)
            .referer(false);
        if let Some(certificates) = &self.certificates {
            builder = builder.tls_certs_only(certificates.iter().cloned());
        }
        let loopback = [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]
        .map(|address| SocketAddr::new(address, 0));
        for host in &self.local {
            builder = builder.resolve_to_addrs(host, &loopback);
        }
        builder
    }
}

/// Reads what `--ca-file` has.
pub(super) fn certificates(pem: &str) -> Result<Vec<Certificate>, VaultError> {
    let refuse = |why: String| VaultError::new(VaultErrorCode::BadParameter, why);
    let certificates = Certificate::from_pem_bundle(pem.as_bytes())
        .map_err(|e| refuse(format!("the CA file is malformed: {e}")))?;
    match certificates.is_empty() {
        true => Err(refuse(
            "the CA file holds no certificate; it needs PEM, with '-----BEGIN CERTIFICATE-----'"
                .into(),
        )),
        false => Ok(certificates),
    }
}

/// The connections of one call; they travel in its context.
#[derive(Clone)]
pub(super) struct Connection(Arc<Clients>);

struct Clients {
    vault: Client,
    identity: Client,
    /// Whether the call was last seen asking for a token: where it hangs when it takes too long.
    asks_identity: AtomicBool,
}

impl Connection {
    /// Whether the identity's endpoint is being asked, and not the vault.
    pub fn asks_identity(&self) -> bool {
        self.0.asks_identity.load(Ordering::Relaxed)
    }

    /// The connections that belong to the call with that context.
    pub fn of<'a>(context: &'a Context<'_>) -> azure_core::Result<&'a Self> {
        context.value::<Self>().ok_or_else(|| {
            Error::with_message(ErrorKind::Other, "a request outside of a call".to_owned())
        })
    }

    /// Asks for a token.
    pub async fn ask_identity(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.0.asks_identity.store(true, Ordering::Relaxed);
        let response = send(&self.0.identity, request).await?;
        self.0.asks_identity.store(false, Ordering::Relaxed);
        Ok(response)
    }
}

/// The last policy of the vault's pipeline: sends a request over its call's connection, and forgets
/// a token that the vault does not accept.
#[derive(Debug)]
pub(super) struct VaultWire {
    pub identity: ManagedIdentity,
    pub tokens: TokenCache,
}

#[async_trait]
impl Policy for VaultWire {
    async fn send(
        &self,
        context: &Context,
        request: &mut Request,
        _next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let connection = Connection::of(context)?;
        if let Some(purpose) = context.value::<Purpose>() {
            claim(purpose, request);
        }
        let response = send(&connection.0.vault, request).await?;
        let had_token = request.headers().get_optional_str(&AUTHORIZATION).is_some();
        if response.status() == StatusCode::Unauthorized && had_token {
            self.tokens.forget(&self.identity);
        }
        Ok(response)
    }
}

/// Says for what a key is wanted. A vault that does not know these headers passes over them.
fn claim(purpose: &Purpose, request: &mut Request) {
    // A name with other characters cannot be in a header.
    let plain = |name: &&String| name.bytes().all(|b| b.is_ascii_graphic());
    if let Some(disk) = purpose.disk.as_ref().filter(plain) {
        request.insert_header(DISK_HEADER, disk.clone());
    }
    if let Some(layer) = purpose.layer {
        request.insert_header(LAYER_HEADER, layer.to_string());
    }
    if purpose.check {
        request.insert_header(CHECK_HEADER, "true");
    }
}

/// The last policy of the pipeline that asks Azure's instance metadata service.
#[derive(Debug)]
pub(super) struct IdentityWire;

#[async_trait]
impl Policy for IdentityWire {
    async fn send(
        &self,
        context: &Context,
        request: &mut Request,
        _next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        Connection::of(context)?.ask_identity(request).await
    }
}

async fn send(client: &Client, request: &Request) -> azure_core::Result<AsyncRawResponse> {
    let method = match request.method() {
        Method::Get => reqwest::Method::GET,
        Method::Post => reqwest::Method::POST,
        other => {
            let what = format!("the method {other}, which no operation of disks has");
            return Err(Error::with_message(ErrorKind::Other, what));
        }
    };
    let mut outgoing = client.request(method, request.url().clone());
    for (name, value) in request.headers().iter() {
        outgoing = outgoing.header(name.as_str(), value.as_str());
    }
    // The call has its runtime in this thread, so this is what the call is a part of.
    if let Some(parent) = Span::current_traceparent() {
        outgoing = outgoing.header(TRACEPARENT, parent);
    }
    let outgoing = match request.body() {
        Body::Bytes(bytes) => outgoing.body(bytes.clone()),
        Body::SeekableStream(_) => {
            let what = "a streamed request, which no operation on keys has".to_owned();
            return Err(Error::with_message(ErrorKind::Other, what));
        }
    };
    let mut response = outgoing.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > BODY_LIMIT {
            let what = format!("the answer has more than {BODY_LIMIT} bytes");
            return Err(Error::with_message(ErrorKind::Io, what));
        }
        body.extend_from_slice(&chunk);
    }
    let headers = response.headers().iter().filter_map(|(name, value)| {
        // A header that is no text is none that matters here.
        let value = value.to_str().ok()?.to_owned();
        let name = HeaderName::from(name.as_str().to_owned());
        Some((name, HeaderValue::from(value)))
    });
    let headers = Headers::from(headers.collect::<std::collections::HashMap<_, _>>());
    let status = StatusCode::from(response.status().as_u16());
    Ok(AsyncRawResponse::from_bytes(status, headers, body))
}

fn failed(error: reqwest::Error) -> Error {
    let kind = match error.is_connect() {
        true => ErrorKind::Connection,
        false => ErrorKind::Io,
    };
    // Messages name the vault already.
    Error::new(kind, error.without_url())
}
