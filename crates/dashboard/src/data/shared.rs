//! What threads have seen, for whoever asks.
//!
//! While nobody asks nothing is looked at, and what was seen gets old: it is forgotten when somebody comes back, who is
//! answered when it was looked at again.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::timeout_at;
use uuid::Uuid;

use super::store::Store;
use super::timeline::Timeline;
use disks::des::Dependencies;
use live::DiskRow;

/// For how long after a question things are looked at.
const INTEREST: Duration = Duration::from_secs(30);
/// How long whoever comes back waits for what is seen then, before the answer is that nothing is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a thread looks whether disks were asked.
const LOOK: Duration = Duration::from_millis(20);

/// The rows of attached disks, or why these cannot be found.
pub(crate) type Rows = Result<Arc<Vec<DiskRow>>, Arc<io::Error>>;

/// What threads have seen.
#[derive(Debug)]
pub(crate) struct Shared {
    content: Mutex<Content>,
    interest: Mutex<Interest>,
    /// Somebody has asked: for the threads, and for what runs beside the server.
    asked: Condvar,
    asked_async: Notify,
    /// Something was seen.
    seen: Notify,
}

/// Who looks at the page.
#[derive(Debug)]
struct Interest {
    /// The last question, or the start.
    last: Instant,
    /// How often somebody came back after a time in which nothing was looked at.
    returns: u64,
}

impl Interest {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > INTEREST
    }
}

/// A part of what is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Disks, keys, vaults, alarms.
    State,
    /// Rows of attached disks.
    Rows,
    /// Whether audit logs are intact.
    Logs,
}

/// What was seen last.
#[derive(Debug)]
pub(crate) struct Content {
    /// Disks, keys, vaults, alarms, logs.
    pub(crate) state: Store,
    /// Rows of attached disks.
    pub(crate) live: Store,
    /// The rows themselves; nothing before it was asked for the first time.
    pub(crate) rows: Option<Rows>,
    /// Sums over all attached disks, the newest last, each with its number.
    pub(crate) totals: Vec<(u64, Value)>,
    /// Audit records and events.
    pub(crate) timeline: Timeline,
    /// Who depends on whom; nothing before the first look.
    pub(crate) dependencies: Option<Arc<Dependencies>>,
    /// Attached disks of other installations that have the same runtime directory, as far as was seen.
    pub(crate) elsewhere: HashSet<Uuid>,
    /// The parts that were seen since somebody came back.
    seen: Vec<Part>,
}

impl Content {
    fn new() -> Self {
        Self {
            state: Store::new(),
            live: Store::new(),
            rows: None,
            totals: Vec::new(),
            timeline: Timeline::new(),
            dependencies: None,
            elsewhere: HashSet::new(),
            seen: Vec::new(),
        }
    }

    /// Forgets what was seen, but for what says when it was.
    fn forget(&mut self) {
        let before = std::mem::replace(self, Self::new());
        self.totals = before.totals;
        self.timeline = before.timeline;
        self.elsewhere = before.elsewhere;
    }

    fn has(&self, part: Part) -> bool {
        self.seen.contains(&part)
    }
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            content: Mutex::new(Content::new()),
            interest: Mutex::new(Interest {
                last: Instant::now(),
                returns: 0,
            }),
            asked: Condvar::new(),
            asked_async: Notify::new(),
            seen: Notify::new(),
        }
    }

    /// What was seen. Whoever holds it does nothing that takes time.
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        // Each part is replaced as a whole.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody looks at the page.
    pub(crate) fn is_asked(&self) {
        self.is_asked_at(Instant::now());
    }

    fn is_asked_at(&self, now: Instant) {
        let mut interest = self.interest();
        if interest.is_over(now) {
            interest.returns += 1;
            self.content().forget();
        }
        interest.last = now;
        drop(interest);
        self.asked.notify_all();
        self.asked_async.notify_waiters();
    }

    /// How often somebody came back: what is seen from now on is since then.
    pub(crate) fn returns(&self) -> u64 {
        self.interest().returns
    }

    /// Has a part be known that was looked at since then, unless somebody has come back meanwhile: it may be old.
    pub(crate) fn put(&self, part: Part, returns: u64, put: impl FnOnce(&mut Content)) {
        let interest = self.interest();
        if interest.returns == returns {
            let mut content = self.content();
            put(&mut content);
            if !content.has(part) {
                content.seen.push(part);
            }
        }
        drop(interest);
        self.seen.notify_waiters();
    }

    /// Somebody looks at the page; waits until a part was seen since they came back, for a while.
    pub(crate) async fn is_asked_for(&self, part: Part) {
        self.is_asked();
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Before it is looked at, so that nothing is missed that is seen.
            let seen = self.seen.notified();
            let is_there = self.content().has(part);
            if is_there || timeout_at(end, seen).await.is_err() {
                return;
            }
        }
    }

    /// Waits until disks were asked since somebody came back, for a while. What they said; nothing when they were not.
    pub(crate) fn rows_within(&self, patience: Duration) -> Option<Rows> {
        let end = Instant::now() + patience;
        loop {
            let content = self.content();
            if content.has(Part::Rows) || Instant::now() >= end {
                return content.rows.clone();
            }
            drop(content);
            std::thread::sleep(LOOK);
        }
    }

    fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a time, and then until somebody looks at the page; not at all when somebody has come back since
    /// `returns`.
    pub(crate) fn wait(&self, pause: Duration, returns: u64) {
        let end = Instant::now() + pause;
        let mut interest = self.interest();
        while interest.returns == returns {
            let now = Instant::now();
            interest = if interest.is_over(now) {
                let woken = self.asked.wait(interest);
                woken.unwrap_or_else(PoisonError::into_inner)
            } else if now < end {
                let woken = self.asked.wait_timeout(interest, end - now);
                woken.unwrap_or_else(PoisonError::into_inner).0
            } else {
                return;
            };
        }
    }

    /// The same, beside the server.
    pub(crate) async fn wait_beside(&self, pause: Duration, returns: u64) {
        let end = Instant::now() + pause;
        loop {
            // Before it is looked at, so that no question is missed.
            let asked = self.asked_async.notified();
            let now = Instant::now();
            let is_over = {
                let interest = self.interest();
                if interest.returns != returns {
                    return;
                }
                interest.is_over(now)
            };
            if is_over {
                asked.await;
            } else if now < end {
                // Its end is what is waited for.
                let _ = timeout_at(end.into(), asked).await;
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    const LONG: Duration = Duration::from_secs(1000);

    /// Somebody comes back after a long time.
    fn come_back(shared: &Shared) {
        shared.interest().last = Instant::now();
        let late = Instant::now() + INTEREST * 2;
        shared.is_asked_at(late);
    }

    fn shown(shared: &Shared) -> Value {
        serde_json::to_value(shared.content().state.since("")).unwrap()["sections"].clone()
    }

    fn see(shared: &Shared, returns: u64) {
        shared.put(Part::State, returns, |content| {
            content.state.put("alarms", [("a".to_owned(), Value::Null)]);
            content.totals.push((1, Value::Null));
        });
    }

    fn run(work: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work);
    }

    #[test]
    fn what_was_seen_before_somebody_came_back_is_forgotten() {
        let shared = Shared::new();
        see(&shared, shared.returns());
        shared.is_asked();
        assert!(!shown(&shared)["alarms"].is_null(), "nobody was away");
        let before = shared.returns();
        come_back(&shared);
        assert!(shown(&shared)["alarms"].is_null());
        assert_eq!(shared.content().totals.len(), 1, "they say when they were");
        see(&shared, before);
        assert!(
            shown(&shared)["alarms"].is_null(),
            "it was looked at before"
        );
        see(&shared, shared.returns());
        assert!(!shown(&shared)["alarms"].is_null());
    }

    #[test]
    fn who_comes_back_is_answered_with_what_is_seen_then() {
        run(async {
            let shared = Shared::new();
            see(&shared, 0);
            shared.is_asked_for(Part::State).await;
            come_back(&shared);
            let answered = async {
                shared.is_asked_for(Part::State).await;
                assert!(!shown(&shared)["alarms"].is_null());
            };
            let look = async {
                tokio::time::sleep(LOOK).await;
                see(&shared, shared.returns());
            };
            tokio::join!(answered, look);
        });
    }

    #[test]
    fn who_looks_wakes_up_for_somebody_who_comes_back() {
        let shared = Shared::new();
        let returns = shared.returns();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| shared.wait(LONG, returns));
            std::thread::sleep(LOOK);
            assert!(!waiting.is_finished());
            come_back(&shared);
        });
        run(async {
            let returns = shared.returns();
            let somebody = async {
                tokio::time::sleep(LOOK).await;
                come_back(&shared);
            };
            tokio::join!(shared.wait_beside(LONG, returns), somebody);
        });
        // Somebody has, before it waits.
        shared.wait(LONG, returns);
        // And it does not wait for longer than it was told to.
        shared.wait(Duration::ZERO, shared.returns());
    }
}
