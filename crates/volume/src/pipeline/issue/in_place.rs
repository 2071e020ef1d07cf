//! Reads and overwrites of a data file that is memory (tmpfs, DAX): without a buffer and an operation.

use crate::pipeline::piece::RequestId;
use crate::pipeline::scheduler::{Pipeline, Progress, find};
use crate::store::Store;
use crate::{Run, Source, Volume};
use keys::units::{ByteOffset, LayerIndex};
use xts::{Cursor, Direction};

impl<S: Store> Pipeline<S> {
    /// Transforms a range in a layer's data file itself, where that is memory and has all of its
    /// blocks: the map stays as it is, and no buffer and no operation is needed. `None` when this is
    /// not the way.
    pub(super) fn in_place(
        &mut self,
        id: RequestId,
        at: ByteOffset,
        len: u64,
        cursor: Cursor,
        layer: LayerIndex,
        direction: Direction,
    ) -> Option<Progress> {
        let host = self.store.mapped(layer, at.0, len as usize)?;
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
            // Memory keeps nothing that a sync would.
            self.is_durable_alone(id, &blocks, true);
        }
        let cipher = self.ciphers.as_mut().and_then(|all| all.layer(layer));
        if let (true, Some(cipher)) = (still, cipher) {
            let slices = &find(&mut self.requests, id).memory.slices;
            let len = len as usize;
            match direction {
                // SAFETY: the store maps `len` bytes at `host` for as long as it lives, the top layer's
                // to be written to; the blocks have data, so their pages are there. Guest memory is
                // mapped elsewhere, and nobody makes references into the mapping.
                Direction::Encrypt => unsafe {
                    cipher.encrypt_to(at, slices, cursor, host, len);
                },
                // SAFETY: as above.
                Direction::Decrypt => unsafe {
                    cipher.decrypt_from(at, host, len, slices, cursor);
                },
            }
        }
        self.volume.marks().release(mark);
        still.then(|| self.advance(id, len))
    }
}
