//! The cipher of one thread: cuts what it is given into runs for the engine.

use zeroize::Zeroize;

use keys::units::{ByteOffset, SECTOR_SIZE};
use keys::{Dek, LockedBytes, lock_stack, scrub_stack};

use super::CipherError;
#[cfg(feature = "fips")]
use super::aws_lc::AwsLcEngine;
#[cfg(not(feature = "fips"))]
use super::choice::engine_for;
use super::engine::{DataUnit, Direction, XtsEngine};
use super::shared::{Cursor, SharedSlice};
use super::tweak::{TweakKey, TweakValue};

/// Bytes of the stack that an engine uses at most.
pub(super) const DEPTH: usize = 4096;

/// Bytes of a run at most: those of the largest data unit.
const MOST: usize = 4096;

/// Bytes of an AES block.
const AES_BLOCK: usize = 16;

/// A range of the disk between scattered memory and the host's.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) direction: Direction,
    pub(super) at: ByteOffset,
    pub(super) slices: &'a [SharedSlice],
    pub(super) cursor: Cursor,
    pub(super) host: *mut u8,
    pub(super) len: usize,
}

/// A DEK made ready for one thread.
///
/// With double encryption a run goes through both passes before the next one begins: what is between them, a data unit
/// at most, stays in the processor's first cache, and memory is crossed once.
pub(super) struct ThreadCipher {
    inner: Pass,
    outer: Option<Outer>,
    unit: DataUnit,
}

/// One key: the engine, and key 2 for starting inside a data unit.
struct Pass {
    engine: Box<dyn XtsEngine>,
    tweak_key: TweakKey,
}

/// The second pass, and where a run is between the two: ciphertext of the first.
struct Outer {
    pass: Pass,
    between: LockedBytes,
}

/// The tweaks of a run, for each pass.
#[derive(Clone, Copy)]
struct Tweaks {
    inner: TweakValue,
    /// Where there is no second pass, that of the first.
    outer: TweakValue,
}

impl Pass {
    fn new(engine: Box<dyn XtsEngine>, dek: &Dek) -> Result<Self, CipherError> {
        Ok(Self {
            engine,
            tweak_key: TweakKey::new(dek)?,
        })
    }
}

/// The validated module, whatever the CPU: nothing else may encrypt.
#[cfg(feature = "fips")]
fn engine_for(dek: &Dek, _: DataUnit) -> Result<Box<dyn XtsEngine>, CipherError> {
    Ok(Box::new(AwsLcEngine::new(dek)?))
}

impl ThreadCipher {
    pub(super) fn new(dek: &Dek, unit: DataUnit) -> Result<Self, CipherError> {
        Self::with_engine(engine_for(dek, unit)?, dek, unit)
    }

    pub(super) fn with_engine(
        engine: Box<dyn XtsEngine>,
        dek: &Dek,
        unit: DataUnit,
    ) -> Result<Self, CipherError> {
        // Runs leave round keys on the stack of the thread.
        lock_stack()?;
        let outer = |dek: &Dek| {
            Ok::<_, CipherError>(Outer {
                pass: Pass::new(engine_for(dek, unit)?, dek)?,
                between: LockedBytes::zeroed(MOST)?,
            })
        };
        Ok(Self {
            inner: Pass::new(engine, dek)?,
            outer: dek.outer().map(outer).transpose()?,
            unit,
        })
    }

    pub(super) fn unit(&self) -> DataUnit {
        self.unit
    }

    pub(super) fn engine_name(&self) -> &'static str {
        self.inner.engine.name()
    }

    #[inline(never)]
    pub(super) fn runs_of_zeros(&mut self, at: ByteOffset, into: &mut [u8]) {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < into.len() {
            let run = self.to_unit_end(at, done).min(into.len() - done);
            let tweak = self.tweak(at.plus(done as u64));
            let dst = into[done..done + run].as_mut_ptr();
            // SAFETY: ZEROS has a whole unit, `dst` has `run` bytes, and they are apart.
            unsafe { self.run(Direction::Encrypt, &tweak, ZEROS.as_ptr(), dst, run) };
            done += run;
        }
    }

    #[inline(never)]
    pub(super) fn runs(
        &mut self,
        direction: Direction,
        at: ByteOffset,
        from: &[u8],
        into: &mut [u8],
    ) {
        let len = from.len().min(into.len());
        let mut done = 0;
        while done < len {
            let run = self.to_unit_end(at, done).min(len - done);
            let tweak = self.tweak(at.plus(done as u64));
            let (src, dst) = (from[done..].as_ptr(), into[done..].as_mut_ptr());
            // SAFETY: both have `run` bytes left, and a shared and a unique slice are apart.
            unsafe { self.run(direction, &tweak, src, dst, run) };
            done += run;
        }
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
    pub(super) fn scattered_runs(
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
            unsafe { self.run(direction, tweak, src, dst, run) };
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
        tweak: &Tweaks,
        slices: &[SharedSlice],
        cursor: Cursor,
        host: *mut u8,
    ) {
        let mut block = [0u8; AES_BLOCK];
        if direction == Direction::Decrypt {
            // SAFETY: `host` has a whole block left (checked by `walk_alone`), `block` is ours.
            unsafe { self.run(direction, tweak, host, block.as_mut_ptr(), AES_BLOCK) };
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
            unsafe { self.run(direction, tweak, block.as_ptr(), host, AES_BLOCK) };
        }
        block.zeroize();
    }

    /// Bytes from `done` bytes after `at` to the end of the data unit there.
    fn to_unit_end(&self, at: ByteOffset, done: usize) -> usize {
        let unit = self.unit.bytes();
        (unit - (at.0 + done as u64) % unit) as usize
    }

    /// The tweaks of a run that starts at `at`.
    fn tweak(&self, at: ByteOffset) -> Tweaks {
        let unit = self.unit.bytes();
        let inside = at.0 % unit;
        let start = ByteOffset(at.0 - inside);
        debug_assert!(start.0.is_multiple_of(SECTOR_SIZE));
        let of_unit = TweakValue::plain64(start.sector());
        let blocks = (inside / AES_BLOCK as u64) as u32;
        let inner = self.inner.tweak_key.advanced(of_unit, blocks);
        Tweaks {
            inner,
            outer: match &self.outer {
                Some(outer) => outer.pass.tweak_key.advanced(of_unit, blocks),
                None => inner,
            },
        }
    }

    /// Transforms a run by all passes: the inner one first to encrypt, the outer one first to decrypt.
    ///
    /// # Safety
    /// As for [`XtsEngine::run`].
    unsafe fn run(
        &mut self,
        direction: Direction,
        tweaks: &Tweaks,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    ) {
        let (inner, Some(outer)) = (&mut self.inner.engine, &mut self.outer) else {
            // SAFETY: the caller keeps the rules of the engine.
            return unsafe {
                self.inner
                    .engine
                    .run(direction, &tweaks.inner, src, dst, len)
            };
        };
        let between = outer.between.as_mut_slice().as_mut_ptr();
        let outer = &mut outer.pass.engine;
        debug_assert!(len <= MOST);
        // SAFETY: `len` is at most a data unit, which is what there is between the passes, in memory that is apart from
        // any other; for the caller's memory the caller keeps the rules of the engine.
        unsafe {
            match direction {
                Direction::Encrypt => {
                    inner.run(direction, &tweaks.inner, src, between, len);
                    outer.run(direction, &tweaks.outer, between, dst, len);
                }
                Direction::Decrypt => {
                    outer.run(direction, &tweaks.outer, src, between, len);
                    inner.run(direction, &tweaks.inner, between, dst, len);
                }
            }
        }
    }
}
