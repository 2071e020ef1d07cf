//! Writes that are durable by themselves, and syncs that fail.

use std::ops::Range;
use std::sync::Arc;

use crate::store::{BUFFER_LEN, Store, StoreCompletion, StoreError};
use crate::{DurableWrite, FailedSync};

use super::RequestError;
use super::piece::{Piece, RequestId};
use super::request::RequestKind;
use super::scheduler::{Pipeline, find};

impl<S: Store> Pipeline<S> {
    /// Whether the write of `blocks`, which are marked, makes a part of the request durable by itself;
    /// where the request is to be durable and this does not make it so, a flush follows. `can` tells
    /// whether the write could be made so.
    pub(super) fn is_durable_alone(
        &mut self,
        id: RequestId,
        blocks: &Range<u64>,
        can: bool,
    ) -> bool {
        let request = find(&mut self.requests, id);
        if !matches!(request.asked().kind, RequestKind::Write { durable: true }) {
            return false;
        }
        let alone = can && self.volume.map().has_durable_data(blocks.clone());
        request.unsynced |= !alone;
        alone
    }

    /// As [`Pipeline::is_durable_alone`] for a write by the store, which is counted from now on if it is. Of
    /// a large request a flush makes all parts durable at once.
    pub(super) fn durable_write(
        &mut self,
        id: RequestId,
        blocks: &Range<u64>,
    ) -> Option<DurableWrite> {
        let is_small = find(&mut self.requests, id).asked().len <= BUFFER_LEN as u64;
        let can = self.store.writes_durably() && is_small;
        let alone = self.is_durable_alone(id, blocks, can);
        alone.then(|| self.volume.flushes().durable_writes().begin())
    }

    /// Notes a sync that has failed before anything is made of what completed with it.
    pub(super) fn look_for_failed_sync(&self, completion: &StoreCompletion) {
        let Err(error) = &completion.result else {
            return;
        };
        match self.pieces.get(completion.tag.0 as usize) {
            Some(Piece::Write {
                durable: Some(_), ..
            }) if is_failed_sync(error) => self.volume.set_failed_sync(FailedSync::Data, error),
            Some(Piece::Sync { file, .. }) => self.volume.set_failed_sync(*file, error),
            _ => {}
        }
    }

    /// Notes that a sync failed.
    pub(super) fn sync_failed(&mut self, file: FailedSync, error: StoreError) -> RequestError {
        self.volume.set_failed_sync(file, &error);
        RequestError::SyncFailed {
            file,
            source: Arc::new(error),
        }
    }
}

/// Whether a durable write has failed as a sync does. Its blocks were allocated before, so what finds no space
/// is the write itself (a file system that copies on write); of a file past the page cache no sync
/// fails so.
pub(super) fn is_failed_sync(error: &StoreError) -> bool {
    !error.is_no_space()
}
