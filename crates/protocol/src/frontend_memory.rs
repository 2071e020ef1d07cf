//! Which files a frontend announced as the guest's memory, and whether it has them mapped for itself alone.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// A file, by the numbers of its device and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// That of an open file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// What a frontend announced as the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendMemory {
    /// Which connection it was, of those of this process.
    pub connection: u64,
    /// The files of the memory.
    pub files: Vec<FileId>,
}

impl FrontendMemory {
    /// Whether a process has a part of it mapped, but for itself alone. `maps` is its `/proc/PID/maps`, see
    /// proc_pid_maps(5).
    pub fn is_private_in(&self, maps: &str) -> bool {
        let mappings: Vec<_> = maps.lines().filter_map(mapping).collect();
        self.files.iter().any(|file| {
            let mut of_file = mappings.iter().filter(|(mapped, _)| mapped == file);
            of_file.clone().next().is_some() && !of_file.any(|(_, shared)| *shared)
        })
    }
}

/// The file of a mapping, and whether it is a shared one.
fn mapping(line: &str) -> Option<(FileId, bool)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let shared = fields.next()?.ends_with('s');
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    let inode = fields.next()?.parse().ok()?;
    Some((FileId { device, inode }, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f1fd7fff000-7f1fe7fff000 rw-p 00000000 00:01 1030                       /memfd:memory-backend-memfd (deleted)
7f2db7fff000-7f2dc7fff000 rw-s 00000000 00:01 10                         /memfd:shared one (deleted)
7f2dc7fff000-7f2dd7fff000 rw-p 00000000 00:01 10                         /memfd:shared one (deleted)
7f2dd7fff000-7f2de7fff000 rw-p 00000000 fe:00 1030                       /on another device
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0
not a mapping
";

    fn is_private(files: &[(u32, u32, u64)]) -> bool {
        let id = |&(major, minor, inode): &(u32, u32, u64)| FileId {
            device: rustix::fs::makedev(major, minor),
            inode,
        };
        let memory = FrontendMemory {
            connection: 1,
            files: files.iter().map(id).collect(),
        };
        memory.is_private_in(MAPS)
    }

    #[test]
    fn only_what_is_mapped_and_never_shared_is_private() {
        assert!(is_private(&[(0, 1, 1030)]));
        assert!(!is_private(&[(0, 1, 10)]), "it is shared somewhere");
        assert!(is_private(&[(0, 1, 10), (0, 1, 1030)]), "one of two");
        assert!(is_private(&[(0xfe, 0, 1030)]));
        assert!(!is_private(&[(0, 1, 99)]), "it is not mapped at all");
        assert!(!is_private(&[]));
    }
}
