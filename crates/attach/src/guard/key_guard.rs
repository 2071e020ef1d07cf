//! The key guard of an attached disk: when to ask the vault, what its answers mean, and when the
//! data plane must lose its DEK and may have it again.
//!
//! It is a state machine without threads, clocks or sockets of its own: [`Guard`] is told what
//! happened and when, and acts through [`GuardActions`].
//!
//! Two things are kept apart: whether the vault grants the key, and where the DEK is. A grant while the DEK is
//! still being destroyed then needs no case of its own: the one follows the other as soon as it can. A refusal while
//! it is on its way to the data plane does not wait: a DEK that was sent may have come.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::status::{DekState, EventKind, GuardOptions, KeyState, KeyStatus, Reason};
use keys::DekStack;
use protocol::OnRevoke;
use vault::boot_instant;

mod state;

pub(crate) use state::GuardState;

/// A check that takes longer than this, and longer than the interval, counts as unanswered.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the data plane may take to finish what it had begun. After that it is killed: its
/// storage hangs, and its key must not outlive the revocation for as long as that takes.
const DESTROY_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to serve again with its key. After that it is killed: it may have read the key without a
/// word, and its guest would be served nothing for as long as it says nothing.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);

/// A moment on the clock that never jumps, and as it is shown. The host's suspension counts, as it does for who reads
/// until when the disk is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// By the clock of [`boot_instant`].
    pub(crate) instant: Instant,
    pub(crate) time: OffsetDateTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            instant: boot_instant(),
            time: OffsetDateTime::now_utc(),
        }
    }
}

/// The DEKs of a disk, and which layers they are of, from the top down.
pub(crate) struct LayerKeys {
    pub(crate) layers: Vec<Uuid>,
    pub(crate) deks: DekStack,
}

/// What a check of the key found.
pub(crate) enum Finding {
    /// The vault unwrapped the DEK, which is here if it was wanted.
    Granted {
        key_url: String,
        keys: Option<LayerKeys>,
    },
    /// Whoever controls the key has said no.
    Refused(Reason),
    /// Nothing was decided.
    Unknown(Reason),
    /// The vault grants the key, but the DEK cannot be handed out.
    Withheld(Reason),
}

/// What the guard does to the world. Nothing of it waits.
pub(crate) trait GuardActions {
    /// Has the vault asked; the answer is given to [`Guard::found`].
    fn check(&mut self, with_key: bool);
    /// Has the data plane destroy its DEK, and destroys what is kept of it; it answers to [`Guard::destroyed`].
    fn destroy(&mut self, mode: OnRevoke);
    /// Gives the data plane the DEK; it answers to [`Guard::restored`] or [`Guard::not_restored`].
    fn restore(&mut self, keys: &LayerKeys);
    /// Destroys what is kept of a DEK that the data plane does not have.
    fn forget(&mut self);
    /// Kills the data plane, which has not done what it was told about its key.
    fn kill(&mut self, told: Unanswered);
    /// Tells everybody.
    fn tell(&mut self, event: GuardEvent);
}

/// What a data plane was told about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    Destroy,
    Restore,
}

/// An event, without what is the same in all of a disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GuardEvent {
    pub(crate) time: OffsetDateTime,
    pub(crate) event: EventKind,
    pub(crate) key_url: String,
    pub(crate) reason: Option<Reason>,
    pub(crate) until: Option<OffsetDateTime>,
}

/// What the vault last said that counts.
enum Access {
    Granted,
    Unreachable { since: Moment, reason: Reason },
    Stopped { reason: Reason },
}

/// Where the DEK is.
enum Key {
    /// The disk is waited for, so nobody is asked.
    Absent,
    Held,
    BeingDestroyed {
        since: Instant,
        killed: bool,
    },
    Destroyed,
    /// On its way, and perhaps there: nobody knows before the data plane has said so.
    BeingRestored {
        since: Instant,
    },
}

/// A check under way.
struct Asked {
    at: Moment,
    overdue: bool,
}

/// The guard of one attached disk.
pub(crate) struct Guard {
    options: GuardOptions,
    access: Access,
    /// When `access` became what it is.
    since: OffsetDateTime,
    key: Key,
    key_url: String,
    asked: Option<Asked>,
    /// When the program before this one has asked, of which the answer is lost.
    unanswered: Option<Moment>,
    next_check: Instant,
    last_check: OffsetDateTime,
    last_granted: OffsetDateTime,
    /// What went wrong in the last check.
    last_failure: Option<Reason>,
}

impl Guard {
    /// For a disk whose DEK the vault has just unwrapped, with the key of that URL.
    pub(crate) fn new(options: GuardOptions, key_url: String, now: Moment) -> Self {
        Self {
            options,
            access: Access::Granted,
            since: now.time,
            key: Key::Held,
            key_url,
            asked: None,
            unanswered: None,
            next_check: now.instant + jittered(options.interval),
            last_check: now.time,
            last_granted: now.time,
            last_failure: None,
        }
    }

    /// How the key is guarded.
    pub(crate) fn options(&self) -> GuardOptions {
        self.options
    }

    /// As [`Guard::new`] for a disk that is waited for: it begins with [`Guard::begun`].
    pub(crate) fn waiting(options: GuardOptions, key_url: String, now: Moment) -> Self {
        Self {
            key: Key::Absent,
            ..Self::new(options, key_url, now)
        }
    }

    /// The disk is here, and the vault has unwrapped its DEK with the key of that URL.
    pub(crate) fn begun(&mut self, key_url: String, now: Moment) {
        if matches!(self.key, Key::Absent) {
            *self = Self::new(self.options, key_url, now);
        }
    }

    /// When [`Guard::tick`] has something to do, if nothing happens before, by the clock of [`Moment`].
    pub(crate) fn deadline(&self) -> Instant {
        let check = match &self.asked {
            None if matches!(self.key, Key::Absent) => None,
            None => Some(self.next_check),
            Some(asked) if !asked.overdue => Some(asked.at.instant + self.patience()),
            Some(_) => None,
        };
        let grace = match &self.access {
            Access::Unreachable { since, .. } => Some(since.instant + self.options.grace),
            Access::Granted | Access::Stopped { .. } => None,
        };
        let kill = match self.key {
            Key::BeingDestroyed { since, killed } if !killed => Some(since + DESTROY_PATIENCE),
            Key::BeingRestored { since } => Some(since + RESTORE_PATIENCE),
            _ => None,
        };
        let first = [check, grace, kill].into_iter().flatten().min();
        // With a check that never returns there is nothing to do but to wait for it.
        first.unwrap_or_else(|| boot_instant() + Duration::from_secs(3600))
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Moment, actions: &mut impl GuardActions) {
        let patience = self.patience();
        match &mut self.asked {
            None if matches!(self.key, Key::Absent) => {}
            None if now.instant >= self.next_check => self.ask(now, actions),
            None => {}
            Some(asked) => {
                let waited = now.instant.saturating_duration_since(asked.at.instant);
                if waited >= patience && !std::mem::replace(&mut asked.overdue, true) {
                    let (at, seconds) = (asked.at, waited.as_secs());
                    let message = format!("the key vault has not answered for {seconds} s");
                    self.unknown(at, unreachable(message), actions);
                }
            }
        }
        self.end_grace(now, actions);
        self.end_patience(now, actions);
    }

    /// Kills a data plane that does not say that its key is destroyed, or that it has it again.
    fn end_patience(&mut self, now: Moment, actions: &mut impl GuardActions) {
        match &mut self.key {
            Key::BeingDestroyed { since, killed }
                if now.instant >= *since + DESTROY_PATIENCE && !*killed =>
            {
                *killed = true;
                actions.kill(Unanswered::Destroy);
            }
            Key::BeingRestored { since } if now.instant >= *since + RESTORE_PATIENCE => {
                // What it was given ends with it; the next one has none until the vault grants it once more.
                self.key = Key::BeingDestroyed {
                    since: now.instant,
                    killed: true,
                };
                actions.forget();
                actions.kill(Unanswered::Restore);
                let seconds = RESTORE_PATIENCE.as_secs();
                let why = format!("the data plane does not say within {seconds} s that it serves");
                self.withheld(data_plane_failed(&why), now, actions);
            }
            _ => {}
        }
    }

    /// Takes the answer to a check.
    pub(crate) fn found(&mut self, finding: Finding, now: Moment, actions: &mut impl GuardActions) {
        let asked = self.asked.take().map_or(now, |asked| asked.at);
        match finding {
            Finding::Granted { key_url, keys } => {
                if !matches!(self.access, Access::Stopped { .. }) {
                    self.last_failure = None;
                }
                self.granted(key_url, keys, now, actions);
            }
            Finding::Refused(reason) => {
                self.last_failure = Some(reason.clone());
                self.refused(reason, now, actions);
            }
            Finding::Unknown(reason) => {
                self.last_failure = Some(reason.clone());
                self.unknown(asked, reason, actions);
                self.end_grace(now, actions);
            }
            Finding::Withheld(reason) => self.withheld(reason, now, actions),
        }
    }

    /// The data plane has no DEK any more.
    pub(crate) fn destroyed(&mut self, now: Moment, actions: &mut impl GuardActions) {
        if let Key::BeingDestroyed { .. } = self.key {
            self.key = Key::Destroyed;
            let reason = self.reason().cloned();
            self.tell(EventKind::DekDestroyed, now.time, reason, actions);
        }
    }

    /// The data plane serves again.
    pub(crate) fn restored(&mut self, now: Moment, actions: &mut impl GuardActions) {
        // Else the vault has refused it meanwhile, and it is destroyed next.
        if let Key::BeingRestored { .. } = self.key {
            self.key = Key::Held;
            self.access = Access::Granted;
            self.since = now.time;
            self.last_failure = None;
            self.tell(EventKind::KeyRestored, now.time, None, actions);
        }
    }

    /// There is no data plane, so no DEK is in it: what it was to do with one is done, or has failed.
    pub(crate) fn without_data_plane(&mut self, now: Moment, actions: &mut impl GuardActions) {
        match self.key {
            Key::BeingDestroyed { .. } => self.destroyed(now, actions),
            Key::BeingRestored { .. } => {
                self.not_restored("the data plane has ended", now, actions)
            }
            Key::Absent | Key::Held | Key::Destroyed => {}
        }
    }

    /// Whether the next data plane gets the DEK with its disk. It may have been refused in this very moment, and is kept
    /// no more then.
    pub(crate) fn next_has_key(&mut self, now: Moment, actions: &mut impl GuardActions) -> bool {
        self.without_data_plane(now, actions);
        self.holds_key()
    }

    /// The data plane could not use the DEK, and has not kept it.
    pub(crate) fn not_restored(&mut self, why: &str, now: Moment, actions: &mut impl GuardActions) {
        if let Key::BeingRestored { .. } = self.key {
            self.key = Key::Destroyed;
            actions.forget();
            self.withheld(data_plane_failed(why), now, actions);
        }
    }

    /// Reported once, not at each of the tries that follow.
    fn withheld(&mut self, reason: Reason, now: Moment, actions: &mut impl GuardActions) {
        let known = self.last_failure.replace(reason.clone());
        if known.is_none_or(|known| known.code != reason.code) {
            self.tell(EventKind::KeyNotRestored, now.time, Some(reason), actions);
        }
    }

    /// Whether the DEK is still, or again, in the data plane.
    pub(crate) fn holds_key(&self) -> bool {
        !matches!(self.key, Key::Absent | Key::Destroyed)
    }

    /// The data plane was to be killed since it did not destroy its key.
    pub(crate) fn has_killed(&self) -> bool {
        matches!(self.key, Key::BeingDestroyed { killed: true, .. })
    }

    /// What becomes of requests while the key is revoked.
    pub(crate) fn on_revoke(&self) -> OnRevoke {
        self.options.on_revoke
    }

    /// The key version that wrapped the DEK at the last check that succeeded.
    pub(crate) fn key_url(&self) -> &str {
        &self.key_url
    }

    /// As `disk show` prints it.
    pub(crate) fn status(&self) -> KeyStatus {
        let (state, until) = match &self.access {
            Access::Granted => (KeyState::Active, None),
            Access::Unreachable { since, .. } => {
                let until = since.time + self.options.grace;
                (KeyState::KeyUnreachable, Some(until))
            }
            Access::Stopped { .. } => (KeyState::KeyRevoked, None),
        };
        KeyStatus {
            state,
            since: self.since,
            until,
            reason: self.reason().cloned(),
            dek: match self.key {
                Key::Absent => DekState::Absent,
                Key::Held => DekState::Held,
                Key::BeingDestroyed { .. } => DekState::BeingDestroyed,
                Key::Destroyed => DekState::Destroyed,
                Key::BeingRestored { .. } => DekState::BeingRestored,
            },
            key_url: self.key_url.clone(),
            last_check: self.last_check,
            last_granted: self.last_granted,
            last_failure: self.last_failure.clone(),
            check_interval_seconds: self.options.interval.as_secs(),
            grace_seconds: self.options.grace.as_secs(),
            on_revoke: self.options.on_revoke,
            job: None,
            offered: None,
        }
    }

    /// Why the key is not granted.
    pub(crate) fn reason(&self) -> Option<&Reason> {
        match &self.access {
            Access::Granted => None,
            Access::Unreachable { reason, .. } | Access::Stopped { reason } => Some(reason),
        }
    }

    fn ask(&mut self, now: Moment, actions: &mut impl GuardActions) {
        self.asked = Some(Asked {
            at: self.unanswered.take().unwrap_or(now),
            overdue: false,
        });
        self.last_check = now.time;
        // From start to start, so that a slow vault does not make the checks rarer.
        self.next_check = now.instant + jittered(self.options.interval);
        actions.check(matches!(self.key, Key::Destroyed));
    }

    fn granted(
        &mut self,
        key_url: String,
        keys: Option<LayerKeys>,
        now: Moment,
        actions: &mut impl GuardActions,
    ) {
        self.last_granted = now.time;
        if self.key_url != key_url {
            self.key_url = key_url;
            self.tell(EventKind::KeyChanged, now.time, None, actions);
        }
        match (&self.access, &self.key, keys) {
            (Access::Unreachable { .. }, ..) => {
                self.access = Access::Granted;
                self.since = now.time;
                self.tell(EventKind::KeyReachable, now.time, None, actions);
            }
            (Access::Stopped { .. }, Key::Destroyed, Some(keys)) => {
                self.key = Key::BeingRestored { since: now.instant };
                actions.restore(&keys);
            }
            // The check had begun before the DEK was destroyed: it is asked for now.
            (Access::Stopped { .. }, Key::Destroyed, None) => self.next_check = now.instant,
            _ => {}
        }
    }

    fn refused(&mut self, reason: Reason, now: Moment, actions: &mut impl GuardActions) {
        // It may have the key already, and is not waited for: it is told to destroy it next.
        if let Key::BeingRestored { .. } = self.key {
            self.destroy(now, actions);
        }
        match &mut self.access {
            Access::Stopped { reason: known } => *known = reason,
            Access::Granted | Access::Unreachable { .. } => self.stop(reason, now, actions),
        }
    }

    fn unknown(&mut self, asked: Moment, reason: Reason, actions: &mut impl GuardActions) {
        match &mut self.access {
            Access::Granted => {
                let until = asked.time + self.options.grace;
                self.since = asked.time;
                self.access = Access::Unreachable {
                    since: asked,
                    reason: reason.clone(),
                };
                actions.tell(GuardEvent {
                    until: Some(until),
                    ..self.guard_event(EventKind::KeyUnreachable, asked.time, Some(reason))
                });
            }
            Access::Unreachable { reason: known, .. } => *known = reason,
            // Nothing that was decided is changed by this.
            Access::Stopped { .. } => {}
        }
    }

    fn end_grace(&mut self, now: Moment, actions: &mut impl GuardActions) {
        if let Access::Unreachable { since, reason } = &self.access
            && now.instant >= since.instant + self.options.grace
        {
            let reason = Reason {
                code: reason.code.clone(),
                message: format!(
                    "{}; the grace period of {} s is over",
                    reason.message,
                    self.options.grace.as_secs()
                ),
            };
            self.stop(reason, now, actions);
        }
    }

    fn stop(&mut self, reason: Reason, now: Moment, actions: &mut impl GuardActions) {
        self.access = Access::Stopped {
            reason: reason.clone(),
        };
        self.since = now.time;
        // The key first: telling may take a moment.
        self.destroy(now, actions);
        self.tell(EventKind::KeyRevoked, now.time, Some(reason), actions);
    }

    fn destroy(&mut self, now: Moment, actions: &mut impl GuardActions) {
        self.key = Key::BeingDestroyed {
            since: now.instant,
            killed: false,
        };
        actions.destroy(self.options.on_revoke);
    }

    fn tell(
        &self,
        event: EventKind,
        time: OffsetDateTime,
        reason: Option<Reason>,
        actions: &mut impl GuardActions,
    ) {
        actions.tell(self.guard_event(event, time, reason));
    }

    /// An event of this moment.
    pub(crate) fn guard_event(
        &self,
        event: EventKind,
        time: OffsetDateTime,
        reason: Option<Reason>,
    ) -> GuardEvent {
        GuardEvent {
            time,
            event,
            key_url: self.key_url.clone(),
            reason,
            until: None,
        }
    }

    fn patience(&self) -> Duration {
        self.options.interval.max(CHECK_PATIENCE)
    }
}

fn unreachable(message: String) -> Reason {
    Reason {
        code: vault::VaultErrorCode::Unreachable.as_str().into(),
        message,
    }
}

fn data_plane_failed(why: &str) -> Reason {
    Reason {
        code: "DataPlaneFailed".into(),
        message: why.into(),
    }
}

/// A little less than the interval, so that the checks of disks that were attached together spread,
/// and never more: the interval is a promise.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.8..=1.0))
}
