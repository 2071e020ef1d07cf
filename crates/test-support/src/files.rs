//! Files of tests and what is in them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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

/// Whether a regular file below `directory` holds `needle`.
pub fn holds(directory: &Path, needle: &[u8]) -> bool {
    fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return holds(&entry.path(), needle);
        }
        let content = fs::read(entry.path()).unwrap();
        kind.is_file() && contains(&content, needle)
    })
}

/// Whether `needle` is in `content`; quick enough for hundreds of megabytes of zeros.
pub fn contains(content: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(content, needle).is_some()
}
