//! What an error says about a key.

use crate::resource::error::DiskError;
use installation::InstallationError;
use installation::catalog::{CatalogError, Kind};
use installation::envelope::EnvelopeError;
use vault::{VaultError, Verdict};

impl DiskError {
    /// What it says about the key. A set that is gone has taken its identity with it, so nobody
    /// can be granted the key any more; everything else beside the vault's own refusals decides nothing.
    pub fn key_verdict(&self) -> Verdict {
        match (self.vault_error(), self) {
            (Some(error), _) => error.code.verdict(),
            (None, Self::Layer { source, .. }) => source.key_verdict(),
            (
                None,
                Self::Control(InstallationError::Catalog(CatalogError::NotFound {
                    kind: Kind::DiskEncryptionSet,
                    ..
                })),
            ) => Verdict::Refused,
            (None, _) => Verdict::Unknown,
        }
    }

    /// What a vault said, of whichever layer's key.
    pub fn vault_error(&self) -> Option<&VaultError> {
        match self {
            Self::Layer { source, .. } => source.vault_error(),
            Self::Control(InstallationError::Vault(error))
            | Self::Envelope(EnvelopeError::Vault(error)) => Some(error),
            _ => None,
        }
    }
}
