//! How much memory the control group of this process may have.

use std::path::{Path, PathBuf};

use crate::error::AttachError;

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";

/// Sees that `wanted` bytes are fewer than the process may have: beyond that the kernel kills it, at a time
/// that a guest chooses.
///
/// # Errors
/// [`AttachError::Memory`].
pub(crate) fn check(wanted: u64) -> Result<(), AttachError> {
    match memory_limit() {
        Some((file, limit)) if limit < wanted => Err(AttachError::Memory {
            wanted,
            limit_of: file.display().to_string(),
            limit,
        }),
        _ => Ok(()),
    }
}

/// The least that a control group of this process lets it have, in bytes, and the file that says so; `None` when
/// none does.
pub fn memory_limit() -> Option<(PathBuf, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    lowest(&groups, Path::new(ROOT))
}

/// The lowest limit of the groups that /proc/self/cgroup names, and of those around them; and its file.
fn lowest(groups: &str, root: &Path) -> Option<(PathBuf, u64)> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (base, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            "memory" => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = base.join(path.trim_start_matches('/'));
        let around: Vec<_> = group.ancestors().map(|group| group.join(name)).collect();
        let inside = around
            .into_iter()
            .filter(move |file| file.starts_with(&base));
        Some(inside.filter_map(limit_in).collect::<Vec<_>>())
    });
    limits.flatten().min_by_key(|(_, limit)| *limit)
}

/// `max`, like a file that is not there, is no limit.
fn limit_in(file: PathBuf) -> Option<(PathBuf, u64)> {
    let limit = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
    Some((file, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_all_groups_around_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        put("system.slice/memory.max", "67108864\n");
        put("system.slice/disk.service/memory.max", "max\n");
        put("memory/vms/memory.limit_in_bytes", "9223372036854771712\n");
        let found = |groups| lowest(groups, root.path()).map(|(_, limit)| limit);
        assert_eq!(found("0::/system.slice/disk.service\n"), Some(64 << 20));
        assert_eq!(found("0::/user.slice\n"), None);
        let both = "4:memory:/vms\n1:cpu,cpuacct:/\n0::/system.slice\n";
        assert_eq!(found(both), Some(64 << 20));
        assert_eq!(found("4:memory:/vms\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(found("nonsense"), None);
    }
}
