//! Why an in-flight region is refused.

use std::io;

use thiserror::Error;

/// Nothing of what such a region says is followed.
#[derive(Debug, Error)]
pub enum InflightError {
    /// The file is shorter than it is said to be.
    #[error("the in-flight region has {has} bytes and needs {needs}")]
    TooShort {
        /// Bytes that can be mapped.
        has: u64,
        /// Bytes that its queues take.
        needs: u64,
    },
    /// It is said to have another length, so its parts may lie elsewhere.
    #[error("an in-flight region of {said} bytes, whose queues take {needs}")]
    Length {
        /// Bytes that it is said to have.
        said: u64,
        /// Bytes that its queues take.
        needs: u64,
    },
    /// It is for another device.
    #[error(
        "an in-flight region for {queues} queues of {entries} entries; the device has {most} queues"
    )]
    Shape {
        /// Queues that it is for.
        queues: u16,
        /// Entries of each.
        entries: u16,
        /// Queues that the device has.
        most: u16,
    },
    /// It was written by what follows another layout.
    #[error("the in-flight region has version {0}, and 1 is known")]
    Version(u16),
    /// Its queue has other entries than was said.
    #[error("the in-flight region is for {region} entries, and the queue has {queue}")]
    Entries {
        /// What the region says.
        region: u16,
        /// Those of the ring, or of the message that came with the region.
        queue: u16,
    },
    /// It names a descriptor that the queue does not have.
    #[error("the in-flight region names descriptor {0}, which the queue does not have")]
    Head(u16),
    /// The used ring is another's, or was used without the region.
    #[error(
        "the in-flight region ends at the used index {region}, and the ring is at {ring}: they do not belong together"
    )]
    UsedIndex {
        /// The index up to which the region is complete.
        region: u16,
        /// That of the used ring.
        ring: u16,
    },
    /// The file cannot be made, mapped or looked at.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The kernel's words.
        source: io::Error,
    },
}
