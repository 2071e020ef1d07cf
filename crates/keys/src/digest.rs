//! The hash that everything here uses.

use std::io::{self, Read};

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hashes what is read through it.
pub struct Hashing<R> {
    from: R,
    hash: aws_lc_rs::digest::Context,
}

impl<R: Read> Hashing<R> {
    /// Nothing was read yet.
    pub fn new(from: R) -> Self {
        Self {
            from,
            hash: aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256),
        }
    }

    /// The SHA-256 of what was read, in hexadecimal.
    pub fn hex(self) -> String {
        hex(self.hash.finish().as_ref())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
