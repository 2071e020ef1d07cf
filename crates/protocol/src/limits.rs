//! Limits of a disk: requests and bytes a second over all its queues, with bursts.

use serde::{Deserialize, Serialize};

/// What a disk may do at most. Nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests a second.
    pub iops: Option<u64>,
    /// Burst of requests (token bucket); by default the requests of a tenth of a second.
    pub iops_burst: Option<u64>,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Burst of bytes (token bucket); by default the bytes of a tenth of a second.
    pub bandwidth_burst: Option<u64>,
}
