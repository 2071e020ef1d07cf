//! A vault over HTTPS: Azure's Key Vault or Managed HSM, or one that `sealdisk keyvault serve`
//! serves, through Azure's own client.
//!
//! A call blocks its thread and has a runtime and connections of its own, which are gone when it
//! ends: nothing that a DEK passed through stays, but the token does.

mod answer;
#[doc(hidden)]
pub mod answers;
mod cause;
mod credential;
mod failure;
mod federated;
mod identity;
mod operation;
mod url;
mod vault;
mod wire;
mod wording;

pub use federated::Assertion;
pub use identity::{ManagedIdentity, TokenCache, checked_token_endpoint};
pub use url::checked_vault_url;
pub use vault::{RemoteVault, check_ca};
