//! Limits of a disk: requests and bytes a second over all its queues, with bursts.

use serde::{Deserialize, Serialize};

/// What a disk may do at most. Nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a second.
    pub iops: Option<u64>,
    /// Requests that may be made at once after a time of rest; else what a tenth of a second has.
    pub iops_burst: Option<u64>,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Bytes that may be moved at once after a time of rest; else what a tenth of a second has.
    pub bandwidth_burst: Option<u64>,
}
