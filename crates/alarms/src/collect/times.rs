//! How long a key version may be used.

use time::OffsetDateTime;

/// How long a key version may be used.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// With its version.
    pub(super) url: String,
    pub(super) enabled: bool,
    pub(super) expires: Option<OffsetDateTime>,
    pub(super) created: OffsetDateTime,
}
