//! Units that must not be confused, shared by all crates of the data path.

use std::ops::Range;

/// Bytes of a virtio-blk sector, whatever the logical block size is (virtio 1.2 §5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// Bytes of a block: the granularity of the block map.
pub const BLOCK_SIZE: u64 = 4096;

/// Whether bytes are all zero. It compares them with each other, for which the C library has the CPU's widest
/// instructions: a loop over bytes that may end early is not vectorised.
pub fn is_zero(bytes: &[u8]) -> bool {
    let Some((first, rest)) = bytes.split_first() else {
        return true;
    };
    *first == 0 && *rest == bytes[..rest.len()]
}

/// A byte offset into the guest's disk. A layer's data file has the same offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteOffset(pub u64);

impl ByteOffset {
    /// The 512-byte sector that this offset lies in.
    pub fn sector(self) -> Sector {
        Sector(self.0 / SECTOR_SIZE)
    }

    /// The 4 KiB block that this offset lies in.
    pub fn block(self) -> Block {
        Block(self.0 / BLOCK_SIZE)
    }

    /// The blocks that `len` bytes from this offset on touch.
    pub fn blocks(self, len: u64) -> Range<u64> {
        self.block().0..(self.0 + len).div_ceil(BLOCK_SIZE)
    }

    /// Bytes from the start of the block to this offset.
    pub fn in_block(self) -> u64 {
        self.0 % BLOCK_SIZE
    }

    /// The offset `bytes` further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// A 512-byte sector of the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sector(pub u64);

/// A 4 KiB block of the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block(pub u64);

impl Block {
    /// Where the block starts on the disk.
    pub fn offset(self) -> ByteOffset {
        ByteOffset(self.0 * BLOCK_SIZE)
    }
}

/// A layer of a disk, counted from the one that is written to downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(pub u8);

impl LayerIndex {
    /// The layer that is written to.
    pub const TOP: Self = Self(0);

    /// As an index of lists that have the top layer first.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// The most layers of a disk. The envelopes of that many fit into a header's slot even when every one of
/// them is by a 4096-bit RSA key.
pub const MAX_LAYERS: usize = 32;
