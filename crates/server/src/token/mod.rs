//! The token service: short-lived JWTs (RFC 7519, ES256) for the identities of an installation, and
//! their verification by the vault.

mod endpoint;
mod issued;
mod keys;
mod lifetime;
mod service;

pub(super) use endpoint::bad;
pub use endpoint::{Flavour, TokenRequest};
pub use issued::Issued;
pub use lifetime::{MAX_LIFETIME, MIN_LIFETIME};
pub use service::{Claims, TokenService};
