//! The thread of one virtqueue: it owns the ring, the pipeline and the wait for both.
//!
//! Each turn it takes commands from the connection's thread, carries the pipeline on, completes
//! what is finished, takes new chains, notifies the guest once, and waits for a kick, a completion
//! or a command in one system call that submits new I/O as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::fs::File;
use std::os::fd::AsRawFd;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::cipher::{Cipher, SharedSlice};
use crate::keys::Dek;
use crate::pipeline::{Finished, GuestBuffer, Op, OpError, OpKind, Pipeline, Slots, Token};
use crate::request::{Action, ChainLimits, Disk, Memory, Scratch, Status, interpret, read_chain};
use crate::store::{LayerFiles, StoreError, UringStore, Wait, WatchId};
use crate::volume::Volume;

use super::FrontendError;
use super::dirty_log::DirtyLog;
use super::limits::Limiter;
use super::log_limit::LogLimit;
use super::polling::{Polling, WaitingFor};
use super::ring::{Ring, RingSetup};

const WAKE: WatchId = WatchId(0);
const KICK: WatchId = WatchId(1);

/// How long a request waits at most for a limit, before it looks whether the limit was changed.
const LIMIT_LOOK: Duration = Duration::from_millis(50);

/// How long a request waits that another queue is in the way of, before it is tried again.
const RETRY: Duration = Duration::from_micros(200);

/// What all queues of the disk share.
pub(super) struct Shared {
    pub(super) volume: Arc<Volume>,
    pub(super) files: LayerFiles,
    pub(super) dek: Dek,
    pub(super) disk: Disk,
    pub(super) limits: ChainLimits,
    /// The longest time that a queue looks busily for work before it sleeps.
    pub(super) poll: Duration,
    /// What all queues together may do at most.
    pub(super) limiter: Limiter,
    /// Writes are to be durable before they complete.
    pub(super) write_through: AtomicBool,
}

/// What a worker is told. Each command is answered when it is done.
pub(super) enum Command {
    /// Serve a ring.
    Start(Box<RingSetup>),
    /// Serve it no more: take no new chain, complete those taken.
    Stop,
    /// Use this memory from now on.
    Memory(Arc<Memory>),
    /// Note written pages here, or nowhere.
    Log(Option<Arc<DirtyLog>>),
    /// Notify the guest through this.
    Call(Option<File>),
    /// Tell of a broken ring through this.
    Err(Option<File>),
    /// End the thread.
    Exit,
}

type Answer = Result<u16, String>;

/// The other threads' end of a worker.
pub(super) struct WorkerHandle {
    commands: SyncSender<(Command, SyncSender<Answer>)>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread of queue `index`.
    pub(super) fn spawn(shared: Arc<Shared>, index: usize) -> Result<Self, FrontendError> {
        let fail = |what| move |source| FrontendError::Io { what, source };
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(fail("make an eventfd"))?;
        let wake_worker = wake.try_clone().map_err(fail("duplicate an eventfd"))?;
        let (commands, receiver) = sync_channel(1);
        let (ready, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("queue-{index}"))
            .spawn(
                move || match Worker::new(shared, index, receiver, wake_worker) {
                    Ok(worker) => {
                        let _ = ready.send(Ok(()));
                        worker.run();
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                },
            )
            .map_err(fail("start a queue's thread"))?;
        let gone = || FrontendError::Setup("a queue's thread ended at its start".into());
        is_ready.recv().map_err(|_| gone())??;
        Ok(Self {
            commands,
            wake,
            thread: Some(thread),
        })
    }

    /// Has the worker do something and waits until it is done. The answer is the index of the next
    /// entry of the avail ring, or why it could not be done.
    pub(super) fn tell(&self, command: Command) -> Answer {
        let gone = || "the queue's thread has ended".to_owned();
        let (answer, answered) = sync_channel(1);
        self.commands.send((command, answer)).map_err(|_| gone())?;
        self.wake.write(1).map_err(|e| e.to_string())?;
        answered.recv().map_err(|_| gone())?
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        let _ = self.tell(Command::Exit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A chain taken from the ring and not yet returned.
struct Pending {
    head: u16,
    status: GuestAddress,
    /// Bytes of data that the guest gets if all goes well.
    writable: u32,
    /// Where they go, noted only while the guest is migrated.
    written: Vec<(GuestAddress, u32)>,
    memory: Arc<Memory>,
}

struct Worker {
    index: usize,
    ring: Option<Ring>,
    queue: QueueState,
    commands: Receiver<(Command, SyncSender<Answer>)>,
    /// Kept open for as long as the ring of the store watches it.
    _wake: EventFd,
    polling: Polling,
    /// Who waits for the end of a stop.
    stopping: Option<SyncSender<Answer>>,
    finished: Vec<Finished>,
    events: Vec<WatchId>,
}

/// What taking a chain needs besides the ring.
struct QueueState {
    shared: Arc<Shared>,
    pipeline: Pipeline<UringStore>,
    pending: Slots<Pending>,
    /// The next request, when a limit holds it back; no chain is taken before it has passed.
    held: Option<Op>,
    scratch: Scratch,
    /// Lists of requests that are done, to be used again.
    lists: Vec<Vec<SharedSlice>>,
    bad_chains: LogLimit,
    broken_rings: LogLimit,
    failures: LogLimit,
}

impl Worker {
    fn new(
        shared: Arc<Shared>,
        index: usize,
        commands: Receiver<(Command, SyncSender<Answer>)>,
        wake: EventFd,
    ) -> Result<Self, FrontendError> {
        let cipher = Cipher::new(&shared.dek, shared.volume.geometry().data_unit)?;
        if index == 0 {
            log::info!("AES-256-XTS by the engine {}", cipher.engine_name());
        }
        let mut store = UringStore::new(shared.files.try_clone()?)?;
        store.watch(WAKE, wake.as_raw_fd());
        let pipeline = Pipeline::new(shared.volume.clone(), store, cipher)?;
        let polling = Polling::new(shared.poll);
        let queue = QueueState {
            shared,
            pipeline,
            pending: Slots::with_capacity(256),
            held: None,
            scratch: Scratch::default(),
            lists: Vec::with_capacity(256),
            bad_chains: LogLimit::default(),
            broken_rings: LogLimit::default(),
            failures: LogLimit::default(),
        };
        Ok(Self {
            index,
            ring: None,
            queue,
            commands,
            _wake: wake,
            polling,
            stopping: None,
            finished: Vec::with_capacity(256),
            events: Vec::with_capacity(2),
        })
    }

    fn run(mut self) {
        loop {
            while self.stopping.is_none()
                && let Ok((command, answer)) = self.commands.try_recv()
            {
                if matches!(command, Command::Exit) {
                    self.ring = None;
                    let _ = answer.send(Ok(0));
                    return;
                }
                self.obey(command, answer);
            }
            let wait = self.turn();
            if let Err(error) = self.wait(wait) {
                // Without its ring the queue is lost. What was completed to the guest is kept by
                // the runtime map, and the frontend can connect to the next process.
                log::error!("queue {}: {error}", self.index);
                std::process::exit(1);
            }
            self.events.clear();
            self.queue
                .pipeline
                .store_mut()
                .take_events(&mut self.events);
        }
    }

    /// One round of work; answers how to wait for the next.
    fn turn(&mut self) -> Wait {
        self.queue.pipeline.poll();
        let held = self.queue.pass_held(self.stopping.is_some());
        self.complete_finished();
        let mut more = false;
        if self.stopping.is_none()
            && held.is_none()
            && let Some(ring) = self.ring.as_mut().filter(|ring| !ring.is_broken())
        {
            let most = ring.size().saturating_sub(self.queue.pending.len());
            let queue = &mut self.queue;
            match ring.pop(most, |ring, chain| queue.take(ring, chain)) {
                Ok(answer) => more = answer && most > 0,
                Err(error) => self.break_ring(&error),
            }
            // Reads of zeros and the like are finished without any I/O.
            self.complete_finished();
        }
        if let Some(ring) = self.ring.as_mut()
            && let Err(error) = ring.notify()
        {
            self.break_ring(&error);
        }
        if self.queue.pending.is_empty()
            && let Some(answer) = self.stopping.take()
        {
            let next = self.ring.take().map_or(0, |ring| ring.next_avail());
            self.queue.pipeline.store_mut().unwatch(KICK);
            let _ = answer.send(Ok(next));
            more = true;
        }
        let held = held.or(self.queue.held.as_ref().map(|_| RETRY));
        let pipeline = &self.queue.pipeline;
        match (
            more || pipeline.is_between_bursts(),
            pipeline.waits_for_others(),
            held,
        ) {
            (true, _, _) => Wait::No,
            (false, true, _) => Wait::AtMost(RETRY),
            (false, false, Some(wait)) => Wait::AtMost(wait.min(LIMIT_LOOK)),
            (false, false, None) => Wait::Forever,
        }
    }

    /// Waits, after having looked busily for a moment if that has paid lately.
    fn wait(&mut self, wait: Wait) -> Result<(), StoreError> {
        if !matches!(wait, Wait::Forever) {
            let wait = if self.arm(wait) { Wait::No } else { wait };
            return self.queue.pipeline.store_mut().enter(wait);
        }
        let what = match self.queue.pipeline.store_mut().is_busy() {
            true => WaitingFor::Store,
            false => WaitingFor::Guest,
        };
        let idle = Instant::now();
        if self.look_busily(what, idle)? {
            return Ok(());
        }
        let wait = if self.arm(wait) { Wait::No } else { wait };
        self.queue.pipeline.store_mut().enter(wait)?;
        self.polling.slept(what, idle.elapsed());
        Ok(())
    }

    /// Asks the guest for a kick before a wait. Whether there is no need to wait.
    fn arm(&mut self, wait: Wait) -> bool {
        let takes = self.stopping.is_none() && self.queue.held.is_none();
        let room = self.queue.pending.len();
        let serving = self
            .ring
            .as_mut()
            .filter(|r| takes && !r.is_broken() && room < r.size());
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

    /// Looks for a chain or a completion until the polling window is over. Whether there is one.
    fn look_busily(&mut self, what: WaitingFor, start: Instant) -> Result<bool, StoreError> {
        let window = self.polling.window(what);
        let store = self.queue.pipeline.store_mut();
        if window.is_zero() {
            return Ok(false);
        }
        let room = self.queue.pending.len();
        loop {
            if store.is_busy() {
                store.enter(Wait::No)?;
                if store.has_news() {
                    return Ok(true);
                }
            }
            let ring = self
                .ring
                .as_ref()
                .filter(|ring| !ring.is_broken() && room < ring.size());
            if self.stopping.is_none() && ring.is_some_and(Ring::has_available) {
                return Ok(true);
            }
            if start.elapsed() >= window {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn obey(&mut self, command: Command, answer: SyncSender<Answer>) {
        let result = match command {
            Command::Start(setup) => self.start(*setup),
            Command::Stop => {
                self.stopping = Some(answer);
                return;
            }
            Command::Memory(memory) => self.with_ring(|ring| ring.memory = memory),
            Command::Log(log) => self.with_ring(|ring| ring.log = log),
            Command::Call(call) => self.with_ring(|ring| ring.set_call(call)),
            Command::Err(err) => self.with_ring(|ring| ring.set_err(err)),
            Command::Exit => Ok(0),
        };
        let _ = answer.send(result);
    }

    fn start(&mut self, setup: RingSetup) -> Answer {
        let ring = Ring::new(setup).map_err(|e| e.to_string())?;
        self.queue.pipeline.store_mut().watch(KICK, ring.kick_fd());
        let next = ring.next_avail();
        self.ring = Some(ring);
        Ok(next)
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
        self.queue.pipeline.take_finished(&mut self.finished);
        let mut broken = None;
        for done in self.finished.drain(..) {
            if let Some(ring) = &mut self.ring
                && let Err(error) = self.queue.complete(ring, done)
            {
                broken = Some(error);
            }
        }
        if let Some(error) = broken {
            self.break_ring(&error);
        }
    }
}

impl QueueState {
    /// Hands the request that was held back to the pipeline, if it may pass now or has to since the
    /// ring is stopped; else how long it still waits.
    fn pass_held(&mut self, stopping: bool) -> Option<Duration> {
        let op = self.held.take()?;
        match self.shared.limiter.admit(op.len) {
            Err(wait) if !stopping => {
                self.held = Some(op);
                Some(wait)
            }
            _ => {
                self.pipeline.submit(op);
                None
            }
        }
    }

    /// Takes a chain on: answers it or hands it to the pipeline. Whether another may follow.
    fn take(
        &mut self,
        ring: &mut Ring,
        descriptors: virtio_queue::DescriptorChain<&Memory>,
    ) -> Result<bool, virtio_queue::Error> {
        let head = descriptors.head_index();
        if usize::from(head) >= ring.size() {
            return Err(virtio_queue::Error::InvalidDescriptorIndex);
        }
        let list = self.lists.pop().unwrap_or_default();
        let memory = ring.memory.clone();
        let limits = self.shared.limits;
        let chain = match read_chain(&memory, descriptors, limits, &mut self.scratch, list) {
            Ok(chain) => chain,
            Err(error) => {
                self.bad_chains
                    .warn(|| format!("a request cannot be understood: {error}"));
                return ring.push_used(head, 0).map(|()| true);
            }
        };
        let durable = self.shared.write_through.load(Ordering::Acquire);
        let action = interpret(&chain, &self.shared.disk, durable);
        let logging = ring.log.is_some() && chain.writable > 0;
        let pending = Pending {
            head,
            status: chain.status,
            writable: chain.writable as u32,
            written: if logging {
                self.scratch.writable.clone()
            } else {
                Vec::new()
            },
            memory: memory.clone(),
        };
        match action {
            Action::Answer { status, written } => {
                self.lists.push(cleared(chain.data));
                finish(ring, &pending, status, written).map(|()| true)
            }
            Action::Submit { kind, at, len } => {
                let token = Token(u64::from(self.pending.insert(pending)));
                let buffer = GuestBuffer {
                    slices: chain.data,
                    owner: Some(memory),
                };
                let op = Op {
                    kind,
                    at,
                    len,
                    memory: buffer,
                    token,
                };
                match self.shared.limiter.admit(len) {
                    Err(_) if kind != OpKind::Flush => self.held = Some(op),
                    _ => self.pipeline.submit(op),
                }
                Ok(self.held.is_none())
            }
        }
    }

    /// Returns a chain whose request is finished.
    fn complete(&mut self, ring: &mut Ring, done: Finished) -> Result<(), virtio_queue::Error> {
        self.lists.push(cleared(done.memory.slices));
        let Some(pending) = self.pending.remove(done.token.0 as u32) else {
            return Ok(());
        };
        match done.result {
            Ok(()) => finish(ring, &pending, Status::Ok, pending.writable),
            Err(error) => {
                self.failures.warn(|| describe(&error));
                finish(ring, &pending, Status::IoError, 0)
            }
        }
    }
}

fn describe(error: &OpError) -> String {
    match error {
        OpError::Store(store) if StoreError::is_no_space(store) => {
            format!("a request failed: {error}; make space on the host's file system")
        }
        _ => format!("a request failed: {error}"),
    }
}

fn cleared(mut list: Vec<SharedSlice>) -> Vec<SharedSlice> {
    list.clear();
    list
}

/// The status byte first, then the used entry with the number of bytes written (§2.7.8).
fn finish(
    ring: &mut Ring,
    pending: &Pending,
    status: Status,
    written: u32,
) -> Result<(), virtio_queue::Error> {
    if pending
        .memory
        .write_obj(status.byte(), pending.status)
        .is_err()
    {
        return ring.push_used(pending.head, 0);
    }
    if let Some(log) = &ring.log {
        log.mark(pending.status, 1);
        for (at, len) in &pending.written {
            log.mark(*at, u64::from(*len));
        }
    }
    // A status that does not lie right behind the data would make the count say more than was
    // written, which a driver must not rely on either way.
    ring.push_used(pending.head, written.saturating_add(1))
}
