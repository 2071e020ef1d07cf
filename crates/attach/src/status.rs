//! What is known of the key of an attached disk, and what happens to it: the forms in which it is
//! shown, sent over the control socket and read by programs.

use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use alarms::{Alarm, AttachedFacts, KeyStanding, Stall};
use installation::envelope::JobKind;
use protocol::{IoCounters, Limits, OnRevoke};

/// Whether the vault grants the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// Granted when it was last asked for.
    Active,
    /// The vault could not be asked, or failed; the disk is served for the grace period.
    KeyUnreachable,
    /// Refused, or unreachable for longer than the grace period: the disk is stopped.
    KeyRevoked,
}

impl KeyState {
    /// What alarms are found by.
    pub fn standing(
        self,
        since: OffsetDateTime,
        until: Option<OffsetDateTime>,
        reason: Option<&Reason>,
    ) -> KeyStanding {
        let reason = reason.map_or_else(String::new, ToString::to_string);
        match self {
            Self::Active => KeyStanding::Granted,
            Self::KeyUnreachable => KeyStanding::Unreachable {
                since,
                until,
                reason,
            },
            Self::KeyRevoked => KeyStanding::Revoked { since, reason },
        }
    }
}

/// Where the DEK of an attached disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DekState {
    /// In the memory of the data plane.
    Held,
    /// Requests that were begun before the revocation are being finished with it.
    BeingDestroyed,
    /// In no memory.
    Destroyed,
    /// On its way to the data plane.
    BeingRestored,
    /// Not unwrapped yet: the disk is waited for.
    Absent,
}

/// Whose the disk of an attach is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskHold {
    /// This attach has it.
    #[default]
    Held,
    /// This attach waits for it (`--incoming`), and takes it when a ring is to run.
    Awaited,
    /// This attach has let go of it, for another that waited, and takes it back when a ring is to run.
    LetGo,
}

/// Why a key was not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For programs, Azure's where it has one.
    pub code: String,
    /// One line: what, why, and what to do.
    pub message: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// The key of an attached disk, as `disk show` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Whether it is granted.
    pub state: KeyState,
    /// When that began.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// When the grace period of an unreachable key ends.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub until: Option<OffsetDateTime>,
    /// Why it is not granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Where the DEK is.
    pub dek: DekState,
    /// The key version that wrapped the DEK at the last check that succeeded.
    pub key_url: String,
    /// When the last check began.
    #[serde(with = "time::serde::rfc3339")]
    pub last_check: OffsetDateTime,
    /// When the vault last granted the key.
    #[serde(with = "time::serde::rfc3339")]
    pub last_granted: OffsetDateTime,
    /// What went wrong in the last check, if it did: beside `reason`, why the disk is not yet served
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Reason>,
    /// The longest time between two checks.
    pub check_interval_seconds: u64,
    /// How long an unreachable key is served on.
    pub grace_seconds: u64,
    /// What becomes of requests while the key is revoked.
    pub on_revoke: OnRevoke,
    /// What is being done to the disk's layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// What the data plane serves with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<Offered>,
}

impl KeyStatus {
    /// What alarms are found by.
    pub fn facts(&self) -> AttachedFacts {
        let offered = self.offered.as_ref();
        AttachedFacts {
            key: self
                .state
                .standing(self.since, self.until, self.reason.as_ref()),
            last_granted: self.last_granted,
            deaths_in_a_row: offered.map_or(0, |offered| offered.deaths_in_a_row),
            last_death: offered.and_then(|offered| Some(offered.last_restart.as_ref()?.time)),
            job_error: self.job.as_ref().and_then(|job| job.error.clone()),
            stall: offered.and_then(|offered| offered.stall.clone()),
            launcher_ended: offered.and_then(|offered| offered.launcher_ended),
            installation: offered.and_then(|offered| offered.installation),
        }
    }
}

/// What an attached disk counts, and what it is. Later versions may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskMetrics {
    /// The disk's name.
    pub disk: String,
    /// Its id.
    pub disk_id: Uuid,
    /// Its size.
    pub size_bytes: u64,
    /// The checks of its key since this program supervises it.
    #[serde(default)]
    pub checks: CheckCounts,
    /// Its key, and its attach.
    pub status: KeyStatus,
    /// What its data planes have counted since the attach; nothing while one of an older version serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<IoCounters>,
    /// What it may do at most; nothing of an attach of an older version, or of limits that this one does not know.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "if_known"
    )]
    pub limits: Option<Limits>,
    /// Its layers, bottom to top; none of an attach of an older version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<AttachedLayer>,
    /// How many events there were.
    #[serde(default)]
    pub events: u64,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<ToldEvent>,
}

/// What a later version may say in another way is no reason to take nothing of it.
fn if_known<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

/// A layer of an attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedLayer {
    /// The layer.
    pub id: Uuid,
    /// Bytes of the disk that it covers.
    pub size_bytes: u64,
    /// The key version that wraps its DEK.
    pub key_url: String,
    /// The set whose identity unwraps it; nothing is the platform-managed key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_encryption_set: Option<String>,
}

/// An event in words, which every version can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldEvent {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What: the name of an [`EventKind`], or of one of a later version.
    pub event: String,
    /// A sentence about it; nothing where it is of a kind that this version does not know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl ToldEvent {
    /// Reads an event as it is sent to those who ask for events: a line of JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn of_line(line: &str) -> Result<Self, serde_json::Error> {
        let told: Self = serde_json::from_str(line)?;
        let message = match serde_json::from_str::<Event>(line) {
            Ok(event) => event.to_string(),
            Err(_) => String::new(),
        };
        Ok(Self { message, ..told })
    }
}

/// How checks of a key ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckCounts {
    /// The vault has unwrapped the DEK.
    pub granted: u64,
    /// It has refused to.
    pub refused: u64,
    /// Nothing was decided.
    pub unknown: u64,
}

/// What an attached disk has of the host, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offered {
    /// Queues that a guest may use.
    pub queues: u16,
    /// Bytes that requests under way take at most, over all queues (`attach --memory`).
    pub memory_bytes: u64,
    /// Names the attach in its events.
    #[serde(default)]
    pub attach: Uuid,
    /// Whose the disk is.
    #[serde(default)]
    pub disk: DiskHold,
    /// Why a ring was not started last, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Reason>,
    /// How many data planes died and were replaced by another.
    #[serde(default)]
    pub restarts: u64,
    /// How many of these died one after the other, each soon after its start.
    #[serde(default)]
    pub deaths_in_a_row: u64,
    /// When the last one died, and of what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_restart: Option<LastRestart>,
    /// The version of the data plane's program.
    #[serde(default)]
    pub version: String,
    /// The last time that another program took over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_upgrade: Option<LastUpgrade>,
    /// Its requests, while none of them ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Since when the launcher is no more, so that no other data plane can be started.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub launcher_ended: Option<OffsetDateTime>,
    /// The installation whose disk it is; nothing of an attach of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uuid>,
}

/// What came of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgraded {
    /// The version that served before.
    pub from: String,
    /// The version that serves now.
    pub to: String,
    /// Milliseconds that guests were not served at most.
    pub stall_ms: u64,
    /// Why the attach process itself goes on with the program that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_kept: Option<String>,
}

impl fmt::Display for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from, to, stall_ms, ..
        } = self;
        write!(
            f,
            "version {to} goes on for {from}, after {stall_ms} ms at most"
        )
    }
}

/// The last time that another program took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastUpgrade {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What came of it.
    #[serde(flatten)]
    pub upgraded: Upgraded,
}

/// The last death of a data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastRestart {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What is known of why, as the end of a sentence.
    pub reason: String,
}

/// The job of an attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// What it is for.
    pub kind: JobKind,
    /// It is not to go on until somebody says so.
    pub paused: bool,
    /// Bytes that the top layer has, by the copy or by the guest, of what is to be in it.
    pub bytes_done: u64,
    /// Bytes that the layers have which are to go.
    pub bytes_total: u64,
    /// What holds it up; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// The disk is served.
    Attached,
    /// The disk is waited for: a frontend can connect.
    Waiting,
    /// This attach has the disk from now on, and nobody else.
    LockTaken,
    /// It has it no more.
    LockReleased,
    /// A ring is not started, since the disk cannot be had; the connection ends.
    RingRefused,
    /// The disk is not served any more: the last event.
    Detached,
    /// The key cannot be checked; the grace period has begun.
    KeyUnreachable,
    /// The key can be checked again and is granted; nothing was stopped.
    KeyReachable,
    /// The key is refused, or its grace period is over: the disk is being stopped.
    KeyRevoked,
    /// No copy of the DEK is left.
    DekDestroyed,
    /// The key is granted again, and the disk is served again.
    KeyRestored,
    /// The key is granted again, but the data plane could not use the DEK; it is tried again.
    KeyNotRestored,
    /// Another key version wraps the DEK now.
    KeyChanged,
    /// Requests wait for space on the host.
    StorageFull,
    /// No request waits for space any more.
    StorageOk,
    /// A sync failed: completed writes may be lost, and no flush succeeds until the disk is repaired.
    SyncFailed,
    /// A connection was ended: the guest's memory is not shared with the back-end.
    MemoryNotShared,
    /// The launcher died: the data plane serves on, and no other one can be started.
    LauncherEnded,
    /// The data plane died, and another one goes on for it.
    DataPlaneRestarted,
    /// Another program serves the disk.
    DataPlaneUpgraded,
    /// Another program supervises the data plane, in the same process.
    AttachProcessUpgraded,
    /// Another program was to serve the disk, and does not: the one that served goes on.
    UpgradeFailed,
    /// Another host has taken the disk over: the data plane is killed, and the attach ends.
    TakenOver,
    /// There is little room for the audit logs, without which the key cannot be used.
    AuditSpaceLow,
    /// There is room for them again.
    AuditSpaceOk,
    /// Something will break if nobody does anything: `docs/alarms.md`.
    AlarmRaised,
    /// An alarm is over.
    AlarmCleared,
}

/// Something that happened to an attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What.
    pub event: EventKind,
    /// The disk's name.
    pub disk: String,
    /// Its id.
    pub disk_id: Uuid,
    /// The key version that wraps its DEK.
    pub key_url: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When the grace period ends.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub until: Option<OffsetDateTime>,
    /// Which attach it is, of an event about the lock of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<Uuid>,
    /// The alarm that is raised or over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
}

impl fmt::Display for Event {
    /// One line for the log and for systemd.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, key_url, .. } = self;
        match self.event {
            EventKind::Attached => write!(f, "the disk {disk} is attached"),
            EventKind::Waiting => write!(f, "the disk {disk} is waited for"),
            EventKind::LockTaken => self.lock(f, "has taken"),
            EventKind::LockReleased => self.lock(f, "lets go of"),
            EventKind::RingRefused => {
                write!(
                    f,
                    "a ring of the disk {disk} is not started, and its connection ends"
                )
            }
            EventKind::Detached => write!(f, "the disk {disk} is detached"),
            EventKind::KeyUnreachable => write!(f, "the key of the disk {disk} cannot be checked")
                .and_then(|()| match self.until {
                    Some(until) => write!(f, "; it is served until {}", vault::moment(until)),
                    None => Ok(()),
                }),
            EventKind::KeyReachable => write!(f, "the key of the disk {disk} is granted as before"),
            EventKind::KeyRevoked => write!(f, "the key of the disk {disk} is revoked"),
            EventKind::DekDestroyed => write!(
                f,
                "the disk {disk} is stopped and its data encryption key destroyed"
            ),
            EventKind::KeyRestored => write!(
                f,
                "the key of the disk {disk} is granted again, and the disk is served"
            ),
            EventKind::KeyNotRestored => write!(
                f,
                "the key of the disk {disk} is granted again, but the disk cannot be served yet"
            ),
            EventKind::KeyChanged => write!(f, "{key_url} wraps the key of the disk {disk} now"),
            EventKind::StorageFull => write!(
                f,
                "requests of the disk {disk} wait, since the host's storage is full: make space"
            ),
            EventKind::SyncFailed => write!(
                f,
                "a sync of the disk {disk} has failed, so completed writes may be lost, and no flush \
                 succeeds until it is detached and repaired (`disk check`)"
            ),
            EventKind::MemoryNotShared => {
                write!(f, "a connection to the disk {disk} was ended")
            }
            EventKind::LauncherEnded => {
                write!(
                    f,
                    "the launcher of the disk {disk} has ended, and the disk is served on"
                )
            }
            EventKind::DataPlaneRestarted => {
                write!(f, "another data plane of the disk {disk} was started")
            }
            EventKind::DataPlaneUpgraded => write!(f, "another program serves the disk {disk}"),
            EventKind::AttachProcessUpgraded => {
                write!(
                    f,
                    "the attach process of the disk {disk} has gone on as another program"
                )
            }
            EventKind::UpgradeFailed => {
                write!(
                    f,
                    "the disk {disk} goes on with the program that has served it"
                )
            }
            EventKind::StorageOk => {
                write!(f, "no request of the disk {disk} waits for space any more")
            }
            EventKind::TakenOver => write!(f, "the disk {disk} is not served here any more"),
            EventKind::AuditSpaceLow => write!(f, "the disk {disk} may lose its key soon"),
            EventKind::AuditSpaceOk => write!(f, "there is room for the audit logs again"),
            EventKind::AlarmRaised => write!(f, "an alarm of the disk {disk}"),
            EventKind::AlarmCleared => write!(f, "an alarm of the disk {disk} is over"),
        }?;
        if let Some(alarm) = &self.alarm {
            write!(f, ": {alarm}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl Event {
    /// With its time, so that the logs of several attaches show that there was one at every moment.
    fn lock(&self, f: &mut fmt::Formatter<'_>, does: &str) -> fmt::Result {
        let attach = self.attach.unwrap_or_default();
        let nanoseconds = self.time.unix_timestamp_nanos();
        write!(
            f,
            "attach {attach} {does} the disk {} ({nanoseconds} ns)",
            self.disk
        )
    }
}

/// How a disk's key is guarded.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuardOptions {
    /// The longest time between two checks.
    pub interval: Duration,
    /// How long a disk is served on whose key cannot be checked.
    pub grace: Duration,
    /// What becomes of requests while the key is revoked.
    pub on_revoke: OnRevoke,
}
