//! What the map says of a block.

/// The two bits of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockState {
    /// Never written in this layer: the content is that of the layer below; zeros below the last.
    Inherit = 0,
    /// The layer's data file has the content, encrypted.
    Data = 1,
    /// Reads as zeros; the data file's bytes there mean nothing.
    Zero = 2,
    /// As [`BlockState::Zero`], and the data file may still hold space to be given back.
    ZeroHeld = 3,
}

impl BlockState {
    /// The state that the two low bits of `bits` stand for.
    pub fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Inherit,
            1 => Self::Data,
            2 => Self::Zero,
            _ => Self::ZeroHeld,
        }
    }

    /// This state in each of the 32 places of a map word.
    pub(super) fn repeated(self) -> u64 {
        self as u64 * 0x5555_5555_5555_5555
    }
}
