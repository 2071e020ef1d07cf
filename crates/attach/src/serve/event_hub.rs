//! What an attach shows to others: its key's status, and its events as they happen.
//!
//! Whoever writes never waits for whoever reads. A reader that does not keep up loses its
//! subscription, which shows as the end of its stream.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::guard::key_guard::Finding;
use crate::serve::passed::{Parcel, Passed};
use crate::status::{
    CheckCounts, DiskHold, Event, JobStatus, KeyStatus, LastRestart, LastUpgrade, Offered, Reason,
};
use alarms::Stall;
use installation::envelope::JobKind;
use protocol::Setup;

/// Events that are kept for those who ask later.
const HISTORY: usize = 256;
/// Events that a subscriber may be behind.
const BACKLOG: usize = 256;

/// How long the end waits for those who are being told the last events.
const FAREWELL: Duration = Duration::from_millis(500);

/// One event as a line of JSON.
pub(crate) type Line = Arc<str>;

/// The events of an attach, for the program that goes on.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EventsState {
    /// Those that are kept, each a line of JSON.
    lines: Vec<String>,
    /// How many there were.
    published: u64,
    /// Who follows them, and how many each was sent.
    followers: Vec<(Passed, u64)>,
    /// The group of the processes that tell of them; nothing before version 2 of what an attach process tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notifier: Option<i32>,
}

impl EventsState {
    /// As programs know it that read version 1.
    pub(crate) fn without_notifier(self) -> Self {
        Self {
            notifier: None,
            ..self
        }
    }
}

/// Shared by the guard, which writes, and the clients of the control socket.
pub(crate) struct EventHub(Mutex<Content>);

struct Content {
    status: KeyStatus,
    offered: Offered,
    job: Option<JobStatus>,
    checks: CheckCounts,
    history: VecDeque<Line>,
    /// How many events there were.
    published: u64,
    subscribers: Vec<Subscriber>,
    /// Those that are sent nothing while this process is to become another program.
    parked: Vec<Parked>,
    /// The group of the processes that tell of the events, if there are any.
    notifier: Option<i32>,
}

struct Subscriber {
    lines: SyncSender<Line>,
    /// Its socket.
    client: OwnedFd,
    /// It has not been sent everything, or waits for more.
    follows: Weak<()>,
}

struct Parked {
    client: OwnedFd,
    /// How many events it was sent, or there were before it came.
    sent: u64,
    follows: Weak<()>,
}

/// What a client is to be sent that follows the events.
pub(crate) struct Subscription {
    /// What there was already.
    pub(crate) lines: Vec<Line>,
    /// What there is to come.
    pub(crate) events: Receiver<Line>,
    _follows: Arc<()>,
}

impl Content {
    /// Has a client be sent what it has not been sent.
    fn subscribe(&mut self, client: OwnedFd, sent: u64) -> Subscription {
        let (lines, events) = sync_channel(BACKLOG);
        let follows = Arc::new(());
        self.subscribers.push(Subscriber {
            lines,
            client,
            follows: Arc::downgrade(&follows),
        });
        let first = self.published - self.history.len() as u64;
        let known = sent.saturating_sub(first) as usize;
        Subscription {
            lines: self.history.iter().skip(known).cloned().collect(),
            events,
            _follows: follows,
        }
    }
}

/// What others are shown of an attach that begins.
pub(crate) fn offered(setup: &Setup, attach: Uuid, disk: DiskHold, installation: Uuid) -> Offered {
    Offered {
        queues: setup.num_queues,
        memory_bytes: setup.memory,
        attach,
        disk,
        refused: None,
        restarts: 0,
        deaths_in_a_row: 0,
        last_restart: None,
        version: String::new(),
        last_upgrade: None,
        stall: None,
        launcher_ended: None,
        installation: Some(installation),
    }
}

impl EventHub {
    pub(crate) fn new(status: KeyStatus, offered: Offered) -> Self {
        Self(Mutex::new(Content {
            status,
            offered,
            job: None,
            checks: CheckCounts::default(),
            history: VecDeque::new(),
            published: 0,
            subscribers: Vec::new(),
            parked: Vec::new(),
            notifier: None,
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

    /// The checks of the key so far.
    pub(crate) fn checks(&self) -> CheckCounts {
        self.content().checks
    }

    /// Counts a check of the key.
    pub(crate) fn count_check(&self, finding: &Finding) {
        let checks = &mut self.content().checks;
        match finding {
            Finding::Granted { .. } | Finding::Withheld(_) => checks.granted += 1,
            Finding::Refused(_) => checks.refused += 1,
            Finding::Unknown(_) => checks.unknown += 1,
        }
    }

    /// Shows that a data plane has died, and another one is started; and how many died one after the other.
    pub(crate) fn restarts(&self, last: LastRestart, in_a_row: u32) {
        let offered = &mut self.content().offered;
        offered.restarts += 1;
        offered.deaths_in_a_row = in_a_row.into();
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

    /// Shows since when there is no launcher any more, if there is none.
    pub(crate) fn launcher_ended(&self, since: Option<OffsetDateTime>) {
        self.content().offered.launcher_ended = since;
    }

    /// Shows whether requests are under way of which none ends.
    pub(crate) fn set_stall(&self, stall: Option<Stall>) {
        self.content().offered.stall = stall;
    }

    /// Shows whose the disk is, and why a ring was not started, if it was not.
    pub(crate) fn set_hold(&self, disk: DiskHold, refused: Option<Reason>) {
        let offered = &mut self.content().offered;
        (offered.disk, offered.refused) = (disk, refused);
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
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn passed(&self, parcel: &mut Parcel) -> io::Result<(Offered, EventsState)> {
        let content = self.content();
        let lines = content.history.iter().map(|line| line.to_string());
        let followers = content.parked.iter();
        let followers = followers.map(|one| Ok((parcel.put(&one.client)?, one.sent)));
        let events = EventsState {
            lines: lines.collect(),
            published: content.published,
            followers: followers.collect::<io::Result<_>>()?,
            notifier: content.notifier,
        };
        Ok((content.offered.clone(), events))
    }

    /// Has the events of the program before this one, and its clients, which are parked.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn resume(&self, events: EventsState) -> io::Result<()> {
        let mut content = self.content();
        content.history = events.lines.into_iter().map(Line::from).collect();
        content.published = events.published.max(content.history.len() as u64);
        content.notifier = events.notifier;
        for (client, sent) in events.followers {
            content.parked.push(Parked {
                client: client.take()?,
                sent,
                follows: Weak::new(),
            });
        }
        Ok(())
    }

    /// Has processes of that group tell of the events, or nobody any more.
    pub(crate) fn set_notifier(&self, group: Option<i32>) {
        self.content().notifier = group;
    }

    /// The group of the processes that tell of the events, if there are any.
    pub(crate) fn notifier(&self) -> Option<i32> {
        self.content().notifier
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
        content.published += 1;
        content
            .subscribers
            .retain(|subscriber| subscriber.lines.try_send(line.clone()).is_ok());
    }

    /// The events so far.
    pub(crate) fn history(&self) -> Vec<Line> {
        self.content().history.iter().cloned().collect()
    }

    /// How many events there were, and the last one.
    pub(crate) fn last(&self) -> (u64, Option<Line>) {
        let content = self.content();
        (content.published, content.history.back().cloned())
    }

    /// The events so far, and those to come, without a gap between them, for the client at the other end of a socket.
    pub(crate) fn subscribe(&self, client: OwnedFd) -> Subscription {
        self.content().subscribe(client, 0)
    }

    /// Sends nobody anything more until [`EventHub::unpark`]. Whether all have been sent what there was.
    pub(crate) fn park(&self) -> bool {
        let mut content = self.content();
        let sent = content.published;
        let parked = std::mem::take(&mut content.subscribers);
        content
            .parked
            .extend(parked.into_iter().map(|subscriber| Parked {
                client: subscriber.client,
                sent,
                follows: subscriber.follows,
            }));
        let has_all = |parked: &Parked| parked.follows.strong_count() == 0;
        content.parked.iter().all(has_all)
    }

    /// Subscribes those again that were parked.
    pub(crate) fn unpark(&self) -> Vec<(OwnedFd, Subscription)> {
        let mut content = self.content();
        let parked = std::mem::take(&mut content.parked);
        let again = parked.into_iter().filter_map(|parked| {
            let client = parked.client.try_clone().ok()?;
            Some((client, content.subscribe(parked.client, parked.sent)))
        });
        again.collect()
    }

    /// Ends all subscriptions, and waits a moment for those that are being told the last events.
    pub(crate) fn close(&self) {
        let mut content = self.content();
        let ended = std::mem::take(&mut content.subscribers).into_iter();
        let following: Vec<_> = ended.map(|subscriber| subscriber.follows).collect();
        content.parked.clear();
        drop(content);
        let end = Instant::now() + FAREWELL;
        while following.iter().any(|one| one.strong_count() > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing is half changed at any point where a holder could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
