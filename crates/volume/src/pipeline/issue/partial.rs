//! Writes of less than a block, of the guest's bytes or of zeros.

use crate::marks::BlockMark;
use crate::pipeline::piece::{PartOfBlock, Piece, RequestId};
use crate::pipeline::scheduler::{Pipeline, Progress, Rest, find};
use crate::store::{IoBuffer, Store};
use crate::{Source, Volume};
use keys::units::{BLOCK_SIZE, ByteOffset, LayerIndex};
use xts::CipherStack;

impl<S: Store> Pipeline<S> {
    /// Issues what the rest of a request has of its first block.
    pub(super) fn issue_partial(&mut self, id: RequestId, rest: Rest, zeros: bool) -> Progress {
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let Rest {
            at,
            len: left,
            cursor,
        } = rest;
        let len = left.min(BLOCK_SIZE - at.in_block());
        let part = PartOfBlock {
            at,
            len: len as usize,
            cursor,
            zeros,
        };
        let block = at.blocks(len);
        let top = Source::Layer(LayerIndex::TOP);
        let source_now = |volume: &Volume| volume.lookup(block.start, 1);
        let alignment = self.store.alignment();
        let fits = at.0.is_multiple_of(alignment) && len.is_multiple_of(alignment);
        // In a block that the top layer has, sectors can be replaced without looking at the others,
        // since XTS encrypts each AES block by itself; all others keep what they have.
        let exclusive = match source_now(&self.volume) {
            Ok(Some(run)) => !(fits && run.what == top),
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
        let mark = match exclusive {
            true => self.mark_alone(id, block.clone()),
            false => self.volume.marks().try_shared(block.clone()),
        };
        let Some(mark) = mark else {
            return Progress::InUse;
        };
        let marks = self.volume.marks();
        let source = match source_now(&self.volume) {
            Ok(Some(run)) => run.what,
            Ok(None) | Err(_) => {
                marks.release(mark);
                return Progress::InUse;
            }
        };
        if (source == Source::Zeros && zeros) || (source != top && !exclusive) {
            // Another queue made it zeros meanwhile: look again from the start.
            marks.release(mark);
            return Progress::More;
        }
        let Some(buffer) = self.pool.take() else {
            marks.release(mark);
            return Progress::NoRoom;
        };
        match source {
            Source::Layer(layer) if exclusive => {
                let owed = self.begin_piece(id, len);
                self.submit_rewrite(owed, mark, layer, Some(part), buffer);
            }
            Source::Layer(_) => self.write_sectors(id, part, mark, buffer),
            Source::Zeros => self.write_among_zeros(id, part, mark, buffer),
        }
        Progress::More
    }

    /// Sectors of a block that the top layer has.
    fn write_sectors(
        &mut self,
        id: RequestId,
        part: PartOfBlock,
        mark: BlockMark,
        mut buffer: IoBuffer,
    ) {
        self.encrypt(id, part, &mut buffer.as_mut_slice()[..part.len]);
        let durable = self.durable_write(id, &mark.blocks());
        let piece = Piece::Write {
            owed: self.begin_piece(id, part.len as u64),
            mark,
            whole: false,
            durable,
        };
        self.submit_write(piece, part.at, part.len, buffer);
    }

    /// A whole block, zeros but for a part of it.
    fn write_among_zeros(
        &mut self,
        id: RequestId,
        part: PartOfBlock,
        mark: BlockMark,
        mut buffer: IoBuffer,
    ) {
        let block = mark.blocks();
        let start = ByteOffset(block.start * BLOCK_SIZE);
        let into = &mut buffer.as_mut_slice()[..BLOCK_SIZE as usize];
        let skip = part.at.in_block() as usize;
        let end = skip + part.len;
        if let Some(cipher) = self.ciphers.as_mut().and_then(CipherStack::top) {
            cipher.encrypt_zeros(start, &mut into[..skip]);
            cipher.encrypt_zeros(part.at.plus(part.len as u64), &mut into[end..]);
        }
        self.encrypt(id, part, &mut into[skip..end]);
        let durable = self.durable_write(id, &block);
        let piece = Piece::Write {
            owed: self.begin_piece(id, part.len as u64),
            mark,
            whole: true,
            durable,
        };
        self.submit_write(piece, start, BLOCK_SIZE as usize, buffer);
    }

    /// Encrypts a part of a block for the top layer.
    pub(in crate::pipeline) fn encrypt(
        &mut self,
        id: RequestId,
        part: PartOfBlock,
        into: &mut [u8],
    ) {
        let Some(cipher) = self.ciphers.as_mut().and_then(CipherStack::top) else {
            return;
        };
        if part.zeros {
            cipher.encrypt_zeros(part.at, into);
        } else {
            let slices = &find(&mut self.requests, id).memory.slices;
            cipher.encrypt(part.at, slices, part.cursor, into);
        }
    }
}
