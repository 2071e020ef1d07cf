//! The thread that serves lanes.
//!
//! There are the lanes of one data plane at a time. Those of the next one are served when all that the last one had
//! submitted has ended, so that no old write lands after a new one. What has been submitted and not been taken by then is
//! never done: who submitted it has ended, and the guest was told nothing of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use store_ring::{Operation, ServerLane, Taken};

use crate::StoreProcessError;
use crate::backend::{Backend, Bytes, Outcome, Token};
use crate::eventfd::{Alarm, quiet};

/// Operations of one lane that are taken before others have their turn.
const TURN: usize = 32;

/// How long the thread sleeps at most.
const NAP: Duration = Duration::from_secs(5);

/// What the thread is told.
enum Order<B> {
    /// Serve these lanes from now on.
    Lanes(Vec<ServerLane>),
    /// Do something with what does the I/O.
    Do(Box<dyn FnOnce(&mut B) + Send>),
    /// Take nothing more, and tell when nothing is under way.
    Drain(SyncSender<()>),
}

/// Tells the thread what to do, from other threads.
pub(crate) struct EngineHandle<B> {
    orders: Sender<Order<B>>,
    wake: Alarm,
    progress: Arc<Progress>,
}

impl<B: Backend> EngineHandle<B> {
    fn order(&self, order: Order<B>) -> Result<(), StoreProcessError> {
        let sent = self.orders.send(order);
        self.wake.ring();
        sent.map_err(|_| StoreProcessError::Ended("thread that serves lanes"))
    }

    /// Has it serve the lanes of another data plane.
    pub(crate) fn serve(&self, lanes: Vec<ServerLane>) -> Result<(), StoreProcessError> {
        self.order(Order::Lanes(lanes))
    }

    /// Has it do something with what does the I/O, and waits for that.
    pub(crate) fn with_backend<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut B) -> T + Send + 'static,
    ) -> Result<T, StoreProcessError> {
        let (answer, answered) = sync_channel(1);
        let act = move |backend: &mut B| {
            // Who asks waits.
            let _ = answer.send(act(backend));
        };
        self.order(Order::Do(Box::new(act)))?;
        answered
            .recv()
            .map_err(|RecvError| StoreProcessError::Ended("thread that serves lanes"))
    }

    /// Has it take nothing more, and waits until nothing is under way, for so long at most; whether that is so.
    pub(crate) fn drain(&self, patience: Duration) -> bool {
        let (answer, answered) = sync_channel(1);
        self.order(Order::Drain(answer)).is_ok() && answered.recv_timeout(patience).is_ok()
    }

    /// There is nothing more to tell: the thread ends when nothing is under way.
    pub(crate) fn end(self) {
        let Self { orders, wake, .. } = self;
        drop(orders);
        wake.ring();
    }

    /// Since when operations have been under way without one of them ending, if they have.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        self.progress.since()
    }
}

/// When something has last gone on, for who watches from outside.
struct Progress {
    start: Instant,
    /// Milliseconds since the start, and one more; 0 while nothing is under way.
    since: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    fn is_idle(&self) -> bool {
        self.since.load(Ordering::Relaxed) == 0
    }

    fn note(&self, under_way: bool) {
        let now = match under_way {
            true => self.start.elapsed().as_millis() as u64 + 1,
            false => 0,
        };
        self.since.store(now, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        self.start.checked_add(Duration::from_millis(since))
    }
}

/// The lanes of a data plane.
struct Group {
    number: u32,
    lanes: Vec<ServerLane>,
    /// Another one has come after it: nothing is taken any more.
    is_over: bool,
}

impl Group {
    fn under_way(&self) -> usize {
        self.lanes.iter().map(ServerLane::under_way).sum()
    }
}

/// Serves lanes.
pub(crate) struct Engine<B> {
    backend: B,
    /// The first is served, once those before it are gone.
    groups: VecDeque<Group>,
    next: u32,
    orders: Receiver<Order<B>>,
    /// There will be no more of these.
    is_alone: bool,
    wake: Alarm,
    progress: Arc<Progress>,
    drained: Vec<SyncSender<()>>,
    ended: Vec<(Token, Outcome)>,
}

impl<B: Backend> Engine<B> {
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(backend: B) -> io::Result<(Self, EngineHandle<B>)> {
        let (orders, told) = channel();
        let (wake, progress) = (Alarm::new()?, Arc::new(Progress::new()));
        let engine = Self {
            backend,
            groups: VecDeque::new(),
            next: 0,
            orders: told,
            is_alone: false,
            wake: wake.clone(),
            progress: progress.clone(),
            drained: Vec::new(),
            ended: Vec::new(),
        };
        let handle = EngineHandle {
            orders,
            wake,
            progress,
        };
        Ok((engine, handle))
    }

    /// Serves until nobody is left to tell it anything, and nothing is under way.
    ///
    /// # Errors
    /// [`StoreProcessError::Ring`]: the data plane does not keep to the rules. The process is to end.
    pub(crate) fn run(mut self) -> Result<(), StoreProcessError> {
        loop {
            self.obey();
            let ended = self.finish()?;
            let taken = self.take()?;
            let under_way = self.groups.iter().any(|group| group.under_way() > 0);
            if ended || !under_way || (taken && self.progress.is_idle()) {
                self.progress.note(under_way);
            }
            if !under_way {
                for answer in self.drained.drain(..) {
                    // Who has asked may have lost patience.
                    let _ = answer.send(());
                }
                if self.is_alone {
                    return Ok(());
                }
            }
            if !ended && !taken {
                self.sleep()?;
            }
        }
    }

    fn obey(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Lanes(lanes)) => {
                    self.retire();
                    let number = self.next;
                    self.next = self.next.wrapping_add(1);
                    self.groups.push_back(Group {
                        number,
                        lanes,
                        is_over: false,
                    });
                }
                Ok(Order::Do(act)) => act(&mut self.backend),
                Ok(Order::Drain(answer)) => {
                    self.retire();
                    self.drained.push(answer);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.retire();
                    self.is_alone = true;
                    return;
                }
            }
        }
    }

    /// Takes nothing more from the lanes that there are.
    fn retire(&mut self) {
        self.groups
            .iter_mut()
            .for_each(|group| group.is_over = true);
    }

    /// Tells data planes what has ended; whether anything has.
    fn finish(&mut self) -> Result<bool, StoreProcessError> {
        self.backend.ended(&mut self.ended);
        let any = !self.ended.is_empty();
        for (token, outcome) in self.ended.drain(..) {
            let group = self.groups.iter_mut().find(|it| it.number == token.group);
            let lane = group.and_then(|group| group.lanes.get_mut(usize::from(token.lane)));
            let was = lane.is_some_and(|lane| lane.complete(token.slot.into(), outcome));
            debug_assert!(was, "{token:?} was not under way");
        }
        if any {
            for group in &mut self.groups {
                for lane in &mut group.lanes {
                    lane.publish()?;
                }
            }
        }
        self.groups
            .retain(|group| !group.is_over || group.under_way() > 0);
        Ok(any)
    }

    /// Begins what the served data plane has submitted; whether there was anything.
    fn take(&mut self) -> Result<bool, StoreProcessError> {
        let Some(group) = self.groups.front_mut().filter(|group| !group.is_over) else {
            return Ok(false);
        };
        let mut any = false;
        for (number, lane) in (0u16..).zip(&mut group.lanes) {
            for _ in 0..TURN {
                let Some(Taken { slot, operation }) = lane.take()? else {
                    break;
                };
                any = true;
                let bytes = match operation {
                    Operation::Read { data, .. } | Operation::Write { data, .. } => {
                        Some(Bytes::new(lane.memory().clone(), data))
                    }
                    Operation::Sync { .. } | Operation::Punch { .. } => None,
                };
                let token = Token {
                    group: group.number,
                    lane: number,
                    // It was checked to be less than the depth of a lane.
                    slot: slot as u16,
                };
                self.backend.begin(token, operation, bytes);
            }
        }
        Ok(any)
    }

    /// Waits until there is something to do.
    fn sleep(&mut self) -> Result<(), StoreProcessError> {
        let front = self.groups.front().filter(|group| !group.is_over);
        let lanes = front.map_or(&[] as &[ServerLane], |group| group.lanes.as_slice());
        let sleeps = lanes.iter().all(ServerLane::may_sleep);
        if sleeps {
            let fds: Vec<BorrowedFd<'_>> = [self.wake.as_fd(), self.backend.woken_by()]
                .into_iter()
                .chain(lanes.iter().map(ServerLane::woken_by))
                .collect();
            wait_for(&fds)?;
            // What does the I/O takes its own back.
            quiet(self.wake.as_fd());
            lanes.iter().for_each(|lane| quiet(lane.woken_by()));
        }
        lanes.iter().for_each(ServerLane::awake);
        Ok(())
    }
}

/// Waits until one of these can be read from, or for a while.
fn wait_for(fds: &[BorrowedFd<'_>]) -> Result<(), StoreProcessError> {
    let mut watched: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let nap = Timespec {
        tv_sec: NAP.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut watched, Some(&nap)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(StoreProcessError::io("wait for a data plane")(error)),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
