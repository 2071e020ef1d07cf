//! What a queue's thread does with one chain: taking it on, holding it back, returning it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use slab::Slab;
use vm_memory::{Bytes, GuestAddress};

use protocol::{Discard, OnFull};
use volume::must_complete::lost;
use volume::pipeline::{
    BlockRequest, Finished, GuestBuffer, Pipeline, RequestError, RequestKind, Submission, Token,
};
use volume::store::{DiskStore, WaitingStore};
use xts::{CipherStack, SharedSlice};

use crate::request::{
    Action, Chain, ChainError, Descriptors, Disk, Memory, Scratch, Status, interpret, read_chain,
};

use crate::DataplaneError;
use crate::counters::{Asked, Outcome, QueueCounters};
use crate::disk::log_limit::LogLimit;
use crate::disk::shared::{Extent, Shared};

use super::no_space::NoSpace;
use super::ring::{Ring, TakenChain};

/// Bytes that take longer than a guest looks for its completions: some 50 µs of the cipher.
const LARGE: u64 = 256 << 10;
/// Bytes of large requests after which a guest that sleeps is told in any case: a millisecond or two.
const TOLD_TOGETHER: u64 = 8 << 20;
/// Bytes of reads and writes that a queue takes on before it leaves further chains in the ring: more
/// than its buffers hold, so that they stay full, and little enough that they are soon done when the
/// queue is drained, for a revoked key say.
const MAX_UNDER_WAY: u64 = 32 << 20;

/// A chain taken from the ring and not yet returned.
struct Pending {
    chain: TakenChain,
    status: GuestAddress,
    /// Bytes of data that the guest gets if all goes well.
    writable: u32,
    /// Where they go. It is kept of each request, since the guest's migration, for which it is noted,
    /// may begin while the request is under way.
    written: Vec<(GuestAddress, u32)>,
    memory: Arc<Memory>,
    /// It found the host's storage full.
    waits_for_space: bool,
    asked: Asked,
}

/// What taking a chain needs besides the ring.
pub(crate) struct QueueState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pipeline: Pipeline<DiskStore>,
    disk: Disk,
    pending: Slab<Pending>,
    pub(crate) counters: QueueCounters,
    /// The next request, when a limit holds it back; no chain is taken before it has passed.
    pub(crate) held: Option<Submission>,
    /// Since when.
    held_since: u64,
    /// Requests that wait for space on the host.
    no_space: NoSpace,
    scratch: Scratch,
    /// Lists of requests that are done, to be used again.
    lists: Vec<Vec<SharedSlice>>,
    ranges: Vec<Vec<(GuestAddress, u32)>>,
    /// Bytes of reads and writes in the pipeline.
    under_way: u64,
    /// Bytes of large requests that were returned since the guest was last notified.
    untold: u64,
    bad_chains: LogLimit,
    pub(crate) broken_rings: LogLimit,
    failures: LogLimit,
}

impl QueueState {
    pub(crate) fn new(
        shared: Arc<Shared>,
        index: usize,
        extent: &Extent,
        store: DiskStore,
        ciphers: Option<CipherStack>,
    ) -> Result<Self, DataplaneError> {
        let pool = shared.queue_pool()?;
        let mut pipeline = Pipeline::with_pool(extent.volume.clone(), store, ciphers, pool)?;
        pipeline.set_overwrite(shared.discard == Discard::Overwrite);
        Ok(Self {
            pipeline,
            disk: extent.disk.clone(),
            pending: Slab::with_capacity(256),
            counters: shared.counters.queue(index),
            held: None,
            held_since: 0,
            no_space: NoSpace::new(shared.storage.clone()),
            scratch: Scratch::default(),
            lists: Vec::with_capacity(256),
            ranges: Vec::with_capacity(256),
            under_way: 0,
            untold: 0,
            bad_chains: LogLimit::default(),
            broken_rings: LogLimit::default(),
            failures: LogLimit::default(),
            shared,
        })
    }

    /// How many more chains of this ring may be taken now.
    pub(crate) fn room(&self, ring: &Ring) -> usize {
        match self.under_way < MAX_UNDER_WAY {
            true => ring.size().saturating_sub(self.pending.len()),
            false => 0,
        }
    }

    /// Makes the tables large enough for a ring of `entries` at once, so that they don't grow under
    /// requests.
    pub(crate) fn reserve(&mut self, entries: usize) {
        self.pending
            .reserve(entries.saturating_sub(self.pending.len()));
        self.lists.reserve(entries);
        self.ranges.reserve(entries);
        self.pipeline.reserve(entries);
    }

    /// Gives a request to the pipeline.
    fn submit(&mut self, submission: Submission) {
        self.under_way += data_bytes(submission.request());
        self.pipeline.submit(submission);
    }

    /// Chains taken and not yet returned.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Of these, those that wait for space on the host.
    pub(crate) fn waiting_for_space(&self) -> usize {
        self.no_space.len()
    }

    /// Serves the disk of `extent` from now on. Nothing may be under way, but chains
    /// may be taken that wait for space.
    ///
    /// # Errors
    /// [`DataplaneError`], after which the queue cannot go on.
    pub(crate) fn swap_volume(&mut self, extent: &Extent) -> Result<(), DataplaneError> {
        let files = extent.files.clone().into();
        self.pipeline.store_mut().swap_files(files)?;
        self.pipeline.set_volume(extent.volume.clone());
        self.disk = extent.disk.clone();
        if self.pipeline.has_key() {
            match self.shared.key.ciphers(&extent.volume.data_units())? {
                Ok(ciphers) => self.pipeline.set_key(ciphers),
                // It is revoked right now: the command for that follows.
                Err(_) => drop(self.pipeline.drop_key()),
            }
        }
        Ok(())
    }

    /// Whether another chain may be taken: not while a limit holds one back, and not while a large range is
    /// being zeroed, so that draining the queue waits for one of these at most.
    pub(crate) fn may_take(&self) -> bool {
        self.held.is_none() && self.under_way < MAX_UNDER_WAY && !self.pipeline.is_zeroing()
    }

    /// Puts the request that a limit holds back into the ring again. None was taken after it.
    pub(crate) fn put_back_held(&mut self, ring: &mut Ring) {
        if let Some(held) = self.held.take() {
            let (token, memory) = held.withdraw();
            self.lists.push(cleared(memory.slices));
            let pending = self.take_pending(token);
            self.ranges.push(cleared(pending.written));
            ring.put_back(pending.chain);
        }
    }

    /// The chain of a request, which is to be returned now.
    fn take_pending(&mut self, token: Token) -> Pending {
        match self.pending.try_remove(token.place()) {
            Some(pending) => pending,
            None => lost(&format_args!("the chain of a request ({token})")),
        }
    }

    /// Gives the request that was held back to the pipeline, if it may pass now or has to since the
    /// ring is stopped; else how long it still waits.
    pub(crate) fn pass_held(&mut self, stopping: bool) -> Option<Duration> {
        let held = self.held.take()?;
        match self.shared.limiter.admit(data_bytes(held.request())) {
            Err(wait) if !stopping => {
                self.held = Some(held);
                Some(wait)
            }
            _ => {
                self.counters.limit_waited(self.held_since);
                self.submit(held);
                None
            }
        }
    }

    /// Notes how much is in flight, for whoever looks at the counters.
    pub(crate) fn count_in_flight(&self) {
        self.counters
            .in_flight(self.pending.len(), self.no_space.len());
    }

    /// Has the attach process told when a sync has failed.
    pub(crate) fn look_at_syncs(&self) {
        self.shared.sync_alarm.look(self.pipeline.volume());
    }

    /// Tries requests again that wait for space on the host, if it is time.
    pub(crate) fn retry_for_space(&mut self) {
        let now = Instant::now();
        while let Some(submission) = self.no_space.next(now) {
            self.submit(submission);
        }
    }

    /// How long it is until there is something for [`QueueState::retry_for_space`].
    pub(crate) fn next_space_retry(&self) -> Option<Duration> {
        self.no_space.wait()
    }

    /// Gives up all requests that wait for space on the host: they stay in flight for whoever serves the ring next, or
    /// fail.
    pub(crate) fn give_up_waiting(
        &mut self,
        ring: &mut Ring,
        stay_in_flight: bool,
    ) -> Result<(), virtio_queue::Error> {
        let mut result = Ok(());
        while let Some(submission) = self.no_space.give_up() {
            self.no_space.ended(false);
            let (token, memory) = submission.withdraw();
            self.lists.push(cleared(memory.slices));
            let pending = self.take_pending(token);
            result = result.and(match stay_in_flight {
                true => {
                    self.ranges.push(cleared(pending.written));
                    ring.leave(pending.chain);
                    Ok(())
                }
                false => self.answer(ring, pending, Status::IoError, 0, Outcome::Failed),
            });
        }
        result
    }

    /// Fails the chains that a process before this one had taken, and that cannot be done now.
    pub(crate) fn fail_again(&mut self, ring: &mut Ring) -> Result<(), virtio_queue::Error> {
        while let Some(taken) = ring.next_again() {
            let memory = ring.memory.clone();
            let descriptors = ring.descriptors(&memory, &taken);
            match self.read(&memory, descriptors) {
                Ok(chain) => {
                    let pending = self.pending_of(taken, &chain, memory.clone());
                    self.lists.push(cleared(chain.data));
                    self.answer(ring, pending, Status::IoError, 0, Outcome::Failed)?;
                }
                Err(_) => {
                    self.counters.not_understood();
                    ring.push_used(taken, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a chain on: answers it or hands it to the pipeline. Whether another may follow.
    pub(crate) fn take(
        &mut self,
        ring: &mut Ring,
        taken: TakenChain,
        descriptors: Descriptors<'_>,
    ) -> Result<bool, virtio_queue::Error> {
        let memory = ring.memory.clone();
        let chain = match self.read(&memory, descriptors) {
            Ok(chain) => chain,
            Err(error) => {
                self.bad_chains
                    .warn(|| format!("a request cannot be understood: {error}"));
                self.counters.not_understood();
                return ring.push_used(taken, 0).map(|()| true);
            }
        };
        let durable = self.shared.write_through.load(Ordering::Acquire);
        // Looked at first, so that the queues do not fight for it.
        if !self.shared.in_use.load(Ordering::Relaxed) {
            self.shared.in_use.store(true, Ordering::Relaxed);
        }
        let action = interpret(&chain, &self.disk, durable);
        let mut pending = self.pending_of(taken, &chain, memory.clone());
        match action {
            Action::Answer { status, written } => {
                self.lists.push(cleared(chain.data));
                let outcome = match status {
                    Status::Ok => Outcome::Done(0),
                    _ => Outcome::Failed,
                };
                self.answer(ring, pending, status, written, outcome)
                    .map(|()| true)
            }
            Action::Submit(request) => {
                pending.chain.asks_for(request);
                if self.shared.names_again && pending.chain.is_taken_again() {
                    let head = pending.chain.head();
                    log::warn!(
                        "queue {}: head {head} is done again: {request}",
                        ring.index()
                    );
                }
                let place = self.pending.vacant_key();
                let token = pending.chain.token(place as u32);
                self.pending.insert(pending);
                let memory = GuestBuffer {
                    slices: chain.data,
                    owner: Some(memory),
                };
                let submission = Submission::new(token, request, memory);
                // Without a key it only fails, for which there is no limit.
                let limited = request.kind != RequestKind::Flush && self.pipeline.has_key();
                match self.shared.limiter.admit(data_bytes(request)) {
                    Err(_) if limited => {
                        self.held_since = self.counters.limit_wait();
                        self.held = Some(submission);
                    }
                    _ => self.submit(submission),
                }
                Ok(self.may_take())
            }
        }
    }

    fn read(&mut self, memory: &Memory, descriptors: Descriptors<'_>) -> Result<Chain, ChainError> {
        let list = self.lists.pop().unwrap_or_default();
        let limits = self.shared.limits;
        read_chain(memory, descriptors, limits, &mut self.scratch, list)
    }

    /// What is kept of the chain that was read last.
    fn pending_of(&mut self, taken: TakenChain, chain: &Chain, memory: Arc<Memory>) -> Pending {
        let mut written = self.ranges.pop().unwrap_or_default();
        written.extend_from_slice(&self.scratch.writable);
        Pending {
            chain: taken,
            status: chain.status,
            writable: chain.writable as u32,
            written,
            memory,
            waits_for_space: false,
            asked: self.counters.taken(chain.header.kind),
        }
    }

    /// Returns a chain whose request is finished, unless the request is to wait for space.
    pub(crate) fn complete(
        &mut self,
        ring: &mut Ring,
        done: Finished,
    ) -> Result<(), virtio_queue::Error> {
        self.under_way -= data_bytes(done.request());
        let Some(done) = self.keep_for_space(done) else {
            return Ok(());
        };
        let bytes = done.request().len;
        let (token, result, memory) = done.take();
        self.lists.push(cleared(memory.slices));
        let pending = self.take_pending(token);
        if pending.waits_for_space {
            self.no_space.ended(result.is_ok());
        }
        match result {
            Ok(()) => {
                let written = pending.writable;
                self.answer(ring, pending, Status::Ok, written, Outcome::Done(bytes))
            }
            // Who revoked the key, and who watches it, know already.
            Err(RequestError::NoKey) => {
                self.answer(ring, pending, Status::IoError, 0, Outcome::Failed)
            }
            Err(error) => {
                self.failures.warn(|| describe(&error));
                self.answer(ring, pending, Status::IoError, 0, Outcome::Failed)
            }
        }
    }

    /// Returns what has finished while chains are taken, once it is enough to tell the guest. One that looks for it
    /// finds it. One that sleeps is woken, as it will find what finishes next while it is awake; but not for each
    /// large request, since it sleeps again before the next has finished, and to wake it costs a tenth of that.
    ///
    /// # Errors
    /// The guest broke its ring.
    pub(crate) fn complete_enough(
        &mut self,
        ring: &mut Ring,
        finished: &mut Vec<Finished>,
    ) -> Result<(), virtio_queue::Error> {
        let Some(bytes) = self.pipeline.enough_finished() else {
            return Ok(());
        };
        self.complete_all(ring, finished)?;
        self.untold += bytes;
        if bytes >= LARGE && self.untold < TOLD_TOGETHER {
            return Ok(());
        }
        self.untold = 0;
        ring.notify()
    }

    /// Returns all that has finished. `finished` is a list to be used again.
    ///
    /// # Errors
    /// The guest broke its ring.
    pub(crate) fn complete_all(
        &mut self,
        ring: &mut Ring,
        finished: &mut Vec<Finished>,
    ) -> Result<(), virtio_queue::Error> {
        self.pipeline.take_finished(finished);
        if !finished.is_empty() {
            // All of them are returned now.
            self.counters.look_at_clock();
        }
        let mut result = Ok(());
        for done in finished.drain(..) {
            // Each of them is taken, whatever became of one before it.
            result = self.complete(ring, done).and(result);
        }
        result
    }

    /// Keeps a request that found the host's storage full, to be tried again; gives back any other.
    fn keep_for_space(&mut self, done: Finished) -> Option<Finished> {
        let Err(error) = &done.result else {
            return Some(done);
        };
        // After a failed sync every try would fail.
        if self.shared.on_full == OnFull::Error
            || !error.is_no_space()
            || self.pipeline.volume().failed_sync().is_some()
        {
            return Some(done);
        }
        let (submission, error) = match done.retry() {
            Ok(failed) => failed,
            Err(done) => return Some(done),
        };
        let token = submission.token();
        let Some(pending) = self.pending.get_mut(token.place()) else {
            lost(&format_args!("the chain of a request ({token})"));
        };
        let again = std::mem::replace(&mut pending.waits_for_space, true);
        if !again {
            self.counters.space_wait();
        }
        self.no_space.keep(submission, again, &error);
        None
    }

    /// Returns a chain to the guest: the status byte first, then the used entry with the number of bytes
    /// written (§2.7.8).
    fn answer(
        &mut self,
        ring: &mut Ring,
        pending: Pending,
        status: Status,
        written: u32,
        outcome: Outcome,
    ) -> Result<(), virtio_queue::Error> {
        let Pending {
            chain,
            status: at,
            written: ranges,
            memory,
            asked,
            ..
        } = pending;
        self.counters.answered(asked, outcome);
        let has_status = memory.write_obj(status.byte(), at).is_ok();
        if let (true, Some(log)) = (has_status, &ring.log) {
            log.mark(at, 1);
            for (at, len) in &ranges {
                log.mark(*at, u64::from(*len));
            }
        }
        self.ranges.push(cleared(ranges));
        // A status that does not lie right behind the data would make the count say more than was
        // written, which a driver must not rely on either way.
        let written = if has_status {
            written.saturating_add(1)
        } else {
            0
        };
        ring.push_used(chain, written)
    }
}

fn describe(error: &RequestError) -> String {
    match error.is_no_space() {
        true => format!("a request failed: {error}; make space on the host's file system"),
        false => format!("a request failed: {error}"),
    }
}

fn cleared<T>(mut list: Vec<T>) -> Vec<T> {
    list.clear();
    list
}

/// What of a request counts as data: zeros only change the map.
fn data_bytes(request: BlockRequest) -> u64 {
    match request.kind.has_data() {
        true => request.len,
        false => 0,
    }
}
