//! What is known of a host at a moment, without any judgement. What is not known is said to be so.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::alarm::{Subject, SubjectKind};

/// The processes that have disks attached on this host.
pub trait Attaches {
    /// Asks the one of a disk; nothing when there is none, or it does not answer.
    fn ask(&self, disk: Uuid) -> Option<AttachedFacts>;

    /// The disks of which there is one, perhaps: a process that was killed is among them.
    ///
    /// # Errors
    /// What the kernel says of the runtime directory.
    fn here(&self) -> io::Result<Vec<Uuid>>;
}

/// No process has any disk.
#[derive(Debug)]
pub struct NoAttaches;

impl Attaches for NoAttaches {
    fn ask(&self, _: Uuid) -> Option<AttachedFacts> {
        None
    }

    fn here(&self) -> io::Result<Vec<Uuid>> {
        Ok(Vec::new())
    }
}

/// What is known of a host.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When: what all times are compared with.
    pub now: OffsetDateTime,
    /// Key versions that something needs, or that wrap what is made next.
    pub keys: Vec<KeyFacts>,
    /// Certificates by which vaults are served or trusted.
    pub certificates: Vec<CertificateFacts>,
    /// Disks, snapshots and images.
    pub resources: Vec<ResourceFacts>,
    /// File systems that hold vaults, logs and disks.
    pub file_systems: Vec<FileSystemFacts>,
    /// Vaults of this installation.
    pub vaults: Vec<VaultFacts>,
    /// Backups; nothing where these were not looked at.
    pub backup: Option<BackupFacts>,
    /// Disks whose processes answer though the catalog does not have them.
    pub strangers: Vec<Uuid>,
    /// Disks of other installations, whose processes use the same runtime directory.
    pub elsewhere: Vec<Uuid>,
    /// What could not be looked at.
    pub unknown: Vec<Unknown>,
}

impl Facts {
    /// Nothing is known yet.
    pub fn none(now: OffsetDateTime) -> Self {
        Self {
            now,
            keys: Vec::new(),
            certificates: Vec::new(),
            resources: Vec::new(),
            file_systems: Vec::new(),
            vaults: Vec::new(),
            backup: None,
            strangers: Vec::new(),
            elsewhere: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

/// A key version.
#[derive(Debug, Clone)]
pub struct KeyFacts {
    /// Its URL, with the version.
    pub url: String,
    /// Why its vault lets nobody use it, or not all who need it; that it has ended is not among it.
    pub refusals: Vec<KeyRefusal>,
    /// The first moment at which it may no longer be used; nothing when there is none.
    pub expires: Option<OffsetDateTime>,
    /// When it was made.
    pub created: Option<OffsetDateTime>,
    /// What has a layer that it wraps, as `the disk web1`.
    pub needed_by: Vec<String>,
    /// Those of them that are not served, and so not told of by what serves them.
    pub unserved: Vec<String>,
    /// The sets in whose name it is used.
    pub sets: Vec<String>,
}

/// Why a vault lets somebody not use a key version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRefusal {
    /// It is disabled.
    Disabled,
    /// It may be used later.
    NotYet {
        /// From when on.
        from: OffsetDateTime,
    },
    /// It is deleted, and can be recovered.
    Deleted,
    /// So is its whole vault.
    VaultDeleted,
    /// The vault has no such version: it was purged, or never made.
    Missing,
    /// An identity that needs it may not unwrap with it.
    NotGranted {
        /// The set whose identity it is; nothing for the platform.
        set: Option<String>,
        /// The identity.
        identity: Uuid,
        /// The permissions that it has and those that it needs, by their names.
        wanted: Vec<&'static str>,
    },
    /// A set that needs it has no identity any more, or is gone itself.
    NoIdentity {
        /// The set.
        set: String,
    },
    /// What a vault elsewhere has said.
    Said {
        /// In its words.
        why: String,
    },
}

impl KeyRefusal {
    /// Whether nobody may use the key version, whoever it is.
    pub fn is_of_all(&self) -> bool {
        !matches!(self, Self::NotGranted { .. } | Self::NoIdentity { .. })
    }
}

/// A certificate.
#[derive(Debug, Clone)]
pub struct CertificateFacts {
    /// Its file.
    pub path: PathBuf,
    /// The last moment at which it is valid.
    pub expires: OffsetDateTime,
    /// Whether the server renews it by itself.
    pub renewed: bool,
}

/// A disk, a snapshot or an image.
#[derive(Debug, Clone)]
pub struct ResourceFacts {
    /// What it is.
    pub kind: SubjectKind,
    /// Its name.
    pub name: String,
    /// What its header and its runtime map say.
    pub state: ResourceState,
    /// Whether one of the two copies of its header cannot be read.
    pub lost_header_copy: bool,
    /// Key versions that still wrap a layer of it, and should not.
    pub old_keys: Vec<OldKey>,
    /// What its attach says, if it is attached here and answers.
    pub attached: Option<AttachedFacts>,
}

/// What the header and the runtime map of a disk say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceState {
    /// Nothing is wrong.
    Fine,
    /// Its daemon died, and the next attach goes on with the runtime map.
    Dirty {
        /// When it was attached.
        since: OffsetDateTime,
        /// The runtime map is lost.
        map_lost: bool,
    },
    /// A sync of its files failed.
    SyncFailed {
        /// When.
        since: OffsetDateTime,
        /// What the kernel said.
        error: String,
    },
    /// The header cannot be read.
    Damaged {
        /// Why.
        why: String,
    },
}

/// A key version that a rotation should have replaced.
#[derive(Debug, Clone)]
pub struct OldKey {
    /// The set; nothing for the platform's key.
    pub set: Option<String>,
    /// The key version that wraps a layer.
    pub url: String,
    /// The one that wraps what is made now.
    pub active: String,
    /// When that became so, if it is known.
    pub since: Option<OffsetDateTime>,
}

/// What the attach of a disk says.
#[derive(Debug, Clone)]
pub struct AttachedFacts {
    /// Whether the vault grants its key.
    pub key: KeyStanding,
    /// When the vault last granted it.
    pub last_granted: OffsetDateTime,
    /// How many data planes died one after the other, each soon after its start.
    pub deaths_in_a_row: u64,
    /// When the last one died.
    pub last_death: Option<OffsetDateTime>,
    /// What holds its job up.
    pub job_error: Option<String>,
    /// Its requests, if none of them ends.
    pub stall: Option<Stall>,
    /// Since when its launcher is no more.
    pub launcher_ended: Option<OffsetDateTime>,
    /// The installation whose disk it has, if it tells.
    pub installation: Option<Uuid>,
}

/// An attached disk that is stalled: requests are under way and none ends, or its data plane gives no sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stall {
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// How many requests are under way, as far as the data plane has taken them.
    pub requests: u64,
    /// Of these, those that wait for space on the host.
    pub wait_for_space: u64,
    /// The data plane gives no sign of life: it was stopped or frozen, or its first thread waits for the kernel.
    pub is_silent: bool,
}

/// As the end of a sentence that begins with what is stalled.
impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self.requests;
        match (self.is_silent, self.wait_for_space) {
            (true, _) => f.write_str("its data plane gives no sign of life"),
            (false, 0) => write!(f, "requests are under way ({requests}), and none ends"),
            (false, waiting) => write!(
                f,
                "requests are under way ({requests}), and none ends: {waiting} of them wait for space on the host"
            ),
        }
    }
}

/// Whether the vault grants the key of an attached disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStanding {
    /// Granted when it was last asked for.
    Granted,
    /// The vault cannot be asked.
    Unreachable {
        /// Since when.
        since: OffsetDateTime,
        /// When the grace period ends.
        until: Option<OffsetDateTime>,
        /// Why.
        reason: String,
    },
    /// Refused, or unreachable for too long: the disk is stopped.
    Revoked {
        /// Since when.
        since: OffsetDateTime,
        /// Why.
        reason: String,
    },
}

/// A file system.
#[derive(Debug, Clone)]
pub struct FileSystemFacts {
    /// A directory on it.
    pub path: PathBuf,
    /// Bytes that can be written.
    pub available: u64,
    /// Its size in bytes.
    pub total: u64,
    /// Audit logs are on it, and there is so little room that it is said what that means.
    pub audit_warning: Option<String>,
}

/// A vault of this installation.
#[derive(Debug, Clone)]
pub struct VaultFacts {
    /// Its name.
    pub name: String,
    /// The object id of the identity that is nearest to its limit, and how much of the limit it has used, in
    /// per cent.
    pub busiest: Option<(String, u64)>,
    /// Records of one identity that the vault takes in 10 seconds.
    pub limit: u64,
}

/// Backups of the installation.
#[derive(Debug, Clone, Copy)]
pub struct BackupFacts {
    /// When the last one was made.
    pub last: Option<OffsetDateTime>,
    /// Since when there is something to back up.
    pub needed_since: Option<OffsetDateTime>,
}

/// Something that could not be looked at.
#[derive(Debug, Clone)]
pub struct Unknown {
    /// What.
    pub subject: Subject,
    /// Why, in one line.
    pub why: String,
}

impl Unknown {
    /// A file that could not be looked at.
    pub(crate) fn of_file(kind: SubjectKind, path: &Path, why: impl ToString) -> Self {
        Self {
            subject: Subject::new(kind, path.display().to_string()),
            why: why.to_string(),
        }
    }
}
