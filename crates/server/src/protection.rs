//! Where the private half of a key has to be, as a client asks for it.

use vault::{Caller, EmbeddedVault, KeyPermission, KeyType};

use super::ApiError;

/// What a client asks for in the type of a new key, or of one that it brings in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// `RSA`: whatever the vault has.
    Any,
    /// `RSA-HSM`.
    Hardware,
}

impl Protection {
    /// Stronger protection than was asked for is given, weaker is not.
    pub(super) fn check(
        self,
        vault: &EmbeddedVault,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), ApiError> {
        if self == Self::Hardware && vault.key_type() != KeyType::RsaHsm {
            vault.check_permission(caller, permission)?;
            return Err(ApiError::bad(format!(
                "Hardware key operation not allowed on standard vault: the key vault '{}' has no \
                 hardware security module; ask for an RSA key",
                vault.name()
            )));
        }
        Ok(())
    }
}
