//! What is asked of the vault.

use crate::KeyPermission;

/// What is asked of the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Wrap,
    Unwrap,
}

impl Operation {
    pub(super) fn permission(self) -> KeyPermission {
        match self {
            Self::Get => KeyPermission::Get,
            Self::Wrap => KeyPermission::WrapKey,
            Self::Unwrap => KeyPermission::UnwrapKey,
        }
    }

    /// As traces call it.
    pub(super) fn span(self) -> &'static str {
        match self {
            Self::Get => "ask vault for key",
            Self::Wrap => "ask vault to wrap",
            Self::Unwrap => "ask vault to unwrap",
        }
    }

    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Get => "show the key",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
        }
    }
}
