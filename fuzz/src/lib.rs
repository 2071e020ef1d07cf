//! What several fuzz targets need: inputs that are nearly right.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use arbitrary::Arbitrary;
use tempfile::NamedTempFile;

/// A replacement in a valid text, so that a parser is reached behind its first check.
#[derive(Debug, Arbitrary)]
pub struct Edit {
    at: u16,
    removed: u8,
    inserted: Vec<u8>,
}

/// `text` after all `edits`.
pub fn edited(text: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for edit in edits {
        let start = usize::from(edit.at) % (bytes.len() + 1);
        let end = (start + usize::from(edit.removed)).min(bytes.len());
        bytes.splice(start..end, edit.inserted.iter().copied());
    }
    bytes
}

/// A file in memory that is written anew for each input.
pub struct Scratch(NamedTempFile);

impl Scratch {
    /// `suffix` is the end of its name.
    pub fn new(suffix: &str) -> Self {
        let mut builder = tempfile::Builder::new();
        Self(builder.suffix(suffix).tempfile_in("/dev/shm").unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Replaces the content.
    pub fn fill(&self, bytes: &[u8]) {
        File::create(self.path()).unwrap().write_all(bytes).unwrap();
    }
}
