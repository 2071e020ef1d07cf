//! Which file system a path is on.

use std::path::{Path, PathBuf};

/// The type of the file system of a path that exists, as /proc/self/mountinfo has it: `ext4`.
pub(super) fn file_system(path: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    of(&mounts, &path.canonicalize().ok()?)
}

/// The mount that lies nearest above the path; of several at one place, the last hides the others.
fn of(mounts: &str, path: &Path) -> Option<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let point = unescaped(place.split(' ').nth(4)?);
            let depth = point.components().count();
            path.starts_with(&point)
                .then(|| (depth, kind.split(' ').next().unwrap_or_default()))
        })
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind.into())
}

/// A space in a path stands there as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(code, character);
    }
    plain.into()
}

/// The path itself, or what of it is there already.
pub(super) fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|ancestor| ancestor.exists());
    match found {
        Some(found) if found.as_os_str().is_empty() => ".".into(),
        Some(found) => found.into(),
        None => "/".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      22 21 0:19 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n\
                      23 21 8:2 / /srv/my\\040disks rw - xfs /dev/sda2 rw\n\
                      24 22 0:20 / /run rw - ramfs none rw\n";
        let of = |path: &str| of(mounts, Path::new(path));
        assert_eq!(of("/var/lib"), Some("ext4".into()));
        assert_eq!(of("/srv/my disks/web"), Some("xfs".into()));
        assert_eq!(of("/srv/my"), Some("ext4".into()));
        assert_eq!(of("/run/sealdisk"), Some("ramfs".into()));
        assert!(file_system(Path::new("/proc")).is_some());
    }
}
