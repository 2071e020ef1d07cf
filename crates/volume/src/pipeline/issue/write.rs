//! Writes of whole blocks.

use crate::pipeline::piece::{Piece, RequestId};
use crate::pipeline::scheduler::{Pipeline, Progress, Rest, find};
use crate::store::{BUFFER_LEN, IoBuffer, Store, StoreFile, StoreOp};
use keys::units::{BLOCK_SIZE, ByteOffset};
use xts::CipherStack;

impl<S: Store> Pipeline<S> {
    pub(in crate::pipeline) fn issue_write(&mut self, id: RequestId) -> Progress {
        let rest = self.rest(id);
        let Rest {
            at,
            len: left,
            cursor,
        } = rest;
        let most = left.min(BUFFER_LEN as u64 - at.in_block());
        match self.volume.map().ensure(at.blocks(most)) {
            Ok(true) => {}
            Ok(false) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        }
        if let Some(progress) = self.write_in_place(id, at, most, cursor) {
            return progress;
        }
        if at.in_block() != 0 || left < BLOCK_SIZE {
            return self.issue_partial(id, rest, false);
        }
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let len = (left / BLOCK_SIZE * BLOCK_SIZE).min(BUFFER_LEN as u64);
        let blocks = at.blocks(len);
        let Some(mark) = self.volume.marks().try_shared(blocks.clone()) else {
            return Progress::InUse;
        };
        let Some(mut buffer) = self.pool.take() else {
            self.volume.marks().release(mark);
            return Progress::NoRoom;
        };
        if let Some(cipher) = self.ciphers.as_mut().and_then(CipherStack::top) {
            let into = &mut buffer.as_mut_slice()[..len as usize];
            let slices = &find(&mut self.requests, id).memory.slices;
            cipher.encrypt(at, slices, cursor, into);
        }
        let durable = self.durable_write(id, &blocks);
        let piece = Piece::Write {
            owed: self.begin_piece(id, len),
            mark,
            whole: true,
            durable,
        };
        self.submit_write(piece, at, len as usize, buffer);
        Progress::More
    }

    /// Writes the first `len` bytes of a buffer to the top layer.
    pub(in crate::pipeline) fn submit_write(
        &mut self,
        piece: Piece,
        at: ByteOffset,
        len: usize,
        buffer: IoBuffer,
    ) {
        let durable = matches!(
            &piece,
            Piece::Write {
                durable: Some(_),
                ..
            }
        );
        let op = StoreOp::Write {
            file: StoreFile::TOP,
            at: at.0,
            len,
            durable,
            buffer,
        };
        self.submit_piece(piece, op);
    }
}
