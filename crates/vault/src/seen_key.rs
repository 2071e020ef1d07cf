//! A key version as whoever runs a vault sees it from outside.

use time::OffsetDateTime;

/// What is seen of a key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenKey {
    /// The key's name.
    pub name: String,
    /// The version.
    pub version: String,
    /// Whether it may be used at all.
    pub enabled: bool,
    /// The first moment at which it may be used.
    pub not_before: Option<OffsetDateTime>,
    /// The first moment at which it may no longer be used.
    pub expires: Option<OffsetDateTime>,
    /// When it was made.
    pub created: OffsetDateTime,
    /// Whether it is the latest version of its key.
    pub is_latest: bool,
    /// Whether the key is deleted, and can be recovered.
    pub is_deleted: bool,
}

impl SeenKey {
    /// Whether it may be used at that time.
    pub fn may_be_used(&self, now: OffsetDateTime) -> bool {
        let is_begun = self.not_before.is_none_or(|from| from <= now);
        let is_over = self.expires.is_some_and(|until| until <= now);
        self.enabled && !self.is_deleted && is_begun && !is_over
    }
}
