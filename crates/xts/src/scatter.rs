//! From scattered guest memory into one host buffer and back: the cipher is the copy.

use std::ptr::NonNull;
use std::sync::Arc;

use keys::units::ByteOffset;
use keys::{Dek, scrub_stack};

use super::CipherError;
use super::engine::{DataUnit, Direction, XtsEngine};
use super::shared::{Cursor, SharedSlice};
use super::thread_cipher::{DEPTH, Piece, ThreadCipher};
use super::threads::{CryptoThreads, Helpers, LEAST as LEAST_SHARED};

/// A DEK made ready for one thread, and for those that help it.
pub struct Cipher {
    own: ThreadCipher,
    /// Where threads help with large pieces.
    helpers: Option<Box<Helpers>>,
}

impl Cipher {
    /// Expands `dek` with the engine that is fastest on this CPU.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked, [`CipherError::AwsLc`] when there is none.
    pub fn new(dek: &Dek, unit: DataUnit) -> Result<Self, CipherError> {
        Ok(Self {
            own: ThreadCipher::new(dek, unit)?,
            helpers: None,
        })
    }

    /// Uses a given engine, which must hold `dek`.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked.
    pub fn with_engine(
        engine: Box<dyn XtsEngine>,
        dek: &Dek,
        unit: DataUnit,
    ) -> Result<Self, CipherError> {
        Ok(Self {
            own: ThreadCipher::with_engine(engine, dek, unit)?,
            helpers: None,
        })
    }

    /// As [`Cipher::new`], with `threads` that help with pieces of 64 KiB and more. What is encrypted in blocks
    /// ([`Cipher::encrypt_by_blocks`]) is one thread's alone.
    ///
    /// # Errors
    /// As [`Cipher::new`].
    pub fn with_threads(
        dek: &Dek,
        unit: DataUnit,
        threads: &Arc<CryptoThreads>,
    ) -> Result<Self, CipherError> {
        let helpers = Helpers::new(threads, dek, unit)?;
        Ok(Self {
            helpers: Some(Box::new(helpers)),
            ..Self::new(dek, unit)?
        })
    }

    /// Bytes under one tweak.
    pub fn unit(&self) -> DataUnit {
        self.own.unit()
    }

    /// What the engine calls itself.
    pub fn engine_name(&self) -> &'static str {
        self.own.engine_name()
    }

    /// Encrypts the guest's bytes at `cursor` for disk offset `at` into `into`, filling it.
    ///
    /// `at` and the length are multiples of 16; the slices may be cut anywhere. What the list lacks
    /// is left as it was in `into`, so callers check lengths before.
    pub fn encrypt(
        &mut self,
        at: ByteOffset,
        slices: &[SharedSlice],
        cursor: Cursor,
        into: &mut [u8],
    ) {
        self.walk(&Piece {
            direction: Direction::Encrypt,
            at,
            slices,
            cursor,
            host: into.as_mut_ptr(),
            len: into.len(),
        });
    }

    /// Decrypts `from`, the ciphertext of disk offset `at`, to the guest's bytes at `cursor`.
    ///
    /// The same rules hold as for [`Cipher::encrypt`].
    pub fn decrypt(&mut self, at: ByteOffset, from: &[u8], slices: &[SharedSlice], cursor: Cursor) {
        // The host buffer is only read from in this direction.
        let host = from.as_ptr().cast_mut();
        self.walk(&Piece {
            direction: Direction::Decrypt,
            at,
            slices,
            cursor,
            host,
            len: from.len(),
        });
    }

    /// As [`Cipher::encrypt`] of `len` bytes, each block of the disk, or what the range has of it, into the same
    /// `block`. After each `then` is told how many bytes of the range came before it, and how many it has.
    ///
    /// # Safety
    /// `block` must be writable for the 4096 bytes of a block and apart from the slices, and no reference to it may
    /// be alive meanwhile.
    pub unsafe fn encrypt_by_blocks(
        &mut self,
        at: ByteOffset,
        slices: &[SharedSlice],
        cursor: Cursor,
        len: usize,
        block: NonNull<u8>,
        mut then: impl FnMut(usize, usize),
    ) {
        let block = block.as_ptr();
        let in_block = |done: usize| at.plus(done as u64).in_block() as usize;
        // Of the first block only its end may be in the range.
        let start_of = |done: usize| done.saturating_sub(in_block(done));
        // SAFETY: a block has more bytes than any part of it that begins at its start, or at that of the range.
        let host = |done: usize| unsafe { block.add(done - start_of(done)) };
        let mut told = 0;
        let after = |done: usize| {
            if done == len || in_block(done) == 0 {
                then(told, done - told);
                told = done;
            }
        };
        self.own
            .scattered_runs(Direction::Encrypt, at, slices, cursor, len, host, after);
        scrub_stack::<DEPTH>();
    }

    /// As [`Cipher::decrypt`], from memory that is only known by its address.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes and apart from the slices.
    pub unsafe fn decrypt_from(
        &mut self,
        at: ByteOffset,
        from: NonNull<u8>,
        len: usize,
        slices: &[SharedSlice],
        cursor: Cursor,
    ) {
        self.walk(&Piece {
            direction: Direction::Decrypt,
            at,
            slices,
            cursor,
            host: from.as_ptr(),
            len,
        });
    }

    /// Fills `into` with what zeros at disk offset `at` encrypt to.
    pub fn encrypt_zeros(&mut self, at: ByteOffset, into: &mut [u8]) {
        self.own.runs_of_zeros(at, into);
        scrub_stack::<DEPTH>();
    }

    /// Transforms the host's bytes `from` of disk offset `at` into `into`, which is as long: for
    /// what goes from one layer to another, and touches no guest.
    pub(super) fn transform(
        &mut self,
        direction: Direction,
        at: ByteOffset,
        from: &[u8],
        into: &mut [u8],
    ) {
        self.own.runs(direction, at, from, into);
        scrub_stack::<DEPTH>();
    }

    /// Transforms a piece, with others where it is large and they are there.
    fn walk(&mut self, piece: &Piece<'_>) {
        if piece.len >= LEAST_SHARED
            && let Some(mut helpers) = self.helpers.take()
        {
            let is_done = helpers.share(piece, &mut self.own);
            self.helpers = Some(helpers);
            if is_done {
                return;
            }
        }
        self.own.walk_alone(piece);
    }
}
