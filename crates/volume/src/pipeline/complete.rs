//! What follows when the store has completed a piece.

use crate::marks::BlockMark;
use crate::must_complete::lost;
use crate::store::{IoBuffer, Store, StoreCompletion, StoreError};
use keys::units::{BLOCK_SIZE, Block, ByteOffset, LayerIndex};
use xts::Cursor;

use super::RequestError;
use super::durable::is_failed_sync;
use super::flush_job::MAP_BUFFER_LEN;
use super::piece::{Owed, PartOfBlock, Piece};
use super::scheduler::{Pipeline, Progress, find};
use crate::{DurableWrite, FailedSync};

/// Bytes of finished requests that the guest is told of before more is encrypted or decrypted, which takes some 10 µs:
/// a guest that looks for completions finds these before it goes to sleep, and asks for more meanwhile.
const ENOUGH: u64 = 32 << 10;

impl<S: Store> Pipeline<S> {
    /// As [`Pipeline::poll`], but no further than there is enough to tell the guest: while it looks at that, and
    /// while what it asks for next is under way, the rest is decrypted. Whether there is a rest.
    pub fn poll_part(&mut self) -> bool {
        self.look_at_completions(ENOUGH);
        self.carry_on();
        !self.completions.is_empty()
    }

    /// Ends pieces until `enough` bytes of requests have finished.
    pub(super) fn look_at_completions(&mut self, enough: u64) {
        self.store.reap(&mut self.reaped);
        let mut reaped = std::mem::take(&mut self.reaped);
        // First, whatever comes before it in the list: none of these ends well any more.
        for completion in &reaped {
            self.look_for_failed_sync(completion);
        }
        self.completions.extend(reaped.drain(..));
        self.reaped = reaped;
        while self.finished_bytes < enough
            && let Some(completion) = self.completions.pop_front()
        {
            self.complete(completion);
        }
    }

    /// The bytes that have finished, when they are enough for the guest to be told at once.
    pub fn enough_finished(&self) -> Option<u64> {
        (self.finished_bytes >= ENOUGH).then_some(self.finished_bytes)
    }

    pub(super) fn complete(&mut self, completion: StoreCompletion) {
        let StoreCompletion {
            tag,
            result,
            buffer,
        } = completion;
        let Some(piece) = self.pieces.try_remove(tag.0 as usize) else {
            lost(&format_args!("the piece of completion {}", tag.0));
        };
        match piece {
            Piece::Read {
                owed,
                at,
                len,
                skip,
                layer,
                cursor,
                mark,
            } => {
                if let (Ok(()), Some(buffer)) = (&result, &buffer) {
                    let from = &buffer.as_slice()[skip..skip + len];
                    self.decrypt(&owed, (at, cursor), layer, from);
                }
                self.volume.marks().release(mark);
                self.piece_done(owed, result.map_err(RequestError::from), buffer);
            }
            Piece::Write {
                owed,
                mark,
                whole,
                durable,
            } => {
                let result = self.written(mark, whole, durable, result);
                self.piece_done(owed, result, buffer);
            }
            Piece::Rewrite {
                owed,
                mark,
                layer,
                part,
            } => match (result, buffer) {
                (Ok(()), Some(buffer)) => self.rewrite(owed, mark, layer, part, buffer),
                (result, buffer) => {
                    self.volume.marks().release(mark);
                    self.piece_done(owed, result.map_err(RequestError::from), buffer);
                }
            },
            Piece::WriteMap { owed } => {
                match buffer {
                    Some(small) if small.as_slice().len() == MAP_BUFFER_LEN => {
                        self.map_pool.put(small);
                    }
                    Some(large) => self.pool.put(large),
                    None => {}
                }
                self.flush_operation_done(owed, result.map_err(RequestError::from));
            }
            Piece::Sync { owed, file } => {
                let result = result.map_err(|error| self.sync_failed(file, error));
                self.flush_operation_done(owed, result);
            }
            Piece::Overwrite { mark, done } => self.overwritten(mark, done, result, buffer),
            Piece::Punch { mark } => self.punched(mark, result),
        }
    }

    /// Decrypts what was read of a layer to the guest.
    fn decrypt(
        &mut self,
        owed: &Owed,
        (at, cursor): (ByteOffset, Cursor),
        layer: LayerIndex,
        from: &[u8],
    ) {
        let request = find(&mut self.requests, owed.get().id);
        match self.ciphers.as_mut().and_then(|all| all.layer(layer)) {
            Some(cipher) => cipher.decrypt(at, from, &request.memory.slices, cursor),
            // A guest must not take what its memory had before for what the disk has.
            None => request.outcome.fail(RequestError::NoKey),
        }
    }

    /// Notes how a write to blocks has ended, and releases them.
    fn written(
        &mut self,
        mark: BlockMark,
        whole: bool,
        durable: Option<DurableWrite>,
        result: Result<(), StoreError>,
    ) -> Result<(), RequestError> {
        match &result {
            Ok(()) if whole => self.volume.map().set_data(mark.blocks()),
            Ok(()) => {}
            Err(_) => self.write_failed(mark.blocks()),
        }
        self.volume.marks().release(mark);
        let result = result.map_err(|error| match durable {
            Some(_) if is_failed_sync(&error) => self.sync_failed(FailedSync::Data, error),
            _ => error.into(),
        });
        // Only now, with a failure noted.
        drop(durable);
        result
    }

    /// Writes what was read of blocks of a layer to the top layer, with a part of it replaced.
    fn rewrite(
        &mut self,
        owed: Owed,
        mark: BlockMark,
        layer: LayerIndex,
        part: Option<PartOfBlock>,
        mut buffer: IoBuffer,
    ) {
        let blocks = mark.blocks();
        let start = Block(blocks.start).offset();
        let len = ((blocks.end - blocks.start) * BLOCK_SIZE) as usize;
        let bytes = &mut buffer.as_mut_slice()[..len];
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.reencrypt(layer, start, bytes);
        }
        let id = owed.get().id;
        if let Some(part) = part {
            let skip = (part.at.0 - start.0) as usize;
            self.encrypt(id, part, &mut bytes[skip..skip + part.len]);
        }
        let durable = self.durable_write(id, &blocks);
        let piece = Piece::Write {
            owed,
            mark,
            // Of the top layer's own blocks the state stays what it is.
            whole: layer != LayerIndex::TOP,
            durable,
        };
        self.submit_write(piece, start, len, buffer);
    }

    /// Gives the buffer of a completed piece back and carries its request on.
    fn piece_done(
        &mut self,
        owed: Owed,
        result: Result<(), RequestError>,
        buffer: Option<IoBuffer>,
    ) {
        if let Some(buffer) = buffer {
            self.pool.put(buffer);
        }
        let id = owed.complete().id;
        let request = find(&mut self.requests, id);
        debug_assert!(request.outstanding > 0, "a piece that was not issued");
        request.outstanding -= 1;
        if let Err(error) = result {
            request.outcome.fail(error);
        }
        let through = request.is_through();
        if request.outstanding == 0 && through && !self.waiting.contains(&id) {
            match self.schedule(id) {
                Progress::More | Progress::Issued => {}
                Progress::NoRoom | Progress::InUse => self.waiting.push_back(id),
            }
        }
    }
}
