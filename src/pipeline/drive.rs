//! The pipeline: how requests are cut, issued, continued and finished.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cipher::{Cipher, Cursor};
use crate::store::{BufferPool, Store, StoreCompletion, StoreError, StoreFile, StoreOp, Tag};
use crate::units::{BLOCK_SIZE, ByteOffset, SECTOR_SIZE};
use crate::volume::Volume;

use super::OpError;
use super::flush::{FlushJob, Punches};
use super::op::{Finished, Op, OpKind};
use super::piece::{Piece, RequestId};
use super::slots::Slots;

/// Bytes of a ciphertext buffer: a piece this large is still in the L2 cache when it is submitted.
pub(super) const BUFFER_LEN: usize = 64 * 1024;
/// Buffers of a pipeline.
const BUFFERS: usize = 128;
/// Bytes that are issued before completions are looked at: pieces are encrypted, or decrypted again,
/// while they are in the L2 cache, and what is encrypted is on its way while the next is.
const BURST: u64 = 256 * 1024;

/// A request under way.
pub(super) struct Request {
    pub(super) op: Op,
    /// Bytes of the range for which pieces were issued.
    issued: u64,
    /// Where in the guest's memory the next piece starts.
    cursor: Cursor,
    /// Pieces not completed yet.
    pub(super) outstanding: u32,
    pub(super) error: Option<OpError>,
    /// The flush that the request ends with, once it has begun.
    pub(super) flush: Option<Box<FlushJob>>,
}

/// How far a request came when it was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It can go on at once.
    More,
    /// Everything is issued; completions will carry it on.
    Issued,
    /// No buffer or no room in the store: whoever comes later has to wait too.
    NoRoom,
    /// Its blocks, or the flush, are in use: later requests may pass.
    InUse,
}

/// Serves requests on one volume for one thread.
pub struct Pipeline<S> {
    pub(super) volume: Arc<Volume>,
    pub(super) store: S,
    /// Taken away only while no request is under way, so whoever carries one on finds it.
    pub(super) cipher: Option<Cipher>,
    pub(super) pool: BufferPool,
    pub(super) requests: Slots<Request>,
    pub(super) pieces: Slots<Piece>,
    /// Requests that could not go on, in the order in which they came.
    waiting: VecDeque<RequestId>,
    /// The first of `waiting` needs a buffer or room.
    starved: bool,
    /// Bytes issued since completions were looked at.
    burst: u64,
    pub(super) punches: Punches,
    finished: Vec<Finished>,
    completions: Vec<StoreCompletion>,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline with buffers of its own. Without a cipher it only flushes, until it gets one.
    ///
    /// # Errors
    /// [`StoreError`] when the buffers cannot be mapped.
    pub fn new(
        volume: Arc<Volume>,
        mut store: S,
        cipher: impl Into<Option<Cipher>>,
    ) -> Result<Self, StoreError> {
        let pool = BufferPool::new(BUFFERS, BUFFER_LEN)?;
        store.adopt(&pool);
        Ok(Self {
            volume,
            store,
            cipher: cipher.into(),
            pool,
            requests: Slots::with_capacity(256),
            pieces: Slots::with_capacity(256),
            waiting: VecDeque::with_capacity(256),
            starved: false,
            burst: 0,
            punches: Punches::default(),
            finished: Vec::with_capacity(256),
            completions: Vec::with_capacity(256),
        })
    }

    /// The store, for what is special to it (waiting, watching eventfds).
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Whether data can be encrypted and decrypted.
    pub fn has_key(&self) -> bool {
        self.cipher.is_some()
    }

    /// Gives the pipeline a cipher of the layer's DEK.
    pub fn set_key(&mut self, cipher: Cipher) {
        self.cipher = Some(cipher);
    }

    /// Destroys the cipher, if no request is under way; whether it is gone. From then on flushes
    /// are served and everything else fails with [`OpError::NoKey`], reads of zeros too: a disk
    /// whose key is revoked tells a guest nothing.
    pub fn drop_key(&mut self) -> bool {
        if self.requests.is_empty() {
            self.cipher = None;
        }
        self.cipher.is_none()
    }

    /// Serves `volume` from now on: the same disk, grown. No request may be under way; holes may.
    pub fn set_volume(&mut self, volume: Arc<Volume>) {
        debug_assert!(self.requests.is_empty(), "requests of the old volume");
        self.volume = volume;
    }

    /// Whether ciphertext is overwritten before its space is given back.
    pub fn set_overwrite(&mut self, overwrite: bool) {
        self.punches.overwrite = overwrite;
    }

    /// Takes a request on. Its end comes out of [`Pipeline::take_finished`], perhaps at once.
    pub fn submit(&mut self, op: Op) {
        let range = self.check_range(&op);
        let id = self.requests.insert(Request {
            op,
            issued: 0,
            cursor: Cursor::default(),
            outstanding: 0,
            error: None,
            flush: None,
        });
        if let Err(error) = range {
            return self.finish(id, Err(error));
        }
        if self.starved {
            self.waiting.push_back(id);
            return;
        }
        match self.drive(id) {
            Progress::More | Progress::Issued => {}
            Progress::NoRoom => {
                self.starved = true;
                self.waiting.push_front(id);
            }
            Progress::InUse => self.waiting.push_back(id),
        }
    }

    /// Carries on with what the store has completed and with what was waiting.
    pub fn poll(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.store.reap(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.burst = 0;
        self.retry_waiting();
        self.punch_some();
    }

    /// Moves the requests that were finished to the end of `into`.
    pub fn take_finished(&mut self, into: &mut Vec<Finished>) {
        into.append(&mut self.finished);
    }

    /// Whether a request waits for something that another queue has: nothing of ours will wake us
    /// then, so [`Pipeline::poll`] has to be called again soon.
    pub fn waits_for_others(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a request can go on as soon as what was issued has been submitted.
    pub fn is_between_bursts(&self) -> bool {
        self.burst >= BURST && self.starved
    }

    /// Whether no request and no hole is under way.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.pieces.is_empty()
    }

    fn check_range(&self, op: &Op) -> Result<(), OpError> {
        let end = op.at.0.saturating_add(op.len);
        let whole = op.at.0.is_multiple_of(SECTOR_SIZE) && op.len.is_multiple_of(SECTOR_SIZE);
        if whole && end <= self.volume.geometry().size {
            Ok(())
        } else {
            Err(OpError::Range { at: op.at.0, end })
        }
    }

    fn retry_waiting(&mut self) {
        self.starved = false;
        for _ in 0..self.waiting.len() {
            let Some(id) = self.waiting.pop_front() else {
                return;
            };
            match self.drive(id) {
                Progress::More | Progress::Issued => {}
                Progress::InUse => self.waiting.push_back(id),
                Progress::NoRoom => {
                    self.starved = true;
                    self.waiting.push_front(id);
                    return;
                }
            }
        }
    }

    /// Issues pieces of a request until it is through, or cannot go on now.
    fn drive(&mut self, id: RequestId) -> Progress {
        loop {
            let Some(request) = self.requests.get_mut(id) else {
                return Progress::Issued;
            };
            let progress = if request.flush.is_some() {
                self.drive_flush(id)
            } else if request.error.is_some() || request.issued == request.op.len {
                if request.outstanding > 0 {
                    return Progress::Issued;
                }
                self.after_data(id)
            } else if self.cipher.is_none() {
                request.error = Some(OpError::NoKey);
                Progress::More
            } else {
                match request.op.kind {
                    OpKind::Read => self.issue_read(id),
                    OpKind::Write { .. } => self.issue_write(id),
                    OpKind::Zero { release, .. } => self.issue_zero(id, release),
                    OpKind::Flush => Progress::Issued,
                }
            };
            if progress != Progress::More {
                return progress;
            }
        }
    }

    /// All pieces are done: flush, if the request asks for it, or finish.
    fn after_data(&mut self, id: RequestId) -> Progress {
        let Some(request) = self.requests.get_mut(id) else {
            return Progress::Issued;
        };
        if let Some(error) = request.error.take() {
            self.finish(id, Err(error));
            return Progress::Issued;
        }
        match request.op.kind {
            OpKind::Flush
            | OpKind::Write { durable: true }
            | OpKind::Zero { durable: true, .. } => {
                request.flush = Some(Box::default());
                Progress::More
            }
            OpKind::Read | OpKind::Write { .. } | OpKind::Zero { .. } => {
                self.finish(id, Ok(()));
                Progress::Issued
            }
        }
    }

    pub(super) fn finish(&mut self, id: RequestId, result: Result<(), OpError>) {
        if let Some(request) = self.requests.remove(id) {
            let Op { token, memory, .. } = request.op;
            self.finished.push(Finished {
                token,
                result,
                memory,
            });
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.burst < BURST && self.store.has_room()
    }

    /// Where the next piece of a request starts, how many bytes are left, and its cursor.
    pub(super) fn position(&mut self, id: RequestId) -> Option<(ByteOffset, u64, Cursor)> {
        let request = self.requests.get_mut(id)?;
        let at = request.op.at.plus(request.issued);
        Some((at, request.op.len - request.issued, request.cursor))
    }

    /// Notes that `bytes` more of the request were issued, with or without an operation.
    pub(super) fn advance(&mut self, id: RequestId, bytes: u64, operation: bool) {
        if operation {
            self.burst += bytes;
        }
        if let Some(request) = self.requests.get_mut(id) {
            request.issued += bytes;
            request.outstanding += u32::from(operation);
            request
                .cursor
                .advance(&request.op.memory.slices, bytes as usize);
        }
    }

    pub(super) fn submit_piece(&mut self, piece: Piece, op: StoreOp) {
        let tag = Tag(self.pieces.insert(piece));
        self.store.submit(tag, op);
    }

    fn complete(&mut self, completion: StoreCompletion) {
        let StoreCompletion {
            tag,
            result,
            buffer,
        } = completion;
        let Some(piece) = self.pieces.remove(tag.0) else {
            return;
        };
        let request = match piece {
            Piece::Read {
                request,
                at,
                len,
                skip,
                cursor,
                blocks,
            } => {
                if let (Ok(()), Some(buffer), Some(request), Some(cipher)) = (
                    &result,
                    &buffer,
                    self.requests.get_mut(request),
                    &mut self.cipher,
                ) {
                    let from = &buffer.as_slice()[skip..skip + len];
                    cipher.decrypt(at, from, &request.op.memory.slices, cursor);
                }
                self.volume.locks().release_shared(blocks);
                request
            }
            Piece::Write {
                request,
                blocks,
                exclusive,
                whole,
            } => {
                if whole && result.is_ok() {
                    self.volume.map().set_data(blocks.clone());
                }
                match exclusive {
                    true => self.volume.locks().release_exclusive(blocks),
                    false => self.volume.locks().release_shared(blocks),
                }
                request
            }
            Piece::Merge {
                request,
                at,
                len,
                cursor,
                zeros,
            } => {
                let block = at.block().0..at.block().0 + 1;
                match (&result, buffer) {
                    (Ok(()), Some(mut buffer)) => {
                        let skip = at.in_block() as usize;
                        let into = &mut buffer.as_mut_slice()[skip..skip + len];
                        self.encrypt(request, at, cursor, zeros, into);
                        // The block keeps its state, so whether it is written as a whole or not
                        // makes no difference to the map.
                        let piece = Piece::Write {
                            request,
                            blocks: block,
                            exclusive: true,
                            whole: false,
                        };
                        let (file, at) = (StoreFile::Data, at.block().offset().0);
                        let op = StoreOp::Write {
                            file,
                            at,
                            len: BLOCK_SIZE as usize,
                            buffer,
                        };
                        return self.submit_piece(piece, op);
                    }
                    (_, buffer) => {
                        self.volume.locks().release_exclusive(block);
                        return self.piece_done(request, result, buffer);
                    }
                }
            }
            Piece::Flush { request } => request,
            Piece::Overwrite { blocks, done } => {
                return self.overwritten(blocks, done, result, buffer);
            }
            Piece::SyncOverwritten { blocks } => return self.overwritten_synced(blocks, result),
            Piece::Punch { blocks } => return self.punched(blocks, result),
        };
        self.piece_done(request, result, buffer);
    }

    /// Gives the buffer of a completed piece back and carries its request on.
    fn piece_done(
        &mut self,
        id: RequestId,
        result: Result<(), StoreError>,
        buffer: Option<crate::store::IoBuffer>,
    ) {
        if let Some(buffer) = buffer {
            self.pool.put(buffer);
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.outstanding -= 1;
        if let Err(error) = result {
            request.error.get_or_insert(error.into());
        }
        let through = request.issued == request.op.len || request.error.is_some();
        if request.outstanding == 0 && through && !self.waiting.contains(&id) {
            match self.drive(id) {
                Progress::More | Progress::Issued => {}
                Progress::NoRoom | Progress::InUse => self.waiting.push_back(id),
            }
        }
    }
}
