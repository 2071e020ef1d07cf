//! The options that limit a disk.

use clap::Args;

use disks::parse_size;
use protocol::Limits;

/// Limits over all queues of a disk.
#[derive(Args)]
#[group(id = "limits", multiple = true)]
pub(super) struct LimitArgs {
    /// Maximum requests per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iops: Option<u64>,
    /// Burst of requests (token bucket) [default: a tenth of --iops]
    #[arg(long, value_name = "N", requires = "iops")]
    iops_burst: Option<u64>,
    /// Maximum bytes per second, as 100MiB; discards and zeroes count as requests alone
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
    /// Burst of bytes (token bucket) [default: a tenth of --bandwidth]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "bandwidth")]
    bandwidth_burst: Option<u64>,
}

impl LimitArgs {
    /// The limits that were given; what was not is not limited.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            iops: self.iops,
            iops_burst: self.iops_burst,
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.limits() == Limits::default()
    }
}
