//! Key vaults over HTTPS: Azure Key Vault's REST API for keys, on the same engine as the embedded
//! vaults, and the token service for the identities of an installation.
//!
//! ```text
//! TLS listener ──► Connections (limit) ──► rustls ──► http: who, what ──► operation on the vault
//! IMDS listener, IDENTITY_ENDPOINT listener (loopback) ──► local: which user ──► tokens
//! ```
//!
//! The network is served by as many threads as there are CPUs; RSA and the vault's disk block other
//! threads (`shared.rs`).

mod api_error;
mod base64url;
mod connections;
mod error;
mod floods;
mod framing;
mod front;
mod front_requests;
mod host;
mod http;
mod linger;
mod listen;
mod local;
mod model;
mod operation;
mod protection;
mod query;
mod reply;
mod request_head;
mod request_span;
mod route;
mod shared;
mod shortened;
mod tls;
mod token;
mod transfer;

pub use api_error::ApiError;
pub use error::ServerError;
pub use front::{Admitted, Front, FrontReply, Head, ManyValues, Site};
pub use host::{Audience, DEFAULT_DOMAIN, VaultHost};
pub use listen::{Imds, Pulse, ServeOptions, Serving, serve};
pub use operation::Operation;
pub use query::Query;
pub use route::{NoRoute, Route};
pub use tls::{CertificateSource, ensure_ca};
pub use token::{Claims, Flavour, Issued, MAX_LIFETIME, MIN_LIFETIME, TokenRequest};
pub use transfer::{ByteStream, Chunk, TransferBody, TransferReply};
