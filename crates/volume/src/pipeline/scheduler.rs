//! The pipeline: which request goes on when, from its submission to its end.
//!
//! A request is cut into pieces, each of which is one operation on the store ([`Piece`]). The files of `issue`
//! begin pieces, `complete` ends them; neither waits. A request that cannot go on is kept here and tried again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::must_complete::{MustComplete, lost};
use crate::redo::RedoSlot;
use crate::store::{
    BUFFER_LEN, BufferPool, OWN_BUFFERS, Store, StoreCompletion, StoreError, StoreOp, Tag,
};
use crate::{Volume, Wanted};
use keys::units::{BLOCK_SIZE, ByteOffset, SECTOR_SIZE};
use xts::{CipherStack, Cursor};

use super::RequestError;
use super::flush_job::{FlushJob, MAP_BUFFER_LEN, MAP_BUFFERS, Waiter};
use super::outcome::Outcome;
use super::piece::{Owed, Piece, PieceOf, RequestId};
use super::punches::Punches;
use super::request::{BlockRequest, Finished, GuestBuffer, NamedRequest, RequestKind, Submission};

/// Bytes that are issued before completions are looked at: pieces are encrypted, or decrypted again,
/// while they are in the L2 cache, and what is encrypted is on its way while the next is.
const BURST: u64 = (OWN_BUFFERS * BUFFER_LEN) as u64;

/// Blocks that are zeroed before commands and completions are looked at, which takes a millisecond or two.
pub(super) const ZERO_BURST: u64 = 16384;

/// Bytes that are read or written without an operation before commands and completions are looked at, which takes a
/// millisecond or two, and some 50 without AES instructions. Else a guest could have a queue do so for minutes.
const AT_ONCE_BURST: u64 = 4 << 20;

/// A request under way.
pub(super) struct Request {
    name: MustComplete<NamedRequest>,
    pub(super) memory: GuestBuffer,
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
    /// The block that it waits to have alone. It is among those that wait.
    pub(super) wanted: Option<Wanted>,
}

impl Request {
    pub(super) fn asked(&self) -> BlockRequest {
        self.name.get().request
    }

    /// Whether no more pieces are to be issued.
    pub(super) fn is_through(&self) -> bool {
        self.outcome.has_failed() || self.issued == self.asked().len
    }
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It can go on at once.
    More,
    /// Everything is issued; completions will carry it on.
    Issued,
    /// No buffer or no room in the store: later requests have to wait too.
    NoRoom,
    /// Its blocks are in use: later requests may pass.
    InUse,
}

/// What of a request is still to be issued.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// Where it starts on the disk.
    pub(super) at: ByteOffset,
    /// Bytes.
    pub(super) len: u64,
    /// Where it starts in the guest's memory.
    pub(super) cursor: Cursor,
}

/// Serves requests on one volume for one thread.
pub struct Pipeline<S> {
    pub(super) volume: Arc<Volume>,
    pub(super) store: S,
    /// Taken away only while no request is under way, so every request finds them.
    pub(super) ciphers: Option<CipherStack>,
    /// For writes into a data file that is memory, from the first one on.
    pub(super) redo: Option<RedoSlot>,
    pub(super) pool: BufferPool,
    /// For map sectors that lie together.
    pub(super) map_pool: BufferPool,
    pub(super) requests: Slab<Request>,
    pub(super) pieces: Slab<Piece>,
    /// Requests that could not go on, in the order in which they came.
    pub(super) waiting: VecDeque<RequestId>,
    /// What the request that is tried again wanted.
    pub(super) wanted: Option<Wanted>,
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
    /// Their bytes.
    pub(super) finished_bytes: u64,
    /// What the store has completed and was not looked at yet.
    pub(super) completions: VecDeque<StoreCompletion>,
    pub(super) reaped: Vec<StoreCompletion>,
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
        let map_pool = pool.fixed_beside(MAP_BUFFERS, MAP_BUFFER_LEN)?;
        Ok(Self {
            volume,
            store,
            ciphers: ciphers.into(),
            redo: None,
            pool,
            map_pool,
            requests: Slab::with_capacity(256),
            pieces: Slab::with_capacity(256),
            waiting: VecDeque::with_capacity(256),
            wanted: None,
            starved: false,
            burst: 0,
            flush: FlushJob::default(),
            zeroing: None,
            punches: Punches::default(),
            waker: None,
            is_registered: false,
            finished: Vec::with_capacity(256),
            finished_bytes: 0,
            completions: VecDeque::with_capacity(256),
            reaped: Vec::with_capacity(256),
        })
    }

    /// Makes room for `requests` at a time; it grows by itself where there are more.
    pub fn reserve(&mut self, requests: usize) {
        self.requests
            .reserve(requests.saturating_sub(self.requests.len()));
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
    /// are served and everything else fails with [`RequestError::NoKey`], reads of zeros too: a disk
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
        self.redo = None;
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
    pub fn submit(&mut self, submission: Submission) {
        let asked = submission.request();
        let range = self.check_range(asked);
        let is_zero = matches!(asked.kind, RequestKind::Zero { .. });
        let is_large = is_zero && asked.len > ZERO_BURST * BLOCK_SIZE;
        let Submission { name, memory } = submission;
        let id = self.requests.insert(Request {
            name,
            memory,
            issued: 0,
            cursor: Cursor::default(),
            outstanding: 0,
            outcome: Outcome::default(),
            flushing: false,
            unsynced: false,
            wanted: None,
        });
        if let Err(error) = range {
            self.fail(id, error);
            return self.finish(id);
        }
        if is_large {
            self.zeroing = Some(id);
        }
        if self.starved {
            self.waiting.push_back(id);
            return;
        }
        match self.schedule(id) {
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
        self.look_at_completions(u64::MAX);
        self.carry_on();
    }

    pub(super) fn carry_on(&mut self) {
        self.burst = 0;
        self.pool.tend(&mut self.store);
        self.retry_waiting();
        self.flush_discards();
        self.go_on_flushing();
        self.punch_some();
        debug_assert!(self.carries_all_on(), "a request that nothing carries on");
    }

    /// Moves the requests that were finished to the end of `into`.
    pub fn take_finished(&mut self, into: &mut Vec<Finished>) {
        self.finished_bytes = 0;
        into.append(&mut self.finished);
    }

    /// Whether a request waits for something of another queue, whose end does not wake this one:
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

    /// Whether a request has not issued all of its pieces, for want of a buffer or of a block.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How long it is until [`Pipeline::poll`] may have memory to give back, though nothing happens.
    pub fn keeps_memory_for(&self) -> Option<Duration> {
        self.pool.idle_for()
    }

    /// Whether a large range is being zeroed, a part at a time. A queue that takes no further requests
    /// meanwhile never has to finish many of them when it is stopped.
    pub fn is_zeroing(&self) -> bool {
        let request = self.zeroing.and_then(|id| self.requests.get(id));
        request.is_some_and(|request| {
            matches!(request.asked().kind, RequestKind::Zero { .. }) && !request.is_through()
        })
    }

    /// Whether no request and no hole is under way.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.pieces.is_empty() && self.flush.is_idle()
    }

    /// Whether each request has something that carries it on: a piece, a flush, or a place among those that
    /// wait.
    fn carries_all_on(&self) -> bool {
        let is_left = |request: &&Request| request.outstanding == 0 && !request.flushing;
        let requests = self.requests.iter().map(|(_, request)| request);
        requests.filter(is_left).count() <= self.waiting.len()
    }

    /// Whether there is a cipher for each layer.
    fn has_all_keys(&self) -> bool {
        let layers = 1 + self.volume.lower().len();
        let ciphers = self.ciphers.as_ref();
        ciphers.is_some_and(|ciphers| ciphers.layers() >= layers)
    }

    fn check_range(&self, asked: BlockRequest) -> Result<(), RequestError> {
        let BlockRequest { at, len, .. } = asked;
        let end = at.0.saturating_add(len);
        let whole = at.0.is_multiple_of(SECTOR_SIZE) && len.is_multiple_of(SECTOR_SIZE);
        if whole && end <= self.volume.geometry().size {
            Ok(())
        } else {
            Err(RequestError::Range { at: at.0, end })
        }
    }

    fn retry_waiting(&mut self) {
        self.starved = false;
        for _ in 0..self.waiting.len() {
            let Some(id) = self.waiting.pop_front() else {
                return;
            };
            self.take_wanted(id);
            match self.schedule(id) {
                Progress::More | Progress::Issued => {}
                Progress::InUse => self.waiting.push_back(id),
                Progress::NoRoom => {
                    self.keep_wanted(id);
                    self.starved = true;
                    self.waiting.push_front(id);
                    return;
                }
            }
            self.drop_wanted();
        }
    }

    /// Issues pieces of a request until it is through, or cannot go on now.
    pub(super) fn schedule(&mut self, id: RequestId) -> Progress {
        loop {
            let has_keys = self.has_all_keys();
            let request = find(&mut self.requests, id);
            if request.flushing {
                return Progress::Issued;
            }
            let progress = if request.is_through() {
                if request.outstanding > 0 {
                    return Progress::Issued;
                }
                self.after_data(id)
            } else if !has_keys {
                request.outcome.fail(RequestError::NoKey);
                Progress::More
            } else {
                match request.asked().kind {
                    RequestKind::Read => self.issue_read(id),
                    RequestKind::Write { .. } => self.issue_write(id),
                    RequestKind::Zero { release, .. } => self.issue_zero(id, release),
                    RequestKind::CopyUp { drop } => self.issue_copy_up(id, usize::from(drop)),
                    RequestKind::Flush => self.after_data(id),
                }
            };
            if progress != Progress::More {
                return progress;
            }
        }
    }

    /// All pieces are done: flushes, if the request asks for it, or finishes it.
    fn after_data(&mut self, id: RequestId) -> Progress {
        let failed_sync = self.volume.failed_sync();
        let request = find(&mut self.requests, id);
        let kind = request.asked().kind;
        if !request.outcome.has_failed() {
            let flushes = match kind {
                RequestKind::Flush | RequestKind::Zero { durable: true, .. } => true,
                RequestKind::Write { durable: true } => request.unsynced,
                RequestKind::Read
                | RequestKind::Write { .. }
                | RequestKind::Zero { .. }
                | RequestKind::CopyUp { .. } => false,
            };
            if flushes {
                request.flushing = true;
                self.await_flush(Waiter::Request(id));
                return Progress::Issued;
            }
            if let (RequestKind::Write { durable: true }, Some(file)) = (kind, failed_sync) {
                request.outcome.fail(RequestError::Lost(file));
            }
        }
        self.finish(id);
        Progress::Issued
    }

    /// Has a request fail once what it has under way is done.
    pub(super) fn fail(&mut self, id: RequestId, error: impl Into<RequestError>) -> Progress {
        find(&mut self.requests, id).outcome.fail(error);
        Progress::More
    }

    /// Ends a request, as its outcome says.
    pub(super) fn finish(&mut self, id: RequestId) {
        let Some(request) = self.requests.try_remove(id) else {
            no_such_request(id);
        };
        debug_assert_eq!(request.outstanding, 0, "pieces of a finished request");
        debug_assert!(request.wanted.is_none(), "a finished request wants a block");
        let finished = Finished {
            name: request.name,
            result: request.outcome.into_result(),
            memory: request.memory,
        };
        self.finished_bytes += finished.request().len;
        self.finished.push(finished);
    }

    pub(super) fn has_room(&self) -> bool {
        !self.is_burst_over() && self.store.has_room()
    }

    pub(super) fn is_burst_over(&self) -> bool {
        self.burst >= BURST
    }

    /// Notes that so many bytes were read or written without an operation, which takes time all the same.
    pub(super) fn done_at_once(&mut self, bytes: u64) {
        self.burst += bytes * BURST / AT_ONCE_BURST;
    }

    /// Notes that so many blocks were zeroed, which takes no operation but time.
    pub(super) fn zeroed(&mut self, blocks: u64) {
        self.burst += blocks * BURST / ZERO_BURST;
    }

    /// What of a request is not issued yet.
    pub(super) fn rest(&self, id: RequestId) -> Rest {
        let Some(request) = self.requests.get(id) else {
            no_such_request(id);
        };
        let asked = request.asked();
        Rest {
            at: asked.at.plus(request.issued),
            len: asked.len - request.issued,
            cursor: request.cursor,
        }
    }

    /// Notes that `bytes` more of the request are done, without an operation on the store.
    pub(super) fn advance(&mut self, id: RequestId, bytes: u64) -> Progress {
        let request = find(&mut self.requests, id);
        request.issued += bytes;
        let slices = &request.memory.slices;
        request.cursor.advance(slices, bytes as usize);
        Progress::More
    }

    /// Notes that `bytes` more of the request are issued as one piece, which it waits for from now on.
    pub(super) fn begin_piece(&mut self, id: RequestId, bytes: u64) -> Owed {
        self.burst += bytes;
        let request = find(&mut self.requests, id);
        let NamedRequest {
            token,
            request: asked,
        } = *request.name.get();
        let part = BlockRequest {
            at: asked.at.plus(request.issued),
            len: bytes,
            ..asked
        };
        request.outstanding += 1;
        self.advance(id, bytes);
        let part = NamedRequest {
            token,
            request: part,
        };
        MustComplete::new(PieceOf { id, part })
    }

    pub(super) fn submit_piece(&mut self, piece: Piece, op: StoreOp) {
        let tag = Tag(self.pieces.insert(piece) as u32);
        self.store.submit(tag, op);
    }
}

impl<S> Pipeline<S> {
    /// Gives up all that is under way, and leaves its blocks marked: the volume is given up as well, or the
    /// process ends.
    fn abandon(&mut self) {
        for request in self.requests.drain() {
            let wanted = request.wanted.into_iter();
            wanted.for_each(|wanted| self.volume.marks().want_no_more(wanted));
            request.name.complete();
        }
        for piece in self.pieces.drain() {
            piece.abandon();
        }
        for finished in self.finished.drain(..) {
            let _ = finished.take();
        }
        self.flush.abandon(self.volume.map());
    }
}

/// The request at a place of the table, which is not finished while anything names it.
pub(super) fn find(requests: &mut Slab<Request>, id: RequestId) -> &mut Request {
    match requests.get_mut(id) {
        Some(request) => request,
        None => no_such_request(id),
    }
}

#[cold]
fn no_such_request(id: RequestId) -> ! {
    lost(&format_args!("request {id} of a pipeline"));
}

impl<S> Drop for Pipeline<S> {
    fn drop(&mut self) {
        self.abandon();
    }
}
