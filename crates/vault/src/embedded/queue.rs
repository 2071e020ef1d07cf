//! Uses of keys that wait for the transaction that settles them.
//!
//! The thread of one of them leads: it takes up all that wait, settles them, and wakes each thread once. Then it hands
//! the lead to the first that came meanwhile. So a use costs one sleep and one wake, however many there are; if
//! all waited for the lock of the database, each would be woken to find that it was settled, one after the other.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::KeyRow;
use crate::{Caller, KeyId, KeyPermission, VaultError, VaultErrorCode};

/// A use of a key that is to be checked and recorded.
pub(super) struct KeyUse {
    pub caller: Caller,
    pub key: KeyId,
    /// The name in the audit log.
    pub operation: &'static str,
    pub permission: KeyPermission,
}

/// How a use was settled.
pub(super) enum Settled {
    /// Allowed and recorded.
    Done(Arc<KeyRow>),
    /// The key is not as it was when RSA ran; nothing was recorded.
    Again,
}

/// What was done before settling.
pub(super) enum Speculation {
    /// Nothing, there is nothing to do or it was refused.
    None,
    /// RSA ran with the key version as it was then, with this result.
    Ran {
        row: Arc<KeyRow>,
        result: Result<(), VaultErrorCode>,
    },
}

/// A use that waits, and the thread that waits for it.
pub(super) struct Ticket {
    pub(super) key_use: Arc<KeyUse>,
    pub(super) speculation: Speculation,
    place: Mutex<Place>,
    changed: Condvar,
}

/// How far a ticket is.
enum Place {
    Waits,
    /// Its thread settles for all that wait.
    Leads,
    /// `None` when the thread that led panicked.
    Settled(Option<Result<Settled, VaultError>>),
}

/// What a thread that waited has got.
pub(super) enum Turn<'a> {
    /// The outcome of its use; `None` when the thread that led panicked.
    Settled(Option<Result<Settled, VaultError>>),
    /// It settles for all, its own use as well.
    Leads(Lead<'a>),
}

/// Who settles waits at most so long for others, while every CPU has work of theirs to do.
const GATHERING: Duration = Duration::from_millis(4);
/// So many uses are enough for one transaction.
const ENOUGH: usize = 32;

/// The tickets that nobody has taken up yet.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// That there are enough of them, or that it is not worth waiting any more.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    tickets: Vec<Arc<Ticket>>,
    /// A thread leads, or was told to.
    is_led: bool,
    /// Uses whose work is being done.
    working: usize,
    /// With as many, waiting for them costs no time that a CPU would have had for anything else. 0 does
    /// not wait.
    busy: usize,
}

impl Waiting {
    fn is_worth_waiting(&self) -> bool {
        self.busy > 0 && self.working >= self.busy && self.tickets.len() < ENOUGH
    }
}

impl Queue {
    /// From now on uses are gathered while that many are worked on.
    pub(super) fn gather(&self, busy: usize) {
        self.waiting().busy = busy;
    }

    /// Waits until a ticket is settled, or its thread is to settle all that wait.
    pub(super) fn wait(&self, ticket: &Arc<Ticket>) -> Turn<'_> {
        let mut waiting = self.waiting();
        waiting.tickets.push(ticket.clone());
        if waiting.tickets.len() == ENOUGH {
            self.changed.notify_one();
        }
        let leads = !waiting.is_led;
        waiting.is_led = true;
        drop(waiting);
        match leads {
            true => Turn::Leads(Lead::of(self)),
            false => match ticket.wait() {
                Some(outcome) => Turn::Settled(outcome),
                None => Turn::Leads(Lead::of(self)),
            },
        }
    }

    /// Takes the tickets up. A use that is alone is not kept waiting; many share a transaction and its sync.
    fn take(&self) -> Vec<Arc<Ticket>> {
        let gathered = self
            .changed
            .wait_timeout_while(self.waiting(), GATHERING, |waiting| {
                waiting.is_worth_waiting()
            });
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut waiting.tickets)
    }

    /// Marks a use as one that is worked on, until the guard is dropped.
    pub(super) fn begin(&self) -> Working<'_> {
        self.waiting().working += 1;
        Working(self)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A use that is worked on.
pub(super) struct Working<'a>(&'a Queue);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.working -= 1;
        if waiting.working + 1 == waiting.busy {
            self.0.changed.notify_one();
        }
    }
}

/// The lead, until this is dropped: then the first that came meanwhile has it.
pub(super) struct Lead<'a> {
    queue: &'a Queue,
    batch: Vec<Arc<Ticket>>,
}

impl<'a> Lead<'a> {
    fn of(queue: &'a Queue) -> Self {
        let batch = Vec::new();
        Self { queue, batch }
    }

    /// Takes up all that wait, to be settled.
    pub(super) fn take(&mut self) -> &[Arc<Ticket>] {
        self.batch = self.queue.take();
        &self.batch
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Only a thread that panicked in the middle of a batch leaves some.
        for ticket in &self.batch {
            ticket.abandon();
        }
        let mut waiting = self.queue.waiting();
        let next = waiting.tickets.first().cloned();
        waiting.is_led = next.is_some();
        drop(waiting);
        if let Some(next) = next {
            next.set(Place::Leads);
        }
    }
}

impl Ticket {
    pub(super) fn new(key_use: Arc<KeyUse>, speculation: Speculation) -> Arc<Self> {
        Arc::new(Self {
            key_use,
            speculation,
            place: Mutex::new(Place::Waits),
            changed: Condvar::new(),
        })
    }

    /// Settles it, and wakes its thread.
    pub(super) fn put(&self, outcome: Result<Settled, VaultError>) {
        self.set(Place::Settled(Some(outcome)));
    }

    /// The outcome, once, if it is settled.
    pub(super) fn take(&self) -> Option<Result<Settled, VaultError>> {
        match &mut *self.place() {
            Place::Settled(outcome) => outcome.take(),
            Place::Waits | Place::Leads => None,
        }
    }

    fn abandon(&self) {
        if !matches!(*self.place(), Place::Settled(_)) {
            self.set(Place::Settled(None));
        }
    }

    fn set(&self, place: Place) {
        *self.place() = place;
        self.changed.notify_one();
    }

    /// Waits until it is settled; `None` when its thread is to lead.
    fn wait(&self) -> Option<Option<Result<Settled, VaultError>>> {
        let is_waiting = |place: &mut Place| matches!(place, Place::Waits);
        let place = self.changed.wait_while(self.place(), is_waiting);
        match &mut *place.unwrap_or_else(PoisonError::into_inner) {
            Place::Settled(outcome) => Some(outcome.take()),
            Place::Waits | Place::Leads => None,
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_use_waits_for_others_only_while_they_have_work_for_every_cpu() {
        let queue = Queue::default();
        let is_worth_waiting = || queue.waiting().is_worth_waiting();
        let one = queue.begin();
        assert!(!is_worth_waiting(), "this process does not gather");
        queue.gather(2);
        assert!(!is_worth_waiting(), "a CPU is idle");
        let two = queue.begin();
        assert!(is_worth_waiting());
        drop(one);
        assert!(!is_worth_waiting());
        drop(two);
        assert_eq!(queue.waiting().working, 0);
        assert!(queue.take().is_empty(), "nobody is waited for");
    }

    fn ticket() -> Arc<Ticket> {
        let key_use = KeyUse {
            caller: Caller::local(uuid::Uuid::nil()),
            key: crate::embedded::keys::latest("k"),
            operation: "GetKey",
            permission: KeyPermission::Get,
        };
        Ticket::new(Arc::new(key_use), Speculation::None)
    }

    #[test]
    fn one_thread_leads_and_every_use_is_settled_once() {
        let queue = Queue::default();
        let (leading, settled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = || {
            for round in 0..200 {
                let ticket = ticket();
                let outcome = match queue.wait(&ticket) {
                    Turn::Settled(outcome) => outcome,
                    Turn::Leads(mut lead) => {
                        assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                        let batch = lead.take();
                        if round % 7 == 0 {
                            std::thread::yield_now();
                        }
                        assert!(batch.iter().any(|one| Arc::ptr_eq(one, &ticket)));
                        batch.iter().for_each(|one| one.put(Ok(Settled::Again)));
                        leading.fetch_sub(1, Ordering::SeqCst);
                        drop(lead);
                        ticket.take()
                    }
                };
                assert!(matches!(outcome, Some(Ok(Settled::Again))));
                settled.fetch_add(1, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(one);
            }
        });
        assert_eq!(settled.into_inner(), 1600);
        assert!(!queue.waiting().is_led);
    }

    #[test]
    fn a_thread_that_panics_while_it_leads_keeps_nobody_waiting() {
        let queue = Queue::default();
        let first = ticket();
        let Turn::Leads(mut lead) = queue.wait(&first) else {
            panic!("nobody else is there");
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| matches!(queue.wait(&ticket()), Turn::Settled(None)));
            while queue.waiting().tickets.len() < 2 {
                std::thread::yield_now();
            }
            assert_eq!(lead.take().len(), 2);
            // What came after the batch was taken up has the lead next.
            let third = scope.spawn(|| matches!(queue.wait(&ticket()), Turn::Leads(_)));
            while queue.waiting().tickets.is_empty() {
                std::thread::yield_now();
            }
            drop(lead);
            assert!(second.join().unwrap());
            assert!(third.join().unwrap());
        });
    }
}
