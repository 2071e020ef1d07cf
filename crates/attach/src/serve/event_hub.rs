//! What an attach shows to others: its key's status, and its events as they happen.
//!
//! Whoever writes never waits for whoever reads. A reader that does not keep up loses its
//! subscription, which shows as the end of its stream.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::status::{Event, JobStatus, KeyStatus, LastRestart, LastUpgrade, Offered};
use installation::envelope::JobKind;

/// Events that are kept for those who ask later.
const HISTORY: usize = 256;
/// Events that a subscriber may be behind.
const BACKLOG: usize = 256;

/// One event as a line of JSON.
pub(crate) type Line = Arc<str>;

/// Shared by the guard, which writes, and the clients of the control socket.
pub(crate) struct EventHub(Mutex<Content>);

struct Content {
    status: KeyStatus,
    offered: Offered,
    job: Option<JobStatus>,
    history: VecDeque<Line>,
    subscribers: Vec<SyncSender<Line>>,
}

impl EventHub {
    pub(crate) fn new(status: KeyStatus, offered: Offered) -> Self {
        Self(Mutex::new(Content {
            status,
            offered,
            job: None,
            history: VecDeque::new(),
            subscribers: Vec::new(),
        }))
    }

    pub(crate) fn status(&self) -> KeyStatus {
        let content = self.content();
        KeyStatus {
            job: content.job.clone(),
            offered: Some(content.offered.clone()),
            ..content.status.clone()
        }
    }

    /// Shows that a data plane has died, and another one is started.
    pub(crate) fn restarts(&self, last: LastRestart) {
        let offered = &mut self.content().offered;
        offered.restarts += 1;
        offered.last_restart = Some(last);
    }

    /// The version of the program that serves, or served last.
    pub(crate) fn version(&self) -> String {
        self.content().offered.version.clone()
    }

    /// Shows which version that is.
    pub(crate) fn set_version(&self, version: String) {
        self.content().offered.version = version;
    }

    /// Shows that another program has taken over.
    pub(crate) fn upgraded(&self, last: LastUpgrade) {
        let offered = &mut self.content().offered;
        offered.version.clone_from(&last.upgraded.to);
        offered.last_upgrade = Some(last);
    }

    pub(crate) fn set_status(&self, status: KeyStatus) {
        self.content().status = status;
    }

    /// Shows what is being done to the disk's layers; returns what was shown.
    pub(crate) fn set_job(&self, job: Option<JobStatus>) -> Option<JobStatus> {
        std::mem::replace(&mut self.content().job, job)
    }

    /// Shows that there is a job, if none is shown.
    pub(crate) fn announce_job(&self, kind: JobKind, paused: bool) {
        self.content().job.get_or_insert(JobStatus {
            kind,
            paused,
            bytes_done: 0,
            bytes_total: 0,
            error: None,
        });
    }

    /// Shows what holds the job up, if there is one.
    pub(crate) fn job_held_up(&self, error: String) {
        if let Some(job) = &mut self.content().job {
            job.error = Some(error);
        }
    }

    /// What there is of the host, and the events so far, for the program that goes on.
    pub(crate) fn content_now(&self) -> (Offered, Vec<String>) {
        let content = self.content();
        let events = content.history.iter().map(|line| line.to_string());
        (content.offered.clone(), events.collect())
    }

    /// Has the events of the program before this one.
    pub(crate) fn resume(&self, events: Vec<String>) {
        self.content().history = events.into_iter().map(Line::from).collect();
    }

    /// Keeps an event and passes it on.
    pub(crate) fn publish(&self, event: &Event) {
        let Ok(line) = serde_json::to_string(event) else {
            return;
        };
        let line = Line::from(line);
        let mut content = self.content();
        if content.history.len() == HISTORY {
            content.history.pop_front();
        }
        content.history.push_back(line.clone());
        content
            .subscribers
            .retain(|subscriber| subscriber.try_send(line.clone()).is_ok());
    }

    /// The events so far, and those to come, without a gap between them.
    pub(crate) fn subscribe(&self) -> (Vec<Line>, Receiver<Line>) {
        let (subscriber, events) = sync_channel(BACKLOG);
        let mut content = self.content();
        content.subscribers.push(subscriber);
        (content.history.iter().cloned().collect(), events)
    }

    /// Ends all subscriptions.
    pub(crate) fn close(&self) {
        self.content().subscribers.clear();
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
