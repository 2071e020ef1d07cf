//! Which file is at a path.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tells a file from the one that had its path before. Whoever has that one open keeps its number from being given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    number: u64,
}

impl FileId {
    /// What is at `path`; `None` when nothing is, or it cannot be looked at.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            number: metadata.ino(),
        })
    }
}
