//! What is asked of a vault when a key is made or changed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use time::OffsetDateTime;

use super::{AttributeChange, KeySize, Tags, VaultError, VaultErrorCode};

/// The days for which a deleted key can be recovered, where nothing else is said.
pub const DEFAULT_RETENTION_DAYS: u32 = 90;
/// Azure's limits on them.
pub const RETENTION_DAYS: std::ops::RangeInclusive<u32> = 7..=90;

/// What a vault does with deleted keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultSettings {
    /// For how many days a deleted key can be recovered: 7 to 90.
    pub retention_days: u32,
    /// Whether nobody can purge a deleted key before that time. It can be switched on, never off.
    pub purge_protection: bool,
}

impl Default for VaultSettings {
    fn default() -> Self {
        Self {
            retention_days: DEFAULT_RETENTION_DAYS,
            purge_protection: false,
        }
    }
}

impl VaultSettings {
    pub(super) fn check(&self) -> Result<(), VaultError> {
        if RETENTION_DAYS.contains(&self.retention_days) {
            return Ok(());
        }
        Err(bad(format!(
            "deleted keys cannot be kept for {} days; choose {} to {}",
            self.retention_days,
            RETENTION_DAYS.start(),
            RETENTION_DAYS.end()
        )))
    }

    /// Azure's name for what becomes of a deleted key.
    pub fn recovery_level(&self) -> &'static str {
        let default = self.retention_days == DEFAULT_RETENTION_DAYS;
        match (default, self.purge_protection) {
            (true, false) => "Recoverable+Purgeable",
            (true, true) => "Recoverable",
            (false, false) => "CustomizedRecoverable+Purgeable",
            (false, true) => "CustomizedRecoverable",
        }
    }
}

/// What a key may be used for, in Azure's order.
const OPERATIONS: [&str; 6] = [
    "encrypt",
    "decrypt",
    "sign",
    "verify",
    "wrapKey",
    "unwrapKey",
];

/// The operations that a key version permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOps(BTreeSet<usize>);

impl Default for KeyOps {
    /// What this vault does with keys.
    fn default() -> Self {
        let names = ["encrypt", "decrypt", "wrapKey", "unwrapKey"];
        Self(names.into_iter().filter_map(index).collect())
    }
}

impl KeyOps {
    /// Reads Azure's names. `sign` and `verify` can be permitted, though no request does them.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for a name that is none.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, VaultError> {
        names
            .into_iter()
            .map(|name| {
                index(name).ok_or_else(|| {
                    let name: String = name.chars().take(64).collect();
                    bad(format!(
                        "'{name}' is no key operation; these exist: {}",
                        OPERATIONS.join(" ")
                    ))
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Azure's names of them.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|&i| OPERATIONS[i]).collect()
    }

    /// Whether the operation of that name is permitted.
    pub fn contains(&self, name: &str) -> bool {
        index(name).is_some_and(|i| self.0.contains(&i))
    }
}

fn index(name: &str) -> Option<usize> {
    OPERATIONS.iter().position(|o| o.eq_ignore_ascii_case(name))
}

/// Names separated by spaces, as they are stored.
impl fmt::Display for KeyOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

impl FromStr for KeyOps {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        Self::from_names(text.split_whitespace())
    }
}

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Bits of the modulus.
    pub size: KeySize,
    /// What it may be used for.
    pub key_ops: KeyOps,
    /// Whether and when it may be used.
    pub attributes: AttributeChange,
    /// What the user attaches to it.
    pub tags: Tags,
}

impl NewKey {
    /// A key of that size that may be used for everything, from now on and without end.
    pub fn new(size: KeySize) -> Self {
        Self {
            size,
            key_ops: KeyOps::default(),
            attributes: AttributeChange::default(),
            tags: Tags::new(),
        }
    }
}

/// What is to change in a key version; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyChange {
    /// Whether and when it may be used.
    pub attributes: AttributeChange,
    /// What it may be used for.
    pub key_ops: Option<KeyOps>,
    /// All tags, in place of those that it has.
    pub tags: Option<Tags>,
}

impl KeyChange {
    /// Whether a key version can be used for disks no more from `now` on, because of the change.
    pub fn takes_away(&self, now: OffsetDateTime) -> bool {
        let attributes = &self.attributes;
        let unwraps = |ops: &KeyOps| ops.contains("unwrapKey");
        attributes.enabled == Some(false)
            || attributes
                .not_before
                .flatten()
                .is_some_and(|from| now < from)
            || attributes
                .expires
                .flatten()
                .is_some_and(|until| now >= until)
            || self.key_ops.as_ref().is_some_and(|ops| !unwraps(ops))
    }
}

impl From<AttributeChange> for KeyChange {
    fn from(attributes: AttributeChange) -> Self {
        Self {
            attributes,
            ..Self::default()
        }
    }
}

/// The fields that change, for the audit log.
impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![self.attributes.to_string()];
        parts.extend(self.key_ops.as_ref().map(|ops| format!("keyOps={ops}")));
        parts.extend(
            self.tags
                .as_ref()
                .map(|tags| format!("tags={}", tags.len())),
        );
        parts.retain(|part| !part.is_empty());
        f.write_str(&parts.join(" "))
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next page starts; `None` on the last.
    pub next: Option<String>,
}

fn bad(message: String) -> VaultError {
    VaultError::new(VaultErrorCode::BadParameter, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_in_any_order_and_case_and_printed_in_azures() {
        let ops: KeyOps = "UNWRAPKEY wrapKey encrypt".parse().unwrap();
        assert_eq!(ops.names(), ["encrypt", "wrapKey", "unwrapKey"]);
        assert!(ops.contains("wrapKey") && !ops.contains("decrypt"));
        assert_eq!(ops.to_string().parse::<KeyOps>().unwrap(), ops);
        assert!("import".parse::<KeyOps>().is_err());
        assert_eq!(KeyOps::default().names().len(), 4);
    }

    #[test]
    fn retention_has_azures_limits_and_names() {
        let with = |retention_days, purge_protection| VaultSettings {
            retention_days,
            purge_protection,
        };
        for (days, ok) in [(6, false), (7, true), (90, true), (91, false)] {
            assert_eq!(with(days, false).check().is_ok(), ok, "{days}");
        }
        assert_eq!(with(90, true).recovery_level(), "Recoverable");
        assert_eq!(
            with(7, false).recovery_level(),
            "CustomizedRecoverable+Purgeable"
        );
    }
}
