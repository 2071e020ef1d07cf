//! What an operation is about, as the audit log names it.

use uuid::Uuid;

use crate::{KeyId, Permissions};

/// The names of operations on a vault as a whole.
pub(super) const VAULT_DELETE: &str = "VaultDelete";
pub(super) const VAULT_RECOVER: &str = "VaultRecover";
pub(super) const VAULT_PURGE: &str = "VaultPurge";
pub(super) const VAULT_DELETE_POLICY: &str = "VaultDeletePolicy";

/// What is never refused because of the limit: it takes something away, or takes a use of it back.
const ESSENTIAL: [&str; 6] = [
    "KeyUpdate",
    "KeyDelete",
    "VaultSetPolicy",
    VAULT_DELETE,
    VAULT_DELETE_POLICY,
    "VaultUpdate",
];

/// What an operation was about, for the audit log.
pub(super) struct Subject<'a> {
    pub operation: &'static str,
    pub key: Option<&'a str>,
    pub version: Option<&'a str>,
    pub detail: Option<String>,
}

impl<'a> Subject<'a> {
    pub(super) fn of(operation: &'static str, key: &'a KeyId) -> Self {
        Self {
            operation,
            key: Some(&key.name),
            version: key.version.as_deref(),
            detail: None,
        }
    }

    pub(super) fn key(operation: &'static str, name: &'a str) -> Self {
        Self {
            operation,
            key: Some(name),
            version: None,
            detail: None,
        }
    }

    pub(super) fn vault(operation: &'static str) -> Self {
        Self {
            operation,
            key: None,
            version: None,
            detail: None,
        }
    }

    pub(super) fn policy(
        operation: &'static str,
        object_id: Uuid,
        permissions: &Permissions,
    ) -> Self {
        let names = permissions.names().join(" ");
        Self {
            detail: Some(format!("{object_id} {names}")),
            ..Self::vault(operation)
        }
    }
}

/// What an operation gives, with the key version that it came to use.
pub(super) struct Done<T> {
    pub value: T,
    pub version: Option<String>,
}

impl<T> Done<T> {
    pub(super) fn with_version(value: T, version: &str) -> Self {
        Self {
            value,
            version: Some(version.into()),
        }
    }
}

impl<T> From<T> for Done<T> {
    fn from(value: T) -> Self {
        Self {
            value,
            version: None,
        }
    }
}

/// Whether an operation is to be recorded though there is no room, and in spite of the limit.
pub(super) fn is_essential(operation: &str) -> bool {
    ESSENTIAL.contains(&operation)
}

/// Whether an operation is one on a deleted vault. Access is taken away there too, so that nobody who has lost it
/// has it for a moment when the vault is recovered.
pub(super) fn is_for_deleted(operation: &str) -> bool {
    matches!(
        operation,
        VAULT_DELETE | VAULT_RECOVER | VAULT_PURGE | VAULT_DELETE_POLICY
    )
}
