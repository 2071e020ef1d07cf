//! Copy-up: blocks of lower layers into the top layer.

use crate::marks::BlockMark;
use crate::pipeline::piece::{Owed, PartOfBlock, Piece, RequestId};
use crate::pipeline::scheduler::{Pipeline, Progress, Rest};
use crate::store::{BUFFER_LEN, IoBuffer, Store, StoreFile, StoreOp};
use crate::{Missing, Volume};
use keys::units::{BLOCK_SIZE, LayerIndex};

use super::zero::ZERO_STEP;

impl<S: Store> Pipeline<S> {
    /// Copies up what the top layer is missing when the `drop` layers beneath it are to go.
    pub(in crate::pipeline) fn issue_copy_up(&mut self, id: RequestId, drop: usize) -> Progress {
        let Rest { at, len: left, .. } = self.rest(id);
        let all = at.blocks(left);
        let missing = |volume: &Volume, most: u64| volume.missing(all.start, most, drop);
        let run = match missing(&self.volume, all.end - all.start) {
            Ok(Some(run)) => run,
            Ok(None) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        };
        let most = match run.what {
            Missing::Nothing => return self.advance(id, left.min(run.blocks * BLOCK_SIZE)),
            Missing::Content(_) => BUFFER_LEN as u64 / BLOCK_SIZE,
            Missing::Zeros => ZERO_STEP,
        };
        if !self.has_room() {
            return Progress::NoRoom;
        }
        let blocks = all.start..all.start + run.blocks.min(most);
        let Some(mark) = self.mark_alone(id, blocks) else {
            return Progress::InUse;
        };
        let blocks = mark.blocks();
        let count = blocks.end - blocks.start;
        // The guest may have written some of them until they were marked.
        let still = matches!(missing(&self.volume, count), Ok(Some(now)) if now.what == run.what
            && now.blocks == count);
        if !still {
            self.volume.marks().release(mark);
            return Progress::More;
        }
        let bytes = left.min(count * BLOCK_SIZE);
        let Missing::Content(layer) = run.what else {
            self.volume.map().hide(blocks);
            self.volume.marks().release(mark);
            return self.advance(id, bytes);
        };
        let Some(buffer) = self.pool.take() else {
            self.volume.marks().release(mark);
            return Progress::NoRoom;
        };
        let owed = self.begin_piece(id, bytes);
        self.submit_rewrite(owed, mark, layer, None, buffer);
        Progress::More
    }

    /// Reads blocks of a layer, to write them to the top layer with `part` of them replaced.
    pub(super) fn submit_rewrite(
        &mut self,
        owed: Owed,
        mark: BlockMark,
        layer: LayerIndex,
        part: Option<PartOfBlock>,
        buffer: IoBuffer,
    ) {
        let blocks = mark.blocks();
        let op = StoreOp::Read {
            file: StoreFile::Data(layer),
            at: blocks.start * BLOCK_SIZE,
            len: ((blocks.end - blocks.start) * BLOCK_SIZE) as usize,
            buffer,
        };
        let piece = Piece::Rewrite {
            owed,
            mark,
            layer,
            part,
        };
        self.submit_piece(piece, op);
    }
}
