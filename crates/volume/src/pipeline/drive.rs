//! The pipeline: how requests are cut, issued, continued and finished.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::store::{
    BUFFER_LEN, BufferPool, IoBuffer, OWN_BUFFERS, Store, StoreCompletion, StoreError, StoreOp, Tag,
};
use crate::{FailedSync, Volume};
use keys::units::{BLOCK_SIZE, Block, ByteOffset, LayerIndex, SECTOR_SIZE};
use xts::{CipherStack, Cursor};

use super::OpError;
use super::durable::is_failed_sync;
use super::flush::{FlushJob, MAP_BUFFER_LEN, MAP_BUFFERS, Waiter};
use super::op::{Finished, Op, OpKind};
use super::outcome::Outcome;
use super::piece::{Part, Piece, RequestId};
use super::punch::Punches;
use super::slots::Slots;

/// Bytes that are issued before completions are looked at: pieces are encrypted, or decrypted again,
/// while they are in the L2 cache, and what is encrypted is on its way while the next is.
const BURST: u64 = (OWN_BUFFERS * BUFFER_LEN) as u64;

/// Blocks that are zeroed before commands and completions are looked at, which takes a millisecond or two.
pub(super) const ZERO_BURST: u64 = 16384;

/// A request under way.
pub(super) struct Request {
    pub(super) op: Op,
    /// Bytes of the range for which pieces were issued.
    issued: u64,
    /// Where in the guest's memory the next piece starts.
    cursor: Cursor,
    /// Pieces not completed yet.
    pub(super) outstanding: u32,
    pub(super) outcome: Outcome,
    /// It waits for the flush that it ends with.
    flushing: bool,
    /// It is to be durable, and some of it is not by itself.
    pub(super) unsynced: bool,
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
    /// Its blocks are in use: later requests may pass.
    InUse,
}

/// Serves requests on one volume for one thread.
pub struct Pipeline<S> {
    pub(super) volume: Arc<Volume>,
    pub(super) store: S,
    /// Taken away only while no request is under way, so whoever carries one on finds them.
    pub(super) ciphers: Option<CipherStack>,
    pub(super) pool: BufferPool,
    /// For map sectors that lie together.
    pub(super) map_pool: BufferPool,
    pub(super) requests: Slots<Request>,
    pub(super) pieces: Slots<Piece>,
    /// Requests that could not go on, in the order in which they came.
    waiting: VecDeque<RequestId>,
    /// The first of `waiting` needs a buffer or room.
    starved: bool,
    /// Bytes issued since completions were looked at.
    burst: u64,
    pub(super) flush: FlushJob,
    /// The last request that zeroes more than is done in one go.
    zeroing: Option<RequestId>,
    pub(super) punches: Punches,
    /// Where it is woken by the end of another queue's flush, and how.
    waker: Option<(usize, Waker)>,
    /// The disk's flushes know of it.
    is_registered: bool,
    finished: Vec<Finished>,
    completions: Vec<StoreCompletion>,
}

impl<S: Store> Pipeline<S> {
    /// A pipeline whose memory no other shares. Without ciphers it only flushes, until it gets some.
    ///
    /// # Errors
    /// [`StoreError`] when there is no memory for buffers.
    pub fn new(
        volume: Arc<Volume>,
        store: S,
        ciphers: impl Into<Option<CipherStack>>,
    ) -> Result<Self, StoreError> {
        Self::with_pool(volume, store, ciphers, BufferPool::alone()?)
    }

    /// As [`Pipeline::new`], with buffers of this pool.
    ///
    /// # Errors
    /// As [`Pipeline::new`].
    pub fn with_pool(
        volume: Arc<Volume>,
        mut store: S,
        ciphers: impl Into<Option<CipherStack>>,
        pool: BufferPool,
    ) -> Result<Self, StoreError> {
        pool.introduce(&mut store);
        Ok(Self {
            volume,
            store,
            ciphers: ciphers.into(),
            pool,
            map_pool: BufferPool::fixed(MAP_BUFFERS, MAP_BUFFER_LEN)?,
            requests: Slots::with_capacity(256),
            pieces: Slots::with_capacity(256),
            waiting: VecDeque::with_capacity(256),
            starved: false,
            burst: 0,
            flush: FlushJob::default(),
            zeroing: None,
            punches: Punches::default(),
            waker: None,
            is_registered: false,
            finished: Vec::with_capacity(256),
            completions: Vec::with_capacity(256),
        })
    }

    /// Makes room for `requests` at a time; it grows by itself where there are more.
    pub fn reserve(&mut self, requests: usize) {
        self.requests.reserve(requests);
        self.waiting
            .reserve(requests.saturating_sub(self.waiting.len()));
        self.finished
            .reserve(requests.saturating_sub(self.finished.len()));
    }

    /// The store, for what is special to it (waiting, watching eventfds).
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The disk that it serves.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Whether data can be encrypted and decrypted.
    pub fn has_key(&self) -> bool {
        self.ciphers.is_some()
    }

    /// Gives the pipeline ciphers of all layers' DEKs.
    pub fn set_key(&mut self, ciphers: CipherStack) {
        self.ciphers = Some(ciphers);
    }

    /// Destroys the ciphers, if no request is under way; whether they are gone. From then on flushes
    /// are served and everything else fails with [`OpError::NoKey`], reads of zeros too: a disk
    /// whose key is revoked tells a guest nothing.
    pub fn drop_key(&mut self) -> bool {
        if self.requests.is_empty() {
            self.ciphers = None;
        }
        self.ciphers.is_none()
    }

    /// Serves `volume` from now on: the same disk, grown or with other layers. Nothing may be under
    /// way. Where the layers are others, the store's files and the key have to be exchanged too.
    pub fn set_volume(&mut self, volume: Arc<Volume>) {
        debug_assert!(self.is_idle(), "requests of the old volume");
        self.stop_punching();
        self.volume = volume;
        self.register();
        self.punch_on();
    }

    /// Has `waker` woken when a request may go on since another queue has flushed. The places of the
    /// queues of a disk are different; one that has none looks again from time to time, as
    /// [`Pipeline::waits_for_others`] tells.
    pub fn set_waker(&mut self, place: usize, waker: Waker) {
        self.waker = Some((place, waker));
        self.register();
    }

    fn register(&mut self) {
        let flushes = self.volume.flushes();
        let register = |(place, waker): &(usize, Waker)| flushes.register(*place, waker);
        self.is_registered = self.waker.as_ref().is_some_and(register);
    }

    /// Whether ciphertext is overwritten before its space is given back.
    pub fn set_overwrite(&mut self, overwrite: bool) {
        self.punches.overwrite = overwrite;
    }

    /// Takes a request on. Its end comes out of [`Pipeline::take_finished`], perhaps at once.
    pub fn submit(&mut self, op: Op) {
        let range = self.check_range(&op);
        let large = matches!(op.kind, OpKind::Zero { .. }) && op.len > ZERO_BURST * BLOCK_SIZE;
        let id = self.requests.insert(Request {
            op,
            issued: 0,
            cursor: Cursor::default(),
            outstanding: 0,
            outcome: Outcome::default(),
            flushing: false,
            unsynced: false,
        });
        if let Err(error) = range {
            self.fail(id, error);
            return self.finish(id);
        }
        if large {
            self.zeroing = Some(id);
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
        // First, whatever comes before it in the list: none of these ends well any more.
        for completion in &completions {
            self.look_for_failed_sync(completion);
        }
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.burst = 0;
        self.pool.tend(&mut self.store);
        self.retry_waiting();
        self.flush_discards();
        self.go_on_flushing();
        self.punch_some();
    }

    /// Moves the requests that were finished to the end of `into`.
    pub fn take_finished(&mut self, into: &mut Vec<Finished>) {
        into.append(&mut self.finished);
    }

    /// Whether a request waits for something that another queue has, whose end wakes nobody:
    /// [`Pipeline::poll`] has to be called again soon. To be asked right before a wait.
    pub fn waits_for_others(&self) -> bool {
        if !self.waiting.is_empty() || self.flush.awaits_writes() {
            return true;
        }
        match (self.flush.waits_for(), &self.waker) {
            (None, _) => false,
            (Some(flush), Some((place, _))) if self.is_registered => {
                !self.volume.flushes().sleep(*place, flush)
            }
            (Some(_), _) => true,
        }
    }

    /// How long it is until there is something to do though nothing may happen.
    pub fn idle_for(&self) -> Option<Duration> {
        let wait = |due: Instant| due.saturating_duration_since(self.store.now());
        self.punches.due().map(wait)
    }

    /// Whether a request can go on as soon as what was issued has been submitted.
    pub fn is_between_bursts(&self) -> bool {
        self.is_burst_over() && self.starved
    }

    /// How long it is until [`Pipeline::poll`] may have memory to give back, though nothing happens.
    pub fn keeps_memory_for(&self) -> Option<Duration> {
        self.pool.idle_for()
    }

    /// Whether a large range is being zeroed, a part at a time. Whoever takes no further requests
    /// meanwhile never has to finish many of them when told to stop.
    pub fn is_zeroing(&self) -> bool {
        let request = self.zeroing.and_then(|id| self.requests.get(id));
        request.is_some_and(|request| {
            matches!(request.op.kind, OpKind::Zero { .. })
                && !request.outcome.has_failed()
                && request.issued < request.op.len
        })
    }

    /// Whether no request and no hole is under way.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.pieces.is_empty() && self.flush.is_idle()
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
            let progress = if request.flushing {
                return Progress::Issued;
            } else if request.outcome.has_failed() || request.issued == request.op.len {
                if request.outstanding > 0 {
                    return Progress::Issued;
                }
                self.after_data(id)
            } else if self.ciphers.is_none() {
                request.outcome.fail(OpError::NoKey);
                Progress::More
            } else {
                match request.op.kind {
                    OpKind::Read => self.issue_read(id),
                    OpKind::Write { .. } => self.issue_write(id),
                    OpKind::Zero { release, .. } => self.issue_zero(id, release),
                    OpKind::Raise { drop } => self.issue_raise(id, usize::from(drop)),
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
        if request.outcome.has_failed() {
            self.finish(id);
            return Progress::Issued;
        }
        let flushes = match request.op.kind {
            OpKind::Flush | OpKind::Zero { durable: true, .. } => true,
            OpKind::Write { durable: true } => request.unsynced,
            OpKind::Read | OpKind::Write { .. } | OpKind::Zero { .. } | OpKind::Raise { .. } => {
                false
            }
        };
        if flushes {
            request.flushing = true;
            self.await_flush(Waiter::Request(id));
            return Progress::Issued;
        }
        if let (OpKind::Write { durable: true }, Some(file)) =
            (request.op.kind, self.volume.failed_sync())
        {
            request.outcome.fail(OpError::Lost(file));
        }
        self.finish(id);
        Progress::Issued
    }

    /// Has a request fail once what it has under way is done.
    pub(super) fn fail(&mut self, id: RequestId, error: impl Into<OpError>) -> Progress {
        if let Some(request) = self.requests.get_mut(id) {
            request.outcome.fail(error);
        }
        Progress::More
    }

    /// Ends a request, as its outcome says.
    pub(super) fn finish(&mut self, id: RequestId) {
        if let Some(request) = self.requests.remove(id) {
            let Op { token, memory, .. } = request.op;
            let result = request.outcome.into_result();
            self.finished.push(Finished {
                token,
                result,
                memory,
            });
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.is_burst_over() && self.store.has_room()
    }

    pub(super) fn is_burst_over(&self) -> bool {
        self.burst >= BURST
    }

    /// Notes that so many blocks were zeroed, which takes no operation but time.
    pub(super) fn zeroed(&mut self, blocks: u64) {
        self.burst += blocks * BURST / ZERO_BURST;
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
                layer,
                cursor,
                blocks,
            } => {
                let cipher = self.ciphers.as_mut().and_then(|all| all.layer(layer));
                if let (Ok(()), Some(buffer), Some(request), Some(cipher)) =
                    (&result, &buffer, self.requests.get_mut(request), cipher)
                {
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
                durable,
            } => {
                match whole && result.is_ok() {
                    true => self.volume.map().set_data(blocks.clone()),
                    false if result.is_err() => self.write_failed(blocks.clone()),
                    false => {}
                }
                match exclusive {
                    true => self.volume.locks().release_exclusive(blocks),
                    false => self.volume.locks().release_shared(blocks),
                }
                let result = result.map_err(|error| match durable {
                    Some(_) if is_failed_sync(&error) => self.sync_failed(FailedSync::Data, error),
                    _ => error.into(),
                });
                // Only now, with a failure noted.
                drop(durable);
                return self.piece_done(request, result, buffer);
            }
            Piece::Rewrite {
                request,
                blocks,
                layer,
                part,
            } => match (&result, buffer) {
                (Ok(()), Some(buffer)) => {
                    return self.rewrite(request, blocks, layer, part, buffer);
                }
                (_, buffer) => {
                    self.volume.locks().release_exclusive(blocks);
                    return self.piece_done(request, result.map_err(OpError::from), buffer);
                }
            },
            Piece::WriteMap => {
                match buffer {
                    Some(small) if small.as_slice().len() == MAP_BUFFER_LEN => {
                        self.map_pool.put(small);
                    }
                    Some(large) => self.pool.put(large),
                    None => {}
                }
                return self.flush_operation_done(result.map_err(OpError::from));
            }
            Piece::Sync { file } => {
                let result = result.map_err(|error| self.sync_failed(file, error));
                return self.flush_operation_done(result);
            }
            Piece::Overwrite { blocks, done } => {
                return self.overwritten(blocks, done, result, buffer);
            }
            Piece::Punch { blocks } => return self.punched(blocks, result),
        };
        self.piece_done(request, result.map_err(OpError::from), buffer);
    }

    /// Writes what was read of blocks, some layer's, to the top layer, with a part of it replaced.
    fn rewrite(
        &mut self,
        request: RequestId,
        blocks: Range<u64>,
        layer: LayerIndex,
        part: Option<Part>,
        mut buffer: IoBuffer,
    ) {
        let start = Block(blocks.start).offset();
        let len = ((blocks.end - blocks.start) * BLOCK_SIZE) as usize;
        let bytes = &mut buffer.as_mut_slice()[..len];
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.raise(layer, start, bytes);
        }
        if let Some(part) = part {
            let skip = (part.at.0 - start.0) as usize;
            self.encrypt(request, part, &mut bytes[skip..skip + part.len]);
        }
        let durable = self.durable_write(request, &blocks);
        let piece = Piece::Write {
            request,
            blocks,
            exclusive: true,
            // Of the top layer's own blocks the state stays what it is.
            whole: layer != LayerIndex::TOP,
            durable,
        };
        self.submit_write(piece, start, len, buffer);
    }

    /// Gives the buffer of a completed piece back and carries its request on.
    fn piece_done(&mut self, id: RequestId, result: Result<(), OpError>, buffer: Option<IoBuffer>) {
        if let Some(buffer) = buffer {
            self.pool.put(buffer);
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.outstanding -= 1;
        if let Err(error) = result {
            request.outcome.fail(error);
        }
        let through = request.issued == request.op.len || request.outcome.has_failed();
        if request.outstanding == 0 && through && !self.waiting.contains(&id) {
            match self.drive(id) {
                Progress::More | Progress::Issued => {}
                Progress::NoRoom | Progress::InUse => self.waiting.push_back(id),
            }
        }
    }
}
