//! The options that limit a disk.

use clap::Args;

use disks::parse_size;
use protocol::Limits;

use super::CliError;

/// The least bandwidth: what one read or write takes of most guests at most, 1280 KiB, waits for 20 seconds then. With
/// less a guest's request would not come back before the guest gives its disk up.
const LEAST_BANDWIDTH: u64 = 64 << 10;

/// A bandwidth with which requests get through.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    check_bandwidth(bytes).map(|()| bytes)
}

fn check_bandwidth(bytes: u64) -> Result<(), String> {
    match bytes {
        0 => Err("nothing would ever be read or written; leave the option out for no limit".into()),
        1..LEAST_BANDWIDTH => Err(format!(
            "with {bytes} bytes per second single requests would take minutes; give 64KiB at least"
        )),
        _ => Ok(()),
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
    /// Maximum bytes per second, as 100MiB, 64KiB at least; discards and zeroes count as requests alone
    // Not yet whether requests get through: units of before, with less, have to start.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bandwidth: Option<u64>,
    /// Burst of bytes (token bucket) [default: a tenth of --bandwidth]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "bandwidth")]
    bandwidth_burst: Option<u64>,
}

impl LimitArgs {
    /// Refuses limits with which hardly a request gets through.
    ///
    /// # Errors
    /// [`CliError::usage`].
    pub(super) fn check(&self) -> Result<(), CliError> {
        let checked = self.bandwidth.map_or(Ok(()), check_bandwidth);
        checked.map_err(|why| CliError::usage(format!("--bandwidth: {why}")))
    }

    /// Says what [`LimitArgs::check`] would refuse, where that is obeyed all the same.
    pub(super) fn warn(&self) {
        match self.bandwidth {
            Some(0) => log::warn!("--bandwidth 0 is no limit: leave the option out"),
            _ => {
                if let Err(error) = self.check() {
                    log::warn!("{}", error.message);
                }
            }
        }
    }

    /// The limits that were given; what was not is not limited.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            iops: self.iops,
            iops_burst: self.iops_burst,
            // As it ever was.
            bandwidth: self.bandwidth.filter(|bytes| *bytes > 0),
            bandwidth_burst: self.bandwidth_burst,
        }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.bandwidth.is_none() && self.limits() == Limits::default()
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

    /// A unit that was enabled by an older version has to start.
    #[test]
    fn what_is_taken_of_a_unit_is_refused_where_it_is_new() {
        let given = |bandwidth| LimitArgs {
            iops: None,
            iops_burst: None,
            bandwidth: Some(bandwidth),
            bandwidth_burst: None,
        };
        for (bandwidth, obeyed, is_good) in [
            (0, None, false),
            (512, Some(512), false),
            (64 << 10, Some(64 << 10), true),
        ] {
            let given = given(bandwidth);
            assert_eq!(given.limits().bandwidth, obeyed);
            assert_eq!(given.check().is_ok(), is_good);
            assert!(!given.is_empty());
        }
    }
}
