//! What threads have seen, for whoever asks.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Notify;

use super::store::Store;
use super::timeline::Timeline;
use disks::des::Dependencies;
use live::DiskRow;

/// For how long after a question things are looked at.
const INTEREST: Duration = Duration::from_secs(30);

/// The rows of attached disks, or why these cannot be found.
pub(crate) type Rows = Result<Arc<Vec<DiskRow>>, Arc<io::Error>>;

/// What threads have seen.
#[derive(Debug)]
pub(crate) struct Shared {
    content: Mutex<Content>,
    interest: Mutex<Option<Instant>>,
    /// Somebody has asked: for the threads, and for what runs beside the server.
    asked: Condvar,
    asked_async: Notify,
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
}

impl Shared {
    pub(crate) fn new() -> Self {
        let content = Content {
            state: Store::new(),
            live: Store::new(),
            rows: None,
            totals: Vec::new(),
            timeline: Timeline::new(),
            dependencies: None,
        };
        Self {
            content: Mutex::new(content),
            interest: Mutex::new(None),
            asked: Condvar::new(),
            asked_async: Notify::new(),
        }
    }

    /// What was seen. Whoever holds it does nothing that takes time.
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        // Each part is replaced as a whole.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody looks at the page.
    pub(crate) fn is_asked(&self) {
        *self.interest() = Some(Instant::now());
        self.asked.notify_all();
        self.asked_async.notify_waiters();
    }

    fn interest(&self) -> MutexGuard<'_, Option<Instant>> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a time, and then until somebody looks at the page.
    pub(crate) fn wait(&self, pause: Duration) {
        std::thread::sleep(pause);
        let interest = self.interest();
        let is_idle = |at: &mut Option<Instant>| at.is_none_or(|at| at.elapsed() > INTEREST);
        drop(self.asked.wait_while(interest, is_idle));
    }

    /// The same, beside the server.
    pub(crate) async fn wait_beside(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        loop {
            // Before it is looked at, so that no question is missed.
            let asked = self.asked_async.notified();
            if self.interest().is_some_and(|at| at.elapsed() <= INTEREST) {
                return;
            }
            asked.await;
        }
    }
}
