//! The trait that every XTS implementation stands behind.

use super::{CipherError, TweakValue};

/// Bytes that are encrypted under one tweak (IEEE 1619 calls this the data unit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataUnit {
    /// 512 bytes.
    B512,
    /// 4096 bytes, the default: one tweak for a page, and what `docs/architecture.md` measured as
    /// the faster one.
    #[default]
    B4096,
}

impl DataUnit {
    /// Its length in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

impl TryFrom<u64> for DataUnit {
    type Error = CipherError;

    fn try_from(bytes: u64) -> Result<Self, CipherError> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            other => Err(CipherError::DataUnit(other)),
        }
    }
}

/// Which way a run is transformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From guest memory to the host.
    Encrypt,
    /// From the host to guest memory.
    Decrypt,
}

/// One implementation of AES-256-XTS, holding one expanded key.
///
/// An engine transforms *runs*: whole 16-byte blocks inside one data unit. Everything about
/// scattered memory is done once for all engines by [`super::Cipher`]. An engine is not shared:
/// each queue thread has its own, in locked memory.
pub trait XtsEngine: Send {
    /// What the log calls it.
    fn name(&self) -> &'static str;

    /// Transforms `len` bytes from `src` to `dst`.
    ///
    /// `tweak` is the value that, encrypted under key 2, masks the run's first block; the masks of
    /// the others follow from it. `len` is a non-zero multiple of 16 and at most 4096.
    ///
    /// # Safety
    /// `src` must be readable and `dst` writable for `len` bytes, and they must not overlap. Either
    /// may be guest memory that changes meanwhile: the implementation reads each source byte once
    /// and makes no reference into either range.
    unsafe fn run(
        &mut self,
        direction: Direction,
        tweak: &TweakValue,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    );
}
