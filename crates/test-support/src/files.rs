//! Files of tests and what is in them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::expect_success;

/// Plaintext that must be nowhere but in images and decrypted files.
pub const MARKER: &[u8] = b"plaintext that nobody but the guest may see";

/// Fills with bytes that do not repeat and are not zeros.
pub fn noise(bytes: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8 | 1;
    }
}

/// Runs `qemu-img`, which has to succeed.
pub fn qemu_img(arguments: &[&str]) {
    expect_success(Command::new("qemu-img").args(arguments));
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// The regular files below `directory`. What goes away while they are looked for is passed over: a server
/// that runs puts files in place by renames, and removes others.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Some(entries) = unless_gone(fs::read_dir(directory), directory) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let Some(entry) = unless_gone(entry, directory) else {
            continue;
        };
        let path = entry.path();
        let Some(kind) = unless_gone(entry.file_type(), &path) else {
            continue;
        };
        if kind.is_dir() {
            files.extend(files_below(&path));
        } else if kind.is_file() {
            files.push(path);
        }
    }
    files
}

/// What is in a file, and nothing once it is gone.
pub fn content_of(file: &Path) -> Vec<u8> {
    unless_gone(fs::read(file), file).unwrap_or_default()
}

fn unless_gone<T>(found: io::Result<T>, path: &Path) -> Option<T> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        found => Some(found.unwrap_or_else(|e| panic!("{}: {e}", path.display()))),
    }
}

/// Whether a regular file below `directory` holds `needle`.
pub fn holds(directory: &Path, needle: &[u8]) -> bool {
    let files = files_below(directory);
    files.iter().any(|file| contains(&content_of(file), needle))
}

/// Whether `needle` is in `content`; quick enough for hundreds of megabytes of zeros.
pub fn contains(content: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(content, needle).is_some()
}
