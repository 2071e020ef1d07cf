//! From scattered guest memory into one host buffer and back: the cipher is the copy.

use std::ptr::NonNull;
use std::sync::Arc;

use zeroize::Zeroize;

use keys::units::{ByteOffset, SECTOR_SIZE};
use keys::{Dek, lock_stack, scrub_stack};

use super::CipherError;
#[cfg(feature = "fips")]
use super::aws_lc::AwsLcEngine;
#[cfg(not(feature = "fips"))]
use super::choice::engine_for;
use super::engine::{DataUnit, Direction, XtsEngine};
use super::shared::{Cursor, SharedSlice};
use super::threads::{CryptoThreads, Helpers, LEAST as LEAST_SHARED, Piece};
use super::tweak::{TweakKey, TweakValue};

/// Bytes of the stack that an engine uses at most.
const DEPTH: usize = 4096;

/// Bytes of an AES block.
const AES_BLOCK: usize = 16;

/// A DEK made ready for one thread: the engine, the data unit and key 2 for starting inside a unit.
pub struct Cipher {
    engine: Box<dyn XtsEngine>,
    tweak_key: TweakKey,
    unit: DataUnit,
    /// Where threads help with large pieces.
    helpers: Option<Box<Helpers>>,
}

/// The validated module, whatever the CPU: nothing else may encrypt.
#[cfg(feature = "fips")]
fn engine_for(dek: &Dek, _: DataUnit) -> Result<Box<dyn XtsEngine>, CipherError> {
    Ok(Box::new(AwsLcEngine::new(dek)?))
}

impl Cipher {
    /// Expands `dek` with the engine that is fastest on this CPU.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked, [`CipherError::AwsLc`] when there is none.
    pub fn new(dek: &Dek, unit: DataUnit) -> Result<Self, CipherError> {
        Self::with_engine(engine_for(dek, unit)?, dek, unit)
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
        // Runs leave round keys on the stack of the thread.
        lock_stack()?;
        Ok(Self {
            engine,
            tweak_key: TweakKey::new(dek)?,
            unit,
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
        self.unit
    }

    /// What the engine calls itself.
    pub fn engine_name(&self) -> &'static str {
        self.engine.name()
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
        self.scattered_runs(Direction::Encrypt, at, slices, cursor, len, host, after);
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
        self.runs_of_zeros(at, into);
        scrub_stack::<DEPTH>();
    }

    #[inline(never)]
    fn runs_of_zeros(&mut self, at: ByteOffset, into: &mut [u8]) {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < into.len() {
            let run = self.to_unit_end(at, done).min(into.len() - done);
            let tweak = self.tweak(at.plus(done as u64));
            let dst = into[done..done + run].as_mut_ptr();
            // SAFETY: ZEROS has a whole unit, `dst` has `run` bytes, and they are apart.
            unsafe {
                self.engine
                    .run(Direction::Encrypt, &tweak, ZEROS.as_ptr(), dst, run)
            };
            done += run;
        }
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
        self.runs(direction, at, from, into);
        scrub_stack::<DEPTH>();
    }

    #[inline(never)]
    fn runs(&mut self, direction: Direction, at: ByteOffset, from: &[u8], into: &mut [u8]) {
        let len = from.len().min(into.len());
        let mut done = 0;
        while done < len {
            let run = self.to_unit_end(at, done).min(len - done);
            let tweak = self.tweak(at.plus(done as u64));
            let (src, dst) = (from[done..].as_ptr(), into[done..].as_mut_ptr());
            // SAFETY: both have `run` bytes left, and a shared and a unique slice are apart.
            unsafe { self.engine.run(direction, &tweak, src, dst, run) };
            done += run;
        }
    }

    /// Transforms a piece, with others where it is large and they are there.
    fn walk(&mut self, piece: &Piece<'_>) {
        if piece.len >= LEAST_SHARED
            && let Some(mut helpers) = self.helpers.take()
        {
            let is_done = helpers.share(piece, self);
            self.helpers = Some(helpers);
            if is_done {
                return;
            }
        }
        self.walk_alone(piece);
    }

    /// Transforms a piece, and leaves nothing of a key on the stack.
    pub(super) fn walk_alone(&mut self, piece: &Piece<'_>) {
        let Piece {
            direction,
            at,
            slices,
            cursor,
            host,
            len,
        } = *piece;
        // SAFETY: `done` is less than `len`, the length of the host's memory.
        let host = |done: usize| unsafe { host.add(done) };
        self.scattered_runs(direction, at, slices, cursor, len, host, |_| {});
        scrub_stack::<DEPTH>();
    }

    /// Cuts `len` bytes into runs that are contiguous on both sides and stay in one data unit. `host` says where on
    /// the host's side what comes after so many bytes is: the rest of a data unit in one piece. `after` is
    /// told how many bytes are done.
    #[inline(never)]
    #[expect(
        clippy::too_many_arguments,
        reason = "two sides of a copy, and what is between them"
    )]
    fn scattered_runs(
        &mut self,
        direction: Direction,
        at: ByteOffset,
        slices: &[SharedSlice],
        mut cursor: Cursor,
        len: usize,
        host: impl Fn(usize) -> *mut u8,
        mut after: impl FnMut(usize),
    ) {
        debug_assert!(at.0.is_multiple_of(AES_BLOCK as u64) && len.is_multiple_of(AES_BLOCK));
        // A processor that loads a value right after it stored it in halves waits for all stores
        // before it, which are the ciphertext of the last run. So the tweak of a run is in memory
        // before the run ahead of it starts.
        let mut tweaks = [self.tweak(at); 2];
        let (mut turn, mut done) = (0, 0);
        while done < len {
            let most = self.to_unit_end(at, done).min(len - done);
            let Some((guest, piece)) = cursor.piece(slices, most) else {
                return;
            };
            let run = piece / AES_BLOCK * AES_BLOCK;
            let tweak = turn;
            turn ^= 1;
            let next = done + run.max(AES_BLOCK);
            if next < len {
                tweaks[turn] = self.tweak(at.plus(next as u64));
            }
            let tweak = &tweaks[tweak];
            let here = host(done);
            if run == 0 {
                self.straddle(direction, tweak, slices, cursor, here);
                cursor.advance(slices, AES_BLOCK);
                done += AES_BLOCK;
                after(done);
                continue;
            }
            let (src, dst) = match direction {
                Direction::Encrypt => (guest.cast_const(), here),
                Direction::Decrypt => (here.cast_const(), guest),
            };
            // SAFETY: `piece` bytes of the guest's slice and the rest of the data unit on the host's side are
            // there, `run` is at most both, and guest and host memory never overlap.
            unsafe { self.engine.run(direction, tweak, src, dst, run) };
            cursor.offset += run;
            done += run;
            after(done);
        }
    }

    /// One AES block whose bytes lie in more than one slice: gathered or scattered through 16 bytes
    /// on the stack, which is as much as the AES instruction itself holds.
    fn straddle(
        &mut self,
        direction: Direction,
        tweak: &TweakValue,
        slices: &[SharedSlice],
        cursor: Cursor,
        host: *mut u8,
    ) {
        let mut block = [0u8; AES_BLOCK];
        if direction == Direction::Decrypt {
            // SAFETY: `host` has a whole block left (checked by `walk_alone`), `block` is ours.
            unsafe {
                self.engine
                    .run(direction, tweak, host, block.as_mut_ptr(), AES_BLOCK)
            };
        }
        let (mut cursor, mut done) = (cursor, 0);
        while done < AES_BLOCK {
            let Some((guest, piece)) = cursor.piece(slices, AES_BLOCK - done) else {
                break;
            };
            let ours = block[done..].as_mut_ptr();
            let (src, dst) = match direction {
                Direction::Encrypt => (guest.cast_const(), ours),
                Direction::Decrypt => (ours.cast_const(), guest),
            };
            // SAFETY: `piece` bytes are left both in the slice and in `block`, which are apart.
            unsafe { std::ptr::copy_nonoverlapping(src, dst, piece) };
            cursor.offset += piece;
            done += piece;
        }
        if direction == Direction::Encrypt {
            // SAFETY: as above, the other way round.
            unsafe {
                self.engine
                    .run(direction, tweak, block.as_ptr(), host, AES_BLOCK)
            };
        }
        block.zeroize();
    }

    /// Bytes from `done` bytes after `at` to the end of the data unit there.
    fn to_unit_end(&self, at: ByteOffset, done: usize) -> usize {
        let unit = self.unit.bytes();
        (unit - (at.0 + done as u64) % unit) as usize
    }

    /// The tweak value for a run that starts at `at`.
    fn tweak(&self, at: ByteOffset) -> TweakValue {
        let unit = self.unit.bytes();
        let inside = at.0 % unit;
        let start = ByteOffset(at.0 - inside);
        debug_assert!(start.0.is_multiple_of(SECTOR_SIZE));
        self.tweak_key.advanced(
            TweakValue::plain64(start.sector()),
            (inside / AES_BLOCK as u64) as u32,
        )
    }
}
