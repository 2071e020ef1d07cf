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
use std::sync::Arc;
use std::time::{Duration, Instant};

use volume::pipeline::{RequestError, Submission};

use crate::disk::full_storage::FullStorage;
use crate::disk::log_limit::LogLimit;

/// The time between two tries.
const PERIOD: Duration = Duration::from_millis(500);

/// The requests of one queue that wait for space.
pub(crate) struct NoSpace {
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

impl NoSpace {
    pub(crate) fn new(storage: Arc<FullStorage>) -> Self {
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
    pub(crate) fn len(&self) -> usize {
        self.submissions.len()
    }

    /// Keeps a request that found no space, `again` if it was kept before.
    pub(crate) fn keep(&mut self, submission: Submission, again: bool, error: &RequestError) {
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
    pub(crate) fn ended(&mut self, space: bool) {
        if space {
            self.hurry = self.submissions.len();
        }
        self.count -= 1;
        if self.count == 0 {
            self.storage.leave();
        }
    }

    /// The next request that is to be tried now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Submission> {
        if self.hurry > 0 {
            self.hurry -= 1;
        } else if self.submissions.is_empty() || now < self.due {
            return None;
        } else {
            self.due = now + PERIOD;
        }
        self.submissions.pop_front()
    }

    /// How long [`NoSpace::next`] will have nothing.
    pub(crate) fn wait(&self) -> Option<Duration> {
        match (self.submissions.is_empty(), self.hurry) {
            (true, _) => None,
            (false, 0) => Some(self.due.saturating_duration_since(Instant::now())),
            (false, _) => Some(Duration::ZERO),
        }
    }

    /// Gives up one that waits. Its end is still to be noted.
    pub(crate) fn give_up(&mut self) -> Option<Submission> {
        self.hurry = 0;
        self.submissions.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

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
        let mut waiting = NoSpace::new(storage.clone());
        (1..=4).for_each(|token| waiting.keep(flush(token), false, &full()));
        assert!(storage.is_full());
        let now = Instant::now();
        assert!(waiting.next(now).is_none());
        assert!(waiting.wait().unwrap() <= PERIOD);
        let now = now + PERIOD;
        let first = waiting.next(now).unwrap();
        assert_eq!(first.token(), Token(1));
        assert!(waiting.next(now).is_none());
        waiting.keep(first, true, &full());

        // Each has its turn, so one that is too large keeps no other.
        let now = now + PERIOD;
        assert_eq!(withdrawn(waiting.next(now)), Some(2));
        waiting.ended(true);
        assert_eq!(waiting.wait(), Some(Duration::ZERO));
        let all: Vec<_> = std::iter::from_fn(|| withdrawn(waiting.next(now))).collect();
        assert_eq!(all, [3, 4, 1]);
        assert!(waiting.wait().is_none());
        assert!(storage.is_full(), "they are being tried");
        all.iter().for_each(|_| waiting.ended(false));
        assert!(!storage.is_full());
    }

    #[test]
    fn the_storage_is_full_while_any_queue_waits() {
        let storage = Arc::new(FullStorage::new().unwrap());
        let (mut one, mut two) = (NoSpace::new(storage.clone()), NoSpace::new(storage.clone()));
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
}
