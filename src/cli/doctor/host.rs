//! The kernel, the processor, memory and the clock.

use std::fs;
use std::process::Command;

use time::OffsetDateTime;

use super::check::Check;
use crate::cli::attach::ordinary_queues;
use crate::cli::output::{size_cell, time_cell};
use dataplane::{cipher_engine, ordinary_memory};
use installation::{host_may_change, this_host};
use volume::store::{BareRing, locked_memory_limit};

/// The first kernel that has all that a data plane asks of io_uring (`IORING_SETUP_DEFER_TASKRUN`).
pub(in crate::cli) const LEAST_KERNEL: (u32, u32) = (6, 1);

/// Locked memory that a data plane needs of an ordinary user, as the README has it: for itself, and for each queue
/// its stack, the schedule of a cipher and a ring.
const LOCKED: u64 = 512 << 10;
const LOCKED_PER_QUEUE: u64 = (128 + 16 + 40) << 10;

/// What a control group of the first version has that has no limit is near to the end of the numbers.
const NO_LIMIT: u64 = 1 << 60;

const LOCKED_ADVICE: &str = "raise it: `ulimit -l`, LimitMEMLOCK=64M of a unit, or limits.conf(5)";

pub(super) fn kernel() -> Check {
    const CHECK: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (major, minor) = LEAST_KERNEL;
    match version(release) {
        Some(found) if found >= LEAST_KERNEL => Check::ok(CHECK, format!("Linux {release}")),
        Some(_) => Check::fail(
            CHECK,
            format!("Linux {release}"),
            format!("boot Linux {major}.{minor} or later, as Debian 12 has it"),
        ),
        None => Check::warn(
            CHECK,
            format!("a kernel that calls itself '{release}'"),
            format!("see that it is Linux {major}.{minor} or later"),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// By what other hosts know this one, where `shared` says that there may be some.
pub(super) fn identity(shared: bool) -> Check {
    const CHECK: &str = "host";
    match host_may_change() {
        Some(why) if shared => Check::warn(
            CHECK,
            why,
            "give it a name that stays (SEALDISK_HOST): after a loss of power its disks may be refused to it as \
             another host's",
        ),
        _ => Check::ok(CHECK, this_host()),
    }
}

pub(super) fn cipher() -> Check {
    const CHECK: &str = "cipher";
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_aes = flags.split_whitespace().any(|flag| flag == "aes");
    match (cipher_engine(), has_aes) {
        (Ok(engine), true) => Check::ok(CHECK, format!("{engine}; the CPU has AES instructions")),
        (Ok(engine), false) => Check::warn(
            CHECK,
            format!("{engine}; the CPU has no AES instructions"),
            "expect a tenth of the throughput; in a virtual machine, pass the CPU through (-cpu host)",
        ),
        (Err(error), _) => Check::fail(CHECK, error.to_string(), "install the program anew"),
    }
}

pub(super) fn io_uring() -> Check {
    const CHECK: &str = "io_uring";
    match BareRing::for_one_thread() {
        Ok(_) => Check::ok(CHECK, "a ring can be made and restricted"),
        Err(error) => Check::fail(
            CHECK,
            error.to_string(),
            match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
                Ok(disabled) if disabled.trim() != "0" => {
                    "`sysctl kernel.io_uring_disabled=0`, or 1 with the user's group in \
                     kernel.io_uring_group"
                }
                _ => {
                    "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
                     profile, raise `ulimit -l`, and boot Linux 6.1 or later"
                }
            },
        ),
    }
}

pub(super) fn locked_memory() -> Check {
    const CHECK: &str = "locked memory";
    let queues = ordinary_queues();
    let needed = LOCKED + u64::from(queues) * LOCKED_PER_QUEUE;
    let Some(most) = locked_memory_limit() else {
        return Check::ok(CHECK, "not limited");
    };
    let found = format!(
        "{} at most; a disk with {queues} queues needs {}",
        size_cell(most),
        size_cell(needed)
    );
    match (most < needed, most < needed + ordinary_memory(queues)) {
        (true, _) => Check::fail(
            CHECK,
            found,
            format!("{LOCKED_ADVICE}; or offer fewer queues (--num-queues)"),
        ),
        (_, true) => Check::warn(
            CHECK,
            format!("{found}, and as much again as its buffers to register them"),
            LOCKED_ADVICE,
        ),
        _ => Check::ok(CHECK, found),
    }
}

pub(super) fn memory() -> Check {
    const CHECK: &str = "memory";
    let needed = ordinary_memory(ordinary_queues());
    let of_a_disk = format!("a disk may take {}", size_cell(needed));
    let limit = attach::memory_limit().filter(|(_, limit)| *limit < NO_LIMIT);
    if let Some((file, limit)) = limit {
        let found = format!(
            "{} at most by {}; {of_a_disk}",
            size_cell(limit),
            file.display()
        );
        return match limit < needed {
            true => Check::fail(
                CHECK,
                found,
                "raise MemoryMax= of the unit, or give attach --memory",
            ),
            false => Check::ok(CHECK, found),
        };
    }
    match available() {
        Some(bytes) if bytes < needed => Check::warn(
            CHECK,
            format!("{} available; {of_a_disk}", size_cell(bytes)),
            "give the host more, or `attach` less (--memory)",
        ),
        Some(bytes) => Check::ok(
            CHECK,
            format!("{} available, no limit; {of_a_disk}", size_cell(bytes)),
        ),
        None => Check::ok(CHECK, format!("no limit; {of_a_disk}")),
    }
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Keys expire and tokens end by the clock. `latest` is when something of the installation was made last.
pub(super) fn clock(latest: Option<OffsetDateTime>) -> Check {
    const CHECK: &str = "clock";
    let now = OffsetDateTime::now_utc();
    let shown = time_cell(Some(now));
    if let Some(latest) = latest.filter(|latest| *latest > now) {
        return Check::fail(
            CHECK,
            format!(
                "{shown}, which is before something here was made ({})",
                time_cell(Some(latest))
            ),
            "set the clock: keys seem not yet valid, and tokens are refused",
        );
    }
    let advice = "run systemd-timesyncd, chrony or ntpd: keys expire and tokens end by the clock";
    match is_synchronised() {
        Some(true) => Check::ok(CHECK, format!("{shown}, synchronised")),
        Some(false) => Check::warn(CHECK, format!("{shown}, not synchronised"), advice),
        None => Check::warn(
            CHECK,
            format!("{shown}; nothing tells whether it is synchronised"),
            advice,
        ),
    }
}

fn is_synchronised() -> Option<bool> {
    if fs::exists("/run/systemd/timesync/synchronized").unwrap_or(false) {
        return Some(true);
    }
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output()
        .ok()?;
    match String::from_utf8_lossy(&asked.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_kernels_are_read() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.10.0", Some((5, 10))),
            ("6.18.44-fc", Some((6, 18))),
            ("7.0-rc1", Some((7, 0))),
            ("", None),
            ("mine", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn a_clock_that_is_behind_what_was_made_fails() {
        let soon = OffsetDateTime::now_utc() + time::Duration::hours(1);
        assert_eq!(clock(Some(soon)).status, super::super::check::Status::Fail);
    }
}
