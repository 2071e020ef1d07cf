//! Tweaks, and how to start in the middle of a data unit.

use keys::units::Sector;
use keys::{Dek, DekHalf, scrub_stack};

use super::CipherError;
use super::block::BlockKey;

/// Bytes of the stack that `aes` uses for a block at most, in builds without optimisation.
const DEPTH: usize = 32 * 1024;

/// The 16 bytes that key 2 encrypts to get the mask of a run's first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TweakValue(pub [u8; 16]);

impl TweakValue {
    /// dm-crypt's `plain64` for the data unit that starts at `sector`.
    pub fn plain64(sector: Sector) -> Self {
        Self(u128::from(sector.0).to_le_bytes())
    }
}

/// Key 2 of an XTS key, to find the tweak value of a block inside a data unit.
///
/// Block `j` of a data unit is masked with `T_j = E(K2, tweak) · α^j` (IEEE 1619-2018 §5.3.2).
/// XTS libraries only start at `j = 0`. But `D(K2, T_j)` is a value that, given to such a library
/// as the tweak, makes its first mask `T_j`: so any run of whole blocks can be transformed alone,
/// which sub-unit writes and data units scattered over several descriptors need.
pub struct TweakKey(BlockKey);

impl TweakKey {
    /// Expands key 2 of `dek`.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked.
    pub fn new(dek: &Dek) -> Result<Self, CipherError> {
        Ok(Self(BlockKey::new(dek, DekHalf::Tweak)?))
    }

    /// The value that starts a run `blocks` 16-byte blocks after the start of the data unit.
    pub fn advanced(&self, unit: TweakValue, blocks: u32) -> TweakValue {
        if blocks == 0 {
            return unit;
        }
        let value = self.advance(unit, blocks);
        scrub_stack::<DEPTH>();
        value
    }

    #[inline(never)]
    fn advance(&self, unit: TweakValue, blocks: u32) -> TweakValue {
        let first = u128::from_le_bytes(self.0.encrypt(unit.0));
        let mask = multiply_by_alpha(first, blocks);
        TweakValue(self.0.decrypt(mask.to_le_bytes()))
    }
}

/// Multiplies by α^n in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, the bytes taken little-endian.
fn multiply_by_alpha(value: u128, n: u32) -> u128 {
    let (mut value, mut left) = (value, n);
    while left > 0 {
        // At most 64 at a time: the bits that leave at the top then fold back without a second carry.
        let step = left.min(64);
        let out = value >> (128 - step);
        value = (value << step) ^ out ^ (out << 1) ^ (out << 2) ^ (out << 7);
        left -= step;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(value: u128) -> u128 {
        (value << 1) ^ (if value >> 127 == 1 { 0x87 } else { 0 })
    }

    #[test]
    fn many_steps_are_single_doublings() {
        let mut expected = 0x8123_4567_89ab_cdef_0123_4567_89ab_cdff_u128;
        for n in 0..256 {
            assert_eq!(
                multiply_by_alpha(0x8123_4567_89ab_cdef_0123_4567_89ab_cdff, n),
                expected,
                "α^{n}"
            );
            expected = double(expected);
        }
    }

    #[test]
    fn plain64_is_the_sector_in_the_low_bytes() {
        let tweak = TweakValue::plain64(Sector(24));
        assert_eq!(tweak.0[..2], [24, 0]);
        assert_eq!(tweak.0[2..], [0; 14]);
    }
}
