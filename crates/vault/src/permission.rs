//! What an access policy can allow, with Azure's names.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{VaultError, VaultErrorCode};

macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One permission on the keys of a vault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KeyPermission {
            $($(#[$doc])* $variant,)*
        }

        impl KeyPermission {
            /// Every permission there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Azure's name of it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

permissions! {
    /// Read a key's public part and attributes.
    Get = "get",
    /// List keys and their versions.
    List = "list",
    /// Make a key or a new version of it.
    Create = "create",
    /// Bring a key in.
    Import = "import",
    /// Change attributes.
    Update = "update",
    /// Encrypt a secret under a key.
    WrapKey = "wrapKey",
    /// Decrypt a wrapped secret.
    UnwrapKey = "unwrapKey",
    /// Encrypt data.
    Encrypt = "encrypt",
    /// Decrypt data.
    Decrypt = "decrypt",
    /// Sign a digest.
    Sign = "sign",
    /// Verify a signature.
    Verify = "verify",
    /// Delete a key softly.
    Delete = "delete",
    /// Bring a deleted key back.
    Recover = "recover",
    /// Delete a key for good.
    Purge = "purge",
    /// Take a backup of a key.
    Backup = "backup",
    /// Restore a backup.
    Restore = "restore",
    /// Make a new version by the rotation policy.
    Rotate = "rotate",
    /// Read the rotation policy.
    GetRotationPolicy = "getrotationpolicy",
    /// Change the rotation policy.
    SetRotationPolicy = "setrotationpolicy",
    /// Release a key to an attested environment.
    Release = "release",
}

impl fmt::Display for KeyPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The permissions of one identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions(BTreeSet<KeyPermission>);

impl Permissions {
    /// Everything: what the creator of a vault gets.
    pub fn all() -> Self {
        KeyPermission::ALL.iter().copied().collect()
    }

    /// What the identity of a disk encryption set needs.
    pub fn for_disks() -> Self {
        use KeyPermission::{Get, UnwrapKey, WrapKey};
        [Get, WrapKey, UnwrapKey].into_iter().collect()
    }

    /// Whether `permission` is among them.
    pub fn contains(&self, permission: KeyPermission) -> bool {
        self.0.contains(&permission)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These and those of `other`.
    pub fn union(&self, other: &Self) -> Self {
        self.0.union(&other.0).copied().collect()
    }

    /// Azure's names of them.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|p| p.name()).collect()
    }
}

impl FromIterator<KeyPermission> for Permissions {
    fn from_iter<I: IntoIterator<Item = KeyPermission>>(permissions: I) -> Self {
        Self(permissions.into_iter().collect())
    }
}

/// Names separated by spaces, in any case; `all` stands for everything.
impl FromStr for Permissions {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let mut permissions = Self::default();
        for word in text.split_whitespace() {
            if word.eq_ignore_ascii_case("all") {
                return Ok(Self::all());
            }
            let known = KeyPermission::ALL
                .iter()
                .find(|p| p.name().eq_ignore_ascii_case(word));
            permissions.0.insert(*known.ok_or_else(|| unknown(word))?);
        }
        Ok(permissions)
    }
}

fn unknown(word: &str) -> VaultError {
    let names = Permissions::all().names().join(" ");
    VaultError::new(
        VaultErrorCode::BadParameter,
        format!("'{word}' is no key permission; these exist: all {names}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_in_any_case_and_print_as_azure_has_them() {
        let parsed: Permissions = "GET wrapkey unwrapKey".parse().unwrap();
        assert_eq!(parsed, Permissions::for_disks());
        assert_eq!(parsed.names(), ["get", "wrapKey", "unwrapKey"]);
        assert_eq!("all".parse::<Permissions>().unwrap(), Permissions::all());
        let error = "get fly".parse::<Permissions>().unwrap_err();
        assert!(error.message.contains("'fly'"), "{error}");
    }
}
