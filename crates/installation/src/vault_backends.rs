//! What stands behind a vault's record: the one place that opens each kind of vault.

use std::sync::Arc;

use crate::InstallationError;
use crate::catalog::{HsmSettings, VaultKind, VaultRecord};
use vault::hsm::{HsmKeys, HsmToken};
use vault::{PrivateKeys, SoftwareKeys};

/// How a vault is reached.
pub enum VaultBackend<'a> {
    /// Through its directory in this installation, with its private keys there or in a token.
    Local(Arc<dyn PrivateKeys>),
    /// Over HTTPS, with the certificates that alone are trusted, or the system's.
    Remote {
        /// PEM.
        ca: Option<&'a str>,
        /// Where its installation gives tokens to identities of this one.
        token_endpoint: Option<&'a str>,
    },
}

/// What reaches the vault of a record. Nothing is opened or asked yet.
pub fn vault_backend(record: &VaultRecord) -> VaultBackend<'_> {
    match &record.kind {
        VaultKind::Embedded => VaultBackend::Local(Arc::new(SoftwareKeys)),
        VaultKind::Hsm(token) => VaultBackend::Local(Arc::new(hsm_keys(&record.name, token))),
        VaultKind::Https { ca, token_endpoint } => VaultBackend::Remote {
            ca: ca.as_deref(),
            token_endpoint: token_endpoint.as_deref(),
        },
    }
}

/// The private keys of a vault that is kept in this installation.
///
/// # Errors
/// [`InstallationError::RemoteVault`].
pub(crate) fn private_keys(
    record: &VaultRecord,
) -> Result<Arc<dyn PrivateKeys>, InstallationError> {
    match vault_backend(record) {
        VaultBackend::Local(keys) => Ok(keys),
        VaultBackend::Remote { .. } => Err(InstallationError::RemoteVault {
            name: record.name.clone(),
            url: record.url.clone(),
        }),
    }
}

/// The private keys of a vault that are in a token.
pub fn hsm_keys(vault: &str, token: &HsmSettings) -> HsmKeys {
    HsmKeys::new(HsmToken {
        module: token.module.clone(),
        label: token.token.clone(),
        pin_file: token.pin_file.clone(),
        credential: format!("sealdisk-hsm-{vault}"),
    })
}
