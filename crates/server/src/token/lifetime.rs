//! How long tokens are valid.

use std::time::Duration;

/// The longest that a token may live.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The shortest: a client renews a token some minutes before its end.
pub const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// By how much the clocks of two servers of an installation may differ.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);
