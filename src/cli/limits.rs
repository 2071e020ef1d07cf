//! The options that limit a disk.

use clap::Args;

use disks::parse_size;
use protocol::Limits;

/// The least bandwidth: what one read or write takes of most guests at most, 1280 KiB, waits for 20 seconds then. With
/// less a guest's request would not come back before the guest gives its disk up.
const LEAST_BANDWIDTH: u64 = 64 << 10;

/// A bandwidth with which requests get through.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("nothing would ever be read or written; leave the option out for no limit".into()),
        bytes @ 1..LEAST_BANDWIDTH => Err(format!(
            "with {bytes} bytes per second single requests would take minutes; give 64KiB at least"
        )),
        bytes => Ok(bytes),
    }
}

/// A number of requests a second with which requests get through.
pub(super) fn iops(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("no request would ever be served; leave the option out for no limit".into()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("'{text}' is no number of requests")),
    }
}

/// Limits over all queues of a disk.
#[derive(Args)]
#[group(id = "limits", multiple = true)]
pub(super) struct LimitArgs {
    /// Maximum requests per second
    #[arg(long, value_name = "N", value_parser = iops)]
    iops: Option<u64>,
    /// Burst of requests (token bucket) [default: a tenth of --iops]
    #[arg(long, value_name = "N", requires = "iops")]
    iops_burst: Option<u64>,
    /// Maximum bytes per second, as 100MiB, and at least 64KiB; discards and zeroes count as requests alone
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_no_request_through_is_no_limit() {
        for (text, why) in [
            ("0", "leave the option out"),
            ("0MiB", "leave the option out"),
            ("1", "64KiB at least"),
            ("63KiB", "64KiB at least"),
            ("much", "is no size"),
        ] {
            let refused = bandwidth(text).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert_eq!(bandwidth("64KiB"), Ok(64 << 10));
        assert_eq!(bandwidth("1GiB"), Ok(1 << 30));
        assert!(iops("0").unwrap_err().contains("leave the option out"));
        assert!(iops("-1").is_err() && iops("").is_err());
        assert_eq!(iops("1"), Ok(1));
    }
}
