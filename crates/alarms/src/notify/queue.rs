//! What is to be told to one target. Whoever puts something never waits: what does not fit replaces the oldest.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Events that wait at most.
pub(super) const ROOM: usize = 64;

/// That an event is being told. Once no target has anything of it to do any more, its number is sent.
pub(super) struct Delivery {
    pub(super) number: u64,
    pub(super) done: Sender<u64>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Nobody asks any more.
        let _ = self.done.send(self.number);
    }
}

/// Events that wait for one target.
pub(super) struct Queue {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Default)]
struct Content {
    events: VecDeque<(String, Option<Arc<Delivery>>)>,
    /// Those that did not fit since one was taken.
    missed: u64,
    /// No more come, and those that are there have time until then.
    end: Option<Instant>,
}

/// What comes next.
pub(super) enum Next {
    Event {
        event: String,
        /// How many were lost before it.
        missed: u64,
        /// Held until the target was told, or is not told any more.
        told: Option<Arc<Delivery>>,
    },
    /// Nothing any more.
    End,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            content: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn put(&self, event: &str, told: Option<Arc<Delivery>>) {
        let mut content = self.content();
        if content.events.len() == ROOM {
            content.events.pop_front();
            content.missed += 1;
        }
        content.events.push_back((event.to_owned(), told));
        drop(content);
        self.changed.notify_all();
    }

    /// Waits for the next event, or for the end.
    pub(super) fn take(&self) -> Next {
        let mut content = self.content();
        loop {
            let is_over = content.end.is_some_and(|end| Instant::now() >= end);
            if is_over {
                return Next::End;
            }
            if let Some((event, told)) = content.events.pop_front() {
                let missed = std::mem::take(&mut content.missed);
                return Next::Event {
                    event,
                    missed,
                    told,
                };
            }
            if content.end.is_some() {
                return Next::End;
            }
            let waited = self.changed.wait(content);
            content = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that no more come, and until when there is time for those that are there.
    pub(super) fn close(&self, end: Instant) {
        self.content().end = Some(end);
        self.changed.notify_all();
    }

    /// How much time is left, if no more come.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let end = self.content().end?;
        Some(end.saturating_duration_since(Instant::now()))
    }

    /// Waits that long, but not beyond the end. Whether there is time for another try.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut content = self.content();
        loop {
            let now = Instant::now();
            if content.end.is_some_and(|end| end <= until) {
                return false;
            }
            if now >= until {
                return true;
            }
            let waited = self.changed.wait_timeout(content, until - now);
            content = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &Queue) -> Option<(String, u64)> {
        match queue.take() {
            Next::Event { event, missed, .. } => Some((event, missed)),
            Next::End => None,
        }
    }

    #[test]
    fn what_does_not_fit_replaces_the_oldest_and_is_counted() {
        let queue = Queue::new();
        for n in 0..ROOM + 10 {
            queue.put(&n.to_string(), None);
        }
        assert_eq!(taken(&queue), Some(("10".into(), 10)));
        assert_eq!(taken(&queue), Some(("11".into(), 0)));
        queue.close(Instant::now() + Duration::from_secs(3600));
        let rest = std::iter::from_fn(|| taken(&queue)).count();
        assert_eq!(rest, ROOM - 2);
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_end() {
        let queue = Queue::new();
        queue.put("1", None);
        queue.close(Instant::now());
        assert!(taken(&queue).is_none());
        assert!(!queue.pause(Duration::from_secs(3600)));
        assert_eq!(queue.time_left(), Some(Duration::ZERO));
    }
}
