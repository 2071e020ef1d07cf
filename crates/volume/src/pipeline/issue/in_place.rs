//! Reads and overwrites of a data file that is memory (tmpfs, DAX): without a buffer and an operation.

use std::ptr::NonNull;

use crate::pipeline::piece::RequestId;
use crate::pipeline::scheduler::{Pipeline, Progress, find};
use crate::store::Store;
use crate::{Run, Source, Volume};
use keys::units::{BLOCK_SIZE, ByteOffset, LayerIndex};
use xts::{Cipher, Cursor, SharedSlice};

impl<S: Store> Pipeline<S> {
    /// Decrypts a range from a layer's data file itself, where that is memory and has all of its blocks. `None`
    /// when this is not the way.
    pub(super) fn read_in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
        layer: LayerIndex,
    ) -> Option<Progress> {
        let host = self.store.mapped(layer, at.0, len as usize)?;
        self.in_place(id, at, len, layer, |cipher, slices| {
            // SAFETY: the store maps `len` bytes at `host` for as long as it lives; the blocks have data, so
            // their pages are there. Guest memory is mapped elsewhere.
            unsafe { cipher.decrypt_from(at, host, len as usize, slices, cursor) };
        })
    }

    /// Encrypts a range into the top layer's data file itself, where that is memory and has all of its blocks: the
    /// map stays as it is. Each block goes through this pipeline's slot, so that a death leaves it
    /// old or new. `None` when this is not the way.
    pub(super) fn write_in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
    ) -> Option<Progress> {
        let host = self.store.mapped_to_write(at.0, len as usize)?;
        let redo = self.redo.take().or_else(|| self.volume.redo_slot())?;
        let prepare = |next: usize| {
            if redo.waits_for_lines() {
                let in_block = at.plus(next as u64).in_block();
                let part = (len - next as u64).min(BLOCK_SIZE - in_block);
                // SAFETY: `next` is `len` at most, for which the store maps memory at `host`.
                bring_near(unsafe { host.add(next) }, part as usize);
            }
        };
        prepare(0);
        let progress = self.in_place(id, at, len, LayerIndex::TOP, |cipher, slices| {
            let copy = |done: usize, part: usize| {
                // SAFETY: the store maps `len` bytes at `host` to be written to for as long as it lives; the
                // blocks have data, so their pages are there; `done` and `part` lie within `len`. It is published
                // below, while the blocks are marked.
                unsafe { redo.copy(at.plus(done as u64), part, host.add(done)) };
                prepare(done + part);
            };
            // SAFETY: the slot's block is this pipeline's alone, and guest memory is mapped elsewhere.
            unsafe {
                cipher.encrypt_by_blocks(at, slices, cursor, len as usize, redo.block(), copy);
            }
            redo.publish();
        });
        self.redo = Some(redo);
        progress
    }

    /// Has `transform` done with a range that has data of `layer` alone: no buffer and no operation is needed.
    fn in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        layer: LayerIndex,
        transform: impl FnOnce(&mut Cipher, &[SharedSlice]),
    ) -> Option<Progress> {
        if self.is_burst_over() {
            return Some(Progress::NoRoom);
        }
        let blocks = at.blocks(len);
        let count = blocks.end - blocks.start;
        let found = Run {
            what: Source::Layer(layer),
            blocks: count,
        };
        let has_all = |volume: &Volume| {
            let run = volume.lookup(blocks.start, count);
            matches!(run, Ok(Some(run)) if run == found)
        };
        if !has_all(&self.volume) {
            return None;
        }
        let Some(mark) = self.volume.marks().try_shared(blocks.clone()) else {
            return Some(Progress::InUse);
        };
        // With the blocks marked the answer stays true: none of them can become a hole.
        let still = has_all(&self.volume);
        if still {
            // What is written in place keeps nothing that a sync would.
            self.is_durable_alone(id, &blocks, true);
        }
        let cipher = self.ciphers.as_mut().and_then(|all| all.layer(layer));
        if let (true, Some(cipher)) = (still, cipher) {
            transform(cipher, &find(&mut self.requests, id).memory.slices);
        }
        self.volume.marks().release(mark);
        self.done_at_once(len);
        still.then(|| self.advance(id, len))
    }
}

/// Has the start of a block of the data file fetched while what it will have is encrypted; once the copy has begun,
/// the processor fetches the rest by itself. Without it the copy waits for each line, and a write into the
/// caches takes a quarter longer; to fetch the whole block keeps the cipher waiting, a tenth (docs/performance.md).
#[cfg(target_arch = "x86_64")]
fn bring_near(start: NonNull<u8>, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    /// Bytes that are fetched together.
    const LINE: usize = 64;
    /// Bytes that are on their way at a time.
    const AHEAD: usize = 16 * LINE;
    for line in (0..len.min(AHEAD)).step_by(LINE) {
        let line = start.as_ptr().wrapping_add(line).cast_const();
        // SAFETY: it is a hint, whatever is there.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
}

/// There is nothing to say this to another processor by.
#[cfg(not(target_arch = "x86_64"))]
fn bring_near(_: NonNull<u8>, _: usize) {}
