//! Which key, and which of its versions.

use std::hash::{Hash, Hasher};

/// A key of a vault, of a certain version or of whatever version is the latest. Names are compared
/// without case, as Azure compares them.
#[derive(Debug, Clone, Eq)]
pub struct KeyId {
    /// The key's name in its vault.
    pub name: String,
    /// 32 hexadecimal digits, as Azure has them; `None` is the latest version.
    pub version: Option<String>,
}

impl PartialEq for KeyId {
    fn eq(&self, other: &Self) -> bool {
        self.name.eq_ignore_ascii_case(&other.name) && self.version == other.version
    }
}

impl Hash for KeyId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.to_ascii_lowercase().hash(state);
        self.version.hash(state);
    }
}
