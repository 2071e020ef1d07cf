//! The thread of one virtqueue: it owns the ring, the pipeline and the wait for both.
//!
//! Each turn it takes commands from the connection's thread, carries the pipeline on, completes
//! what is finished, takes new chains, notifies the guest once, and waits for a kick, a completion
//! or a command in one system call that submits new I/O as well.

#![deny(clippy::disallowed_types)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::task::Wake;
use std::time::Duration;

use std::os::fd::AsRawFd;

use vmm_sys_util::eventfd::EventFd;

use keys::wipe_call_stack;
use protocol::OnRevoke;
use protocol::io_counters::{ticks_of, time_of};
use volume::pipeline::Finished;
use volume::store::{DiskStore, StoreError, UringStore, Wait, WaitingStore, WatchId};
use xts::{CipherStack, DataUnit};

use crate::DataplaneError;
use crate::counters::now;
use crate::disk::shared::Shared;
use crate::request::Descriptors;

use super::chains::QueueState;
use super::command::{Answer, Command, Waiting, WhileQuiesced};
use super::polling::{Polling, WaitingFor};
use super::pulse::{Doing, Pulse};
use super::ring::{Ring, RingSetup};

const WAKE: WatchId = WatchId(0);
const KICK: WatchId = WatchId(1);

/// How long a request waits at most for a limit, before it looks whether the limit was changed.
const LIMIT_LOOK: Duration = Duration::from_millis(50);

/// How long a request waits that another queue is in the way of, before it is tried again.
const RETRY: Duration = Duration::from_micros(200);

/// Why a worker drains: it takes no chains until those taken before are completed.
enum Drain {
    Stop(Waiting),
    Suspend(OnRevoke),
    Quiesce(Receiver<WhileQuiesced>),
    Exit,
}

impl Drain {
    /// What becomes of requests that wait for space on the host, if they do not go on waiting.
    fn ends_waiting(&self) -> Option<Waiting> {
        match self {
            Self::Quiesce(_) | Self::Suspend(OnRevoke::Pause) => None,
            Self::Stop(waiting) => Some(*waiting),
            Self::Suspend(OnRevoke::Error) | Self::Exit => Some(Waiting::Fail),
        }
    }

    /// Whether nothing that was taken before, by whatever process, may be in flight afterwards.
    fn leaves_nothing(&self) -> bool {
        matches!(self, Self::Stop(Waiting::Fail))
    }
}

/// What came of busy-polling.
#[derive(Default)]
struct Polled {
    /// There is a chain or a completion.
    found: bool,
    /// Ticks that it was looked for, until the last look but one.
    spent: u64,
}

/// Has a queue's thread take another turn.
struct QueueWaker(EventFd);

impl Wake for QueueWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It fails when the counter is at its end, after 2^64 of these.
        let _ = self.0.write(1);
    }
}

/// A queue's thread.
pub(super) struct Worker {
    index: usize,
    ring: Option<Ring>,
    queue: QueueState,
    commands: Receiver<(Command, SyncSender<Answer>)>,
    /// Kept open for as long as the ring of the store watches it.
    _wake: Arc<EventFd>,
    pulse: Arc<Pulse>,
    /// How many rings are served, for the share that this one has of what all have together.
    rings: u32,
    polling: Polling,
    /// What the queue drains for, and where to answer.
    draining: Option<(Drain, SyncSender<Answer>)>,
    /// The thread ends; where to answer.
    exit: Option<SyncSender<Answer>>,
    /// The key is revoked.
    suspended: Option<OnRevoke>,
    /// Since when.
    suspended_since: Option<u64>,
    finished: Vec<Finished>,
    events: Vec<WatchId>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        index: usize,
        commands: Receiver<(Command, SyncSender<Answer>)>,
        (wake, pulse): (Arc<EventFd>, Arc<Pulse>),
    ) -> Result<Self, DataplaneError> {
        let extent = shared.extent();
        let (mut ciphers, suspended) = match shared.key.ciphers(&extent.volume.data_units())? {
            Ok(ciphers) => (Some(ciphers), None),
            Err(mode) => (None, Some(mode)),
        };
        if let (0, Some(cipher)) = (index, ciphers.as_mut().and_then(CipherStack::top)) {
            log::info!("AES-256-XTS by the engine {}", cipher.engine_name());
            log_measurements(cipher.unit());
        }
        let ring = shared.io_rings.for_queue()?;
        let mut store = DiskStore::from(UringStore::on(ring, extent.files.clone())?);
        store.limit_workers(shared.workers_of(1))?;
        store.watch(WAKE, wake.as_raw_fd())?;
        let polling = Polling::new(shared.poll);
        let mut queue = QueueState::new(shared, index, &extent, store, ciphers)?;
        let fail = |source| DataplaneError::Io {
            what: "duplicate an eventfd",
            source,
        };
        let suspended_since = suspended.map(|_| queue.counters.key_lost());
        let waker = QueueWaker(wake.try_clone().map_err(fail)?);
        queue.pipeline.set_waker(index, Arc::new(waker).into());
        Ok(Self {
            index,
            ring: None,
            queue,
            commands,
            _wake: wake,
            pulse,
            rings: 1,
            polling,
            draining: None,
            exit: None,
            suspended,
            suspended_since,
            finished: Vec::with_capacity(256),
            events: Vec::with_capacity(2),
        })
    }

    pub(super) fn run(mut self) {
        loop {
            self.pulse.beat();
            self.pulse.does(Doing::Commands);
            while self.draining.is_none()
                && let Ok((command, answer)) = self.commands.try_recv()
            {
                self.obey(command, answer);
            }
            let wait = self.turn();
            self.queue.count_in_flight();
            if let Some(answer) = self.exit.take() {
                self.finish_pipeline();
                let _ = answer.send(Ok(0));
                return;
            }
            self.pulse.does(Doing::Waiting);
            if let Err(error) = self.wait(wait) {
                self.end_process(&error);
            }
            self.events.clear();
            self.queue
                .pipeline
                .store_mut()
                .take_events(&mut self.events);
        }
    }

    /// Finishes what no request of the guest waits for: a hole, whose blocks stay marked until then while giving
    /// space back at the end waits for them; and the flush of discards, whose sync may be the one that
    /// is told of a failure.
    fn finish_pipeline(&mut self) {
        self.queue.pipeline.stop_punching();
        while !self.queue.pipeline.is_idle() {
            if let Err(error) = self.wait(Wait::AtMost(RETRY)) {
                // The last flush would not know what this one's sync was told.
                self.end_process(&error);
            }
            self.queue.pipeline.poll();
        }
    }

    /// Without its ring the queue is lost. What was completed to the guest is kept by the runtime map, and the
    /// supervisor starts another process.
    fn end_process(&self, error: &StoreError) -> ! {
        log::error!("queue {}: {error}", self.index);
        std::process::exit(1);
    }

    /// One round of work; answers how to wait for the next.
    fn turn(&mut self) -> Wait {
        self.share_workers();
        self.pulse.does(Doing::Completions);
        let mut more = self.queue.pipeline.poll_part();
        self.queue.look_at_syncs();
        let held = self.queue.pass_held(self.draining.is_some());
        if self.takes() {
            self.queue.retry_for_space();
        }
        self.complete_finished();
        self.pulse.does(Doing::Requests);
        if (self.takes() || self.takes_again())
            && self.queue.may_take()
            && let Some(ring) = self.ring.as_mut().filter(|ring| !ring.is_broken())
        {
            let mut most = self.queue.room(ring);
            if self.draining.is_some() {
                most = most.min(ring.again());
            }
            let (queue, finished) = (&mut self.queue, &mut self.finished);
            let take = |ring: &mut Ring, taken, chain: Descriptors<'_>| {
                let takes = queue.take(ring, taken, chain)?;
                queue.complete_enough(ring, finished)?;
                Ok(takes)
            };
            match ring.pop(most, take) {
                Ok(answer) => more |= answer && most > 0,
                Err(error) => self.break_ring(&error),
            }
        }
        // Now, so that all that were taken share a flush.
        self.queue.pipeline.go_on_flushing();
        // Reads of zeros and the like are finished without any I/O.
        self.complete_finished();
        let waiting = self.end_waiting();
        if let Some(ring) = self.ring.as_mut()
            && let Err(error) = ring.notify()
        {
            self.break_ring(&error);
        }
        if self.is_drained(waiting)
            && let Some((what, answer)) = self.draining.take()
        {
            self.drained(what, answer);
            more = true;
        }
        let held = held.or(self.queue.held.as_ref().map(|_| RETRY));
        let held = held.map(|wait| wait.min(LIMIT_LOOK));
        let owes_call = self.ring.as_ref().is_some_and(Ring::owes_call);
        let held = held.into_iter().chain(owes_call.then_some(RETRY));
        let space = self.queue.next_space_retry().filter(|_| self.takes());
        let due = self.queue.pipeline.idle_for();
        let pipeline = &self.queue.pipeline;
        match (
            more || pipeline.is_between_bursts(),
            pipeline.waits_for_others(),
            held.chain(space).chain(due).min(),
        ) {
            (true, _, _) => Wait::No,
            (false, true, _) => Wait::AtMost(RETRY),
            (false, false, Some(wait)) => Wait::AtMost(wait),
            (false, false, None) => Wait::Forever,
        }
    }

    /// While the queue is drained: ends the waiting of requests that wait for space or for the key, unless they
    /// are to wait on. How many do.
    fn end_waiting(&mut self) -> usize {
        if let Some((drain, _)) = &self.draining
            && let Some(waiting) = drain.ends_waiting()
            && let Some(ring) = &mut self.ring
        {
            let stay = waiting == Waiting::StayInFlight;
            let mut ended = self.queue.give_up_waiting(ring, stay);
            if drain.leaves_nothing() && self.suspended == Some(OnRevoke::Pause) {
                ended = ended.and(self.queue.fail_again(ring));
            }
            if let Err(error) = ended {
                self.break_ring(&error);
            }
        }
        self.queue.waiting_for_space()
    }

    /// Whether nothing is under way any more but the `waiting` requests that wait for space.
    fn is_drained(&self, waiting: usize) -> bool {
        let idle = match &self.draining {
            // The files are others then: no hole may be under way either.
            Some((Drain::Quiesce(_), _)) => self.queue.pipeline.is_idle(),
            Some((drain, _)) if drain.leaves_nothing() => self.again() == 0,
            _ => true,
        };
        idle && self.queue.in_flight() == waiting
    }

    /// Whether chains are taken that a process before this one had taken: also while a ring is stopped that
    /// must leave none in flight.
    fn takes_again(&self) -> bool {
        let stopping = self.draining.as_ref();
        stopping.is_some_and(|(drain, _)| drain.leaves_nothing())
            && self.suspended != Some(OnRevoke::Pause)
            && self.again() > 0
    }

    /// How many of these there are.
    fn again(&self) -> usize {
        let served = self.ring.as_ref().filter(|ring| !ring.is_broken());
        served.map_or(0, Ring::again)
    }

    /// Whether new chains are taken.
    fn takes(&self) -> bool {
        self.draining.is_none() && self.suspended != Some(OnRevoke::Pause)
    }

    /// Everything that was taken is completed: does what that was waited for, and answers.
    fn drained(&mut self, what: Drain, answer: SyncSender<Answer>) {
        let result = match what {
            Drain::Stop(_) => {
                self.queue.pipeline.store_mut().unwatch(KICK);
                Ok(self.end_ring().map_or(0, |ring| ring.next_avail()))
            }
            Drain::Suspend(mode) => self.drop_key(mode),
            Drain::Exit => {
                self.end_ring();
                self.exit = Some(answer);
                return;
            }
            Drain::Quiesce(told) => {
                let _ = answer.send(Ok(0));
                self.stay_quiesced(&told);
                return self.queue.pipeline.punch_on();
            }
        };
        let _ = answer.send(result);
    }

    fn drop_key(&mut self, mode: OnRevoke) -> Answer {
        self.suspended = Some(mode);
        if self.suspended_since.is_none() {
            self.suspended_since = Some(self.queue.counters.key_lost());
        }
        let gone = self.queue.pipeline.drop_key();
        // What has encrypted and decrypted was called from here, or deeper.
        wipe_call_stack();
        match gone {
            true => Ok(0),
            false => Err("a request without a chain is under way".into()),
        }
    }

    /// All queues wait here before any goes on, so that none serves the old disk while another
    /// serves the new one.
    fn stay_quiesced(&mut self, told: &Receiver<WhileQuiesced>) {
        self.pulse.does(Doing::Quiesced);
        while let Ok(told) = told.recv() {
            match told {
                WhileQuiesced::DestroyKey(mode, answer) => {
                    let _ = answer.send(self.drop_key(mode));
                }
                WhileQuiesced::Serve(extent) => {
                    if let Err(error) = self.queue.swap_volume(&extent) {
                        // What was completed is kept; the supervisor starts another process.
                        log::error!("queue {}: {error}", self.index);
                        std::process::exit(1);
                    }
                    return;
                }
            }
        }
    }

    /// Waits, after busy-polling for a moment if that has paid off lately.
    fn wait(&mut self, wait: Wait) -> Result<(), StoreError> {
        if !matches!(wait, Wait::Forever) {
            let wait = if self.arm(wait) { Wait::No } else { wait };
            let entered = self.queue.pipeline.store_mut().enter(wait);
            self.queue.counters.look_at_clock();
            return entered;
        }
        let what = match self.queue.pipeline.store_mut().is_busy() {
            true => WaitingFor::Store,
            false => WaitingFor::Guest,
        };
        let idle = now();
        let polled = self.busy_poll(what, idle)?;
        if polled.spent > 0 {
            self.queue.counters.polled(polled.spent);
        }
        if polled.found {
            self.queue.counters.at(idle + polled.spent);
            return Ok(());
        }
        let wait = match (self.arm(wait), self.queue.pipeline.keeps_memory_for()) {
            (true, _) => Wait::No,
            // To give memory back that is not needed any more.
            (false, Some(idle)) => Wait::AtMost(idle),
            (false, None) => wait,
        };
        self.queue.pipeline.store_mut().enter(wait)?;
        self.queue.counters.look_at_clock();
        let slept = self.queue.counters.moment().saturating_sub(idle);
        self.polling.slept(what, time_of(slept));
        Ok(())
    }

    /// Asks the guest for a kick before a wait. Whether there is no need to wait.
    fn arm(&mut self, wait: Wait) -> bool {
        let takes = self.takes() && self.queue.may_take();
        let queue = &self.queue;
        let serving = self
            .ring
            .as_mut()
            .filter(|r| takes && !r.is_broken() && queue.room(r) > 0);
        let (Some(ring), false) = (serving, matches!(wait, Wait::No)) else {
            return false;
        };
        match ring.arm() {
            Ok(more) => more,
            Err(error) => {
                self.break_ring(&error);
                false
            }
        }
    }

    /// Looks for a chain or a completion until the polling window is over.
    fn busy_poll(&mut self, what: WaitingFor, start: u64) -> Result<Polled, StoreError> {
        let window = self.polling.window(what);
        let serving = self
            .ring
            .as_ref()
            .filter(|ring| !ring.is_broken() && self.queue.room(ring) > 0);
        let serving = serving.filter(|_| self.takes() && self.queue.may_take());
        let store = self.queue.pipeline.store_mut();
        let mut polled = Polled::default();
        if window.is_zero() {
            return Ok(polled);
        }
        let window = ticks_of(window);
        loop {
            if store.is_busy() {
                store.enter(Wait::No)?;
                polled.found = store.has_news();
            }
            polled.found |= serving.is_some_and(Ring::has_available);
            if polled.found || polled.spent >= window {
                return Ok(polled);
            }
            polled.spent = now().saturating_sub(start);
            std::hint::spin_loop();
        }
    }

    fn obey(&mut self, command: Command, answer: SyncSender<Answer>) {
        let result = match command {
            Command::Start(setup) => self.start(*setup),
            Command::Stop(waiting) => {
                self.draining = Some((Drain::Stop(waiting), answer));
                return;
            }
            Command::Suspend(mode) => return self.drain(Drain::Suspend(mode), answer),
            Command::Quiesce(told) => {
                self.queue.pipeline.stop_punching();
                return self.drain(Drain::Quiesce(told), answer);
            }
            Command::Resume => self.resume(),
            Command::Memory(memory) => self.with_ring(|ring| ring.memory = memory),
            Command::Log(log) => self.with_ring(|ring| ring.log = log),
            Command::Call(call) => self.with_ring(|ring| ring.set_call(call.map(|call| *call))),
            Command::Err(err) => self.with_ring(|ring| ring.set_err(err)),
            Command::Exit => {
                self.draining = Some((Drain::Exit, answer));
                return;
            }
        };
        let _ = answer.send(result);
    }

    /// Takes no more chains until those taken are completed. One that a limit holds back is put back
    /// into the ring.
    fn drain(&mut self, what: Drain, answer: SyncSender<Answer>) {
        if let Some(ring) = &mut self.ring {
            self.queue.put_back_held(ring);
        }
        self.draining = Some((what, answer));
    }

    fn start(&mut self, setup: RingSetup) -> Answer {
        let ring = Ring::new(self.index as u16, setup).map_err(|e| e.to_string())?;
        self.queue.reserve(ring.size());
        let store = self.queue.pipeline.store_mut();
        store
            .watch(KICK, ring.kick_fd())
            .map_err(|e| e.to_string())?;
        let next = ring.next_avail();
        if self.ring.replace(ring).is_none() {
            self.queue.shared.rings.fetch_add(1, Ordering::Relaxed);
        }
        Ok(next)
    }

    /// Serves the ring no more, if there is one.
    fn end_ring(&mut self) -> Option<Ring> {
        let ring = self.ring.take()?;
        self.queue.shared.rings.fetch_sub(1, Ordering::Relaxed);
        Some(ring)
    }

    /// Has the kernel work for this ring with its share of the threads that the disk may have, once that
    /// has changed.
    fn share_workers(&mut self) {
        let rings = self.queue.shared.rings.load(Ordering::Relaxed);
        if rings == self.rings || self.ring.is_none() {
            return;
        }
        self.rings = rings;
        let most = self.queue.shared.workers_of(rings);
        if let Err(error) = self.queue.pipeline.store_mut().limit_workers(most) {
            log::debug!("queue {}: {error}", self.index);
        }
    }

    /// The next turn looks at the ring, so that what waits in it needs no kick.
    fn resume(&mut self) -> Answer {
        let shared = &self.queue.shared;
        let units = shared.extent().volume.data_units();
        match shared.key.ciphers(&units).map_err(|e| e.to_string())? {
            Ok(ciphers) => {
                self.queue.pipeline.set_key(ciphers);
                self.suspended = None;
                if let Some(since) = self.suspended_since.take() {
                    self.queue.counters.key_back(since);
                }
            }
            Err(mode) => self.suspended = Some(mode),
        }
        Ok(0)
    }

    fn with_ring(&mut self, change: impl FnOnce(&mut Ring)) -> Answer {
        if let Some(ring) = &mut self.ring {
            change(ring);
        }
        Ok(0)
    }

    fn break_ring(&mut self, error: &virtio_queue::Error) {
        let index = self.index;
        self.queue.broken_rings.warn(|| {
            format!("queue {index}: the guest broke its ring: {error}; it is served no more")
        });
        if let Some(ring) = &mut self.ring {
            ring.set_broken();
        }
    }

    fn complete_finished(&mut self) {
        if let Some(ring) = &mut self.ring
            && let Err(error) = self.queue.complete_all(ring, &mut self.finished)
        {
            self.break_ring(&error);
        }
    }
}

/// What chose the engine.
#[cfg(not(feature = "fips"))]
fn log_measurements(unit: DataUnit) {
    for measured in xts::measured_engines(unit).into_iter().flatten() {
        let rate = measured.rate / 1_000_000;
        log::debug!("{} does {rate} MB/s here", measured.engine);
    }
}

/// There is no choice.
#[cfg(feature = "fips")]
fn log_measurements(_: DataUnit) {}
