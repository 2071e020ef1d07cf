//! Discards and writes of zeroes: changes of the map, and of the parts of blocks at both ends.

use crate::pipeline::piece::RequestId;
use crate::pipeline::scheduler::{Pipeline, Progress, Rest};
use crate::store::Store;
use crate::{BlockState, Source};
use keys::units::BLOCK_SIZE;

/// Blocks that are made zero under one mark.
pub(super) const ZERO_STEP: u64 = 1024;

impl<S: Store> Pipeline<S> {
    pub(in crate::pipeline) fn issue_zero(&mut self, id: RequestId, release: bool) -> Progress {
        let rest = self.rest(id);
        let Rest { at, len: left, .. } = rest;
        if at.in_block() != 0 || left < BLOCK_SIZE {
            let len = left.min(BLOCK_SIZE - at.in_block());
            return match self.source(at, len) {
                Ok(Some((Source::Zeros, _))) => self.advance(id, len),
                Ok(Some((Source::Layer(_), _))) => self.issue_partial(id, rest, true),
                Ok(None) => Progress::InUse,
                Err(error) => self.fail(id, error),
            };
        }
        if self.is_burst_over() {
            return Progress::NoRoom;
        }
        let first = at.block().0;
        let blocks = first..first + (left / BLOCK_SIZE).min(ZERO_STEP);
        match self.volume.map().ensure(blocks.clone()) {
            Ok(true) => {}
            Ok(false) => return Progress::InUse,
            Err(error) => return self.fail(id, error),
        }
        let Some(mark) = self.mark_alone(id, blocks) else {
            return Progress::InUse;
        };
        let blocks = mark.blocks();
        let to = match release {
            true => BlockState::ZeroHeld,
            false => BlockState::Zero,
        };
        let map = self.volume.map();
        map.set_zero(blocks.clone(), to);
        if !self.volume.lower().is_empty() {
            map.hide(blocks.clone());
        }
        self.volume.marks().release(mark);
        if release {
            self.note_discard();
        }
        let count = blocks.end - blocks.start;
        self.zeroed(count);
        self.advance(id, count * BLOCK_SIZE)
    }
}
