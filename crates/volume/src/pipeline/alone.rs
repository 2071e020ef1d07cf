//! Blocks that a request is to have alone.
//!
//! It does not wait in line for them: it is tried again each turn. Meanwhile it wants the first of them, so that nobody
//! begins to share that one. A request that goes another way at a later try, or ends, wants it no more; else it would
//! keep out itself.

use std::ops::Range;

use crate::VolumeError;
use crate::marks::BlockMark;
use crate::store::Store;

use super::piece::RequestId;
use super::request::RequestKind;
use super::scheduler::{Pipeline, find};

impl<S: Store> Pipeline<S> {
    /// Marks as many of the first of `blocks` for a request alone as are free. When none is, the request wants the first
    /// one until it is tried again.
    pub(super) fn mark_alone(&mut self, id: RequestId, blocks: Range<u64>) -> Option<BlockMark> {
        let before = self.wanted.take();
        match self.volume.marks().want_alone(blocks, before) {
            Ok(mark) => Some(mark),
            Err(wanted) => {
                find(&mut self.requests, id).wanted = Some(wanted);
                None
            }
        }
    }

    /// A request is tried again: what it wants is this try's.
    pub(super) fn take_wanted(&mut self, id: RequestId) {
        self.wanted = find(&mut self.requests, id).wanted.take();
    }

    /// A try did not come as far as to what the request wants.
    pub(super) fn keep_wanted(&mut self, id: RequestId) {
        if let Some(wanted) = self.wanted.take() {
            find(&mut self.requests, id).wanted = Some(wanted);
        }
    }

    /// A try did without what the request wanted.
    pub(super) fn drop_wanted(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            self.volume.marks().want_no_more(wanted);
        }
    }

    /// Has copies that have not begun all of their operations end with those that they have begun.
    pub(super) fn give_up_copies(&mut self) {
        for id in &self.waiting {
            let request = find(&mut self.requests, *id);
            if matches!(request.asked().kind, RequestKind::CopyUp { .. }) {
                request.outcome.fail(VolumeError::Stopped);
            }
        }
    }
}
