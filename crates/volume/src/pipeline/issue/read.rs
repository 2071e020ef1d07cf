//! Reads: from a layer's ciphertext, or zeros.

use crate::pipeline::piece::{Piece, RequestId};
use crate::pipeline::scheduler::{Pipeline, Progress, Rest, find};
use crate::store::{BUFFER_LEN, Store, StoreFile, StoreOp};
use crate::{Source, VolumeError};
use keys::units::{BLOCK_SIZE, ByteOffset};

impl<S: Store> Pipeline<S> {
    pub(in crate::pipeline) fn issue_read(&mut self, id: RequestId) -> Progress {
        let Rest {
            at,
            len: left,
            cursor,
        } = self.rest(id);
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        let (source, len) = match self.source(at, most) {
            Ok(Some(found)) => found,
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
        let Source::Layer(layer) = source else {
            if self.is_burst_over() {
                return Progress::NoRoom;
            }
            self.done_at_once(len);
            let request = find(&mut self.requests, id);
            cursor.fill_zeros(&request.memory.slices, len as usize);
            return self.advance(id, len);
        };
        if let Some(progress) = self.read_in_place(id, at, len, cursor, layer) {
            return progress;
        }
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let Some(mark) = self.volume.marks().try_shared(at.blocks(len)) else {
            return Progress::InUse;
        };
        // Only now, with the blocks marked, does what the map says stay true until the read is done.
        if !matches!(self.source(at, len), Ok(Some(still)) if still == (source, len)) {
            self.volume.marks().release(mark);
            return Progress::More;
        }
        let Some(buffer) = self.pool.take() else {
            self.volume.marks().release(mark);
            return Progress::NoRoom;
        };
        let alignment = self.store.alignment();
        let start = at.0 / alignment * alignment;
        let aligned = (at.0 + len).next_multiple_of(alignment) - start;
        let piece = Piece::Read {
            owed: self.begin_piece(id, len),
            at,
            len: len as usize,
            skip: (at.0 - start) as usize,
            layer,
            cursor,
            mark,
        };
        let op = StoreOp::Read {
            file: StoreFile::Data(layer),
            at: start,
            len: aligned as usize,
            buffer,
        };
        self.submit_piece(piece, op);
        Progress::More
    }

    /// Where the content from `at` on is, and of how many bytes, at most `most`, it is there; `None`
    /// while someone else loads a map.
    pub(super) fn source(
        &self,
        at: ByteOffset,
        most: u64,
    ) -> Result<Option<(Source, u64)>, VolumeError> {
        let blocks = at.blocks(most);
        let run = self
            .volume
            .lookup(blocks.start, blocks.end - blocks.start)?;
        Ok(run.map(|run| {
            let end = (blocks.start + run.blocks) * BLOCK_SIZE;
            (run.what, most.min(end - at.0))
        }))
    }
}
