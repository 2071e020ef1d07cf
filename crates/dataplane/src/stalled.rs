//! Requests that wait for space on the host.
//!
//! With [`OnFull::Pause`](protocol::OnFull::Pause) a request that failed because the host's storage is
//! full stays with its queue, which submits it again as a whole: its guest memory is still there, and
//! doing all of a request once more does no harm, since the guest was told nothing of it yet. What it
//! had done already is done again, also when its flush could not write the map.
//!
//! One of them is tried at a time, each in its turn. When one gets through, all others are tried at
//! once. Requests that need no space pass them meanwhile.
//!
//! A *sync* that fails is no such failure, whatever the kernel says: a file system that finds no space
//! only then, as those that allocate late may, has dropped completed writes already.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use protocol::Event;
use volume::pipeline::{RequestError, Submission};

use super::log_limit::LogLimit;

/// The time between two tries.
const PERIOD: Duration = Duration::from_millis(500);
/// How long no request must have waited before the storage is said to have space: a guest that
/// writes and discards at the edge must not fill the host's log, nor drive other events away.
const SETTLED: Duration = Duration::from_secs(5);

/// Whether any queue of the disk has requests that wait for space.
pub(super) struct FullStorage {
    queues: AtomicUsize,
    changed: EventFd,
}

impl FullStorage {
    /// No queue has any yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queues: AtomicUsize::new(0),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Has something to read when the answer of [`FullStorage::is_full`] may have changed.
    pub(super) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Whether requests wait. Changes from now on are told anew.
    pub(super) fn is_full(&self) -> bool {
        // There is nothing to read when it did not change.
        let _ = self.changed.read();
        self.queues.load(Ordering::Acquire) > 0
    }

    fn enter(&self) {
        if self.queues.fetch_add(1, Ordering::AcqRel) == 0 {
            // It cannot overflow: it is read whenever it is not zero.
            let _ = self.changed.write(1);
        }
    }

    fn leave(&self) {
        if self.queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.changed.write(1);
        }
    }
}

/// What the control process was told of the storage.
#[derive(Default)]
pub(super) struct StorageNews {
    told_full: bool,
    /// Since when no request waits, while the control process still believes that some do.
    ok_since: Option<Instant>,
}

impl StorageNews {
    /// What the attach process is to be told now, if anything.
    pub(super) fn look(&mut self, full: bool, now: Instant) -> Option<Event> {
        if full {
            self.ok_since = None;
            return match std::mem::replace(&mut self.told_full, true) {
                true => None,
                false => Some(Event::StorageFull),
            };
        }
        if !self.told_full {
            return None;
        }
        let since = *self.ok_since.get_or_insert(now);
        if now.saturating_duration_since(since) < SETTLED {
            return None;
        }
        *self = Self::default();
        Some(Event::StorageOk)
    }

    /// When to look again, though nothing may have happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ok_since.map(|since| since + SETTLED)
    }
}

/// The requests of one queue that wait for space.
pub(super) struct Stalled {
    storage: Arc<FullStorage>,
    /// Those that are not being tried just now.
    submissions: VecDeque<Submission>,
    /// All of them, also those that are being tried.
    count: usize,
    /// How many of `submissions` are to be tried at once.
    hurry: usize,
    /// When the next one is tried.
    due: Instant,
    warnings: LogLimit,
}

impl Stalled {
    pub(super) fn new(storage: Arc<FullStorage>) -> Self {
        Self {
            storage,
            submissions: VecDeque::new(),
            count: 0,
            hurry: 0,
            due: Instant::now(),
            warnings: LogLimit::default(),
        }
    }

    /// Requests that are not being tried just now.
    pub(super) fn len(&self) -> usize {
        self.submissions.len()
    }

    /// Keeps a request that found no space, `again` if it was kept before.
    pub(super) fn keep(&mut self, submission: Submission, again: bool, error: &RequestError) {
        if !again {
            if self.count == 0 {
                self.due = Instant::now() + PERIOD;
                self.storage.enter();
            }
            self.count += 1;
        }
        self.warnings.warn(|| {
            format!(
                "a request waits for space on the host: {error}; it is tried again until there is \
                 some"
            )
        });
        self.submissions.push_back(submission);
    }

    /// Notes the end of a request that was kept, which got through if there was space.
    pub(super) fn ended(&mut self, space: bool) {
        if space {
            self.hurry = self.submissions.len();
        }
        self.count -= 1;
        if self.count == 0 {
            self.storage.leave();
        }
    }

    /// The next request that is to be tried now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Submission> {
        if self.hurry > 0 {
            self.hurry -= 1;
        } else if self.submissions.is_empty() || now < self.due {
            return None;
        } else {
            self.due = now + PERIOD;
        }
        self.submissions.pop_front()
    }

    /// How long [`Stalled::next`] will have nothing.
    pub(super) fn wait(&self) -> Option<Duration> {
        match (self.submissions.is_empty(), self.hurry) {
            (true, _) => None,
            (false, 0) => Some(self.due.saturating_duration_since(Instant::now())),
            (false, _) => Some(Duration::ZERO),
        }
    }

    /// Gives up one that waits. Its end is still to be noted.
    pub(super) fn give_up(&mut self) -> Option<Submission> {
        self.hurry = 0;
        self.submissions.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use volume::pipeline::{BlockRequest, GuestBuffer, Token};
    use volume::store::StoreError;

    fn flush(token: u64) -> Submission {
        Submission::new(Token(token), BlockRequest::FLUSH, GuestBuffer::default())
    }

    fn withdrawn(submission: Option<Submission>) -> Option<u64> {
        submission.map(|submission| submission.withdraw().0.0)
    }

    fn full() -> RequestError {
        let error = StoreError::Io {
            what: "write ciphertext",
            source: io::ErrorKind::StorageFull.into(),
        };
        error.into()
    }

    #[test]
    fn one_is_tried_at_a_time_until_one_gets_through() {
        let storage = Arc::new(FullStorage::new().unwrap());
        let mut stalled = Stalled::new(storage.clone());
        (1..=4).for_each(|token| stalled.keep(flush(token), false, &full()));
        assert!(storage.is_full());
        let now = Instant::now();
        assert!(stalled.next(now).is_none());
        assert!(stalled.wait().unwrap() <= PERIOD);
        let now = now + PERIOD;
        let first = stalled.next(now).unwrap();
        assert_eq!(first.token(), Token(1));
        assert!(stalled.next(now).is_none());
        stalled.keep(first, true, &full());

        // Each has its turn, so one that is too large keeps no other.
        let now = now + PERIOD;
        assert_eq!(withdrawn(stalled.next(now)), Some(2));
        stalled.ended(true);
        assert_eq!(stalled.wait(), Some(Duration::ZERO));
        let all: Vec<_> = std::iter::from_fn(|| withdrawn(stalled.next(now))).collect();
        assert_eq!(all, [3, 4, 1]);
        assert!(stalled.wait().is_none());
        assert!(storage.is_full(), "they are being tried");
        all.iter().for_each(|_| stalled.ended(false));
        assert!(!storage.is_full());
    }

    #[test]
    fn the_storage_is_full_while_any_queue_waits() {
        let storage = Arc::new(FullStorage::new().unwrap());
        let (mut one, mut two) = (Stalled::new(storage.clone()), Stalled::new(storage.clone()));
        one.keep(flush(1), false, &full());
        two.keep(flush(1), false, &full());
        assert_eq!(withdrawn(one.give_up()), Some(1));
        assert_eq!(withdrawn(one.give_up()), None);
        one.ended(false);
        assert!(storage.is_full());
        assert_eq!(withdrawn(two.give_up()), Some(1));
        two.ended(false);
        assert!(!storage.is_full());
    }

    #[test]
    fn space_is_told_when_it_has_lasted() {
        let mut news = StorageNews::default();
        let start = Instant::now();
        assert_eq!(news.look(false, start), None);
        assert_eq!(news.look(true, start), Some(Event::StorageFull));
        assert_eq!(news.look(true, start), None);
        assert_eq!(news.deadline(), None);
        assert_eq!(news.look(false, start), None);
        assert_eq!(news.deadline(), Some(start + SETTLED));
        // Full once more before that.
        assert_eq!(news.look(true, start + SETTLED / 2), None);
        assert_eq!(news.deadline(), None);
        assert_eq!(news.look(false, start + SETTLED), None);
        assert_eq!(
            news.look(false, start + SETTLED * 2),
            Some(Event::StorageOk)
        );
        assert_eq!(news.look(false, start + SETTLED * 3), None);
        assert_eq!(news.deadline(), None);
    }
}
