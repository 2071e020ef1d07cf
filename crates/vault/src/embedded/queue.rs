//! Uses of keys that wait for the transaction that settles them.

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

pub(super) struct Ticket {
    pub(super) key_use: Arc<KeyUse>,
    pub(super) speculation: Speculation,
    pub(super) outcome: Mutex<Option<Result<Settled, VaultError>>>,
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

    pub(super) fn push(&self, ticket: Arc<Ticket>) {
        let mut waiting = self.waiting();
        waiting.tickets.push(ticket);
        if waiting.tickets.len() == ENOUGH {
            self.changed.notify_one();
        }
    }

    /// Takes the tickets up. A use that is alone is not kept waiting; many share a transaction and its sync.
    pub(super) fn take(&self) -> Vec<Arc<Ticket>> {
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

impl Ticket {
    pub(super) fn put(&self, outcome: Result<Settled, VaultError>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    pub(super) fn take(&self) -> Option<Result<Settled, VaultError>> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[cfg(test)]
mod tests {
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
}
