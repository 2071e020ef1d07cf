//! The reference engine: RustCrypto's `aes` and `xts-mode`, on any CPU.

use aes::Aes256;
use aes::cipher::Array;
use xts_mode::Xts128;
use zeroize::Zeroize;

use keys::{Dek, DekHalf, Locked, LockedBytes};

use super::engine::{Direction, XtsEngine};
use super::tweak::TweakValue;
use super::{CipherError, DataUnit};

/// AES-256-XTS by `xts-mode` over `aes`.
///
/// The library works in place, and neither side of a run may hold the other's form. So a run passes
/// through a scratch of one data unit, in locked memory and wiped after each run: the one place
/// where this engine holds plaintext, as a register would.
pub struct PortableEngine {
    xts: Locked<Xts128<Aes256>>,
    scratch: LockedBytes,
}

impl PortableEngine {
    /// Expands `dek` for this engine.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked.
    pub fn new(dek: &Dek) -> Result<Self, CipherError> {
        use aes::cipher::KeyInit;
        let expand = || {
            let mut halves = [[0u8; 32]; 2];
            halves[0].copy_from_slice(dek.half(DekHalf::Data));
            halves[1].copy_from_slice(dek.half(DekHalf::Tweak));
            let xts = Xts128::new(
                Aes256::new((&halves[0]).into()),
                Aes256::new((&halves[1]).into()),
            );
            halves.zeroize();
            xts
        };
        Ok(Self {
            xts: Locked::new_with(expand)?,
            scratch: LockedBytes::zeroed(DataUnit::B4096.bytes() as usize)?,
        })
    }
}

impl XtsEngine for PortableEngine {
    fn name(&self) -> &'static str {
        "portable (aes + xts-mode)"
    }

    unsafe fn run(
        &mut self,
        direction: Direction,
        tweak: &TweakValue,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    ) {
        let scratch = &mut self.scratch.as_mut_slice()[..len];
        // SAFETY: the caller promises `src` for `len` bytes; the scratch is ours and has that many.
        unsafe { std::ptr::copy_nonoverlapping(src, scratch.as_mut_ptr(), len) };
        match direction {
            Direction::Encrypt => self.xts.encrypt_sector(scratch, Array(tweak.0)),
            Direction::Decrypt => self.xts.decrypt_sector(scratch, Array(tweak.0)),
        }
        // SAFETY: the caller promises `dst` for `len` bytes; the scratch is ours and has that many.
        unsafe { std::ptr::copy_nonoverlapping(scratch.as_ptr(), dst, len) };
        scratch.zeroize();
    }
}
