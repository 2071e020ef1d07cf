//! The size and identity of a layer.

use uuid::Uuid;

use keys::units::{BLOCK_SIZE, SECTOR_SIZE};
use xts::DataUnit;

use super::VolumeError;

/// Bytes of the largest disk: 64 TiB, whose map takes 4 GiB of memory. No file of a disk is longer.
pub const MAX_DISK_SIZE: u64 = 1 << 46;

/// What a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The disk it belongs to.
    pub disk: Uuid,
    /// The layer.
    pub layer: Uuid,
    /// Bytes that the guest sees, a multiple of 512.
    pub size: u64,
    /// Bytes encrypted under one tweak.
    pub data_unit: DataUnit,
}

impl Geometry {
    /// Blocks of the disk, the last one perhaps only partly used.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE)
    }

    /// Bytes of the data file: the disk's, rounded up to whole blocks.
    pub fn data_len(&self) -> u64 {
        self.blocks() * BLOCK_SIZE
    }

    /// The same layer with another size, which is not smaller.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::Shrink`].
    pub fn grown(&self, size: u64) -> Result<Self, VolumeError> {
        let grown = Self {
            size,
            ..self.clone()
        };
        grown.check()?;
        if size < self.size {
            return Err(VolumeError::Shrink {
                from: self.size,
                to: size,
            });
        }
        Ok(grown)
    }

    /// Checks the size.
    ///
    /// # Errors
    /// [`VolumeError::Size`].
    pub fn check(&self) -> Result<(), VolumeError> {
        let size = self.size;
        let refuse = |why| Err(VolumeError::Size { size, why });
        match size {
            0 => refuse("it must not be empty"),
            s if !s.is_multiple_of(SECTOR_SIZE) => refuse("it must be a multiple of 512"),
            s if s > MAX_DISK_SIZE => refuse("64 TiB is the most"),
            _ => Ok(()),
        }
    }
}
