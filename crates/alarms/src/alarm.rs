//! An alarm: what will break, or is broken.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How grave an alarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// Something will break if nobody does anything.
    Warning,
    /// Something breaks soon, or is broken.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// Which alarm it is. The names are stable: programs compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AlarmCode {
    /// The vault has refused a disk's key: the disk is stopped.
    KeyRevoked,
    /// A disk is served though its key cannot be checked, until the grace period ends.
    KeyUnreachable,
    /// A vault lets something use a key no more, that it needs: what is not attached cannot be.
    KeyUnusable,
    /// A key is past its end, and unwraps nothing any more.
    KeyExpired,
    /// A key ends soon.
    KeyNearExpiry,
    /// A certificate is past its end.
    CertificateExpired,
    /// A certificate ends soon.
    CertificateNearExpiry,
    /// A sync of a disk's files has failed.
    SyncFailed,
    /// The header of a disk cannot be read.
    DiskDamaged,
    /// The attach of a disk has not ended in order: its runtime map is needed.
    DiskDirty,
    /// Requests of a disk are under way and none ends, or its data plane gives no sign of life.
    RequestsStalled,
    /// Data planes of a disk die one after the other.
    CrashLoop,
    /// The launcher of a disk's data planes is no more: the one that serves is the last.
    LauncherEnded,
    /// A job of a disk's layers does not go on.
    JobHeldUp,
    /// A rotation has left something under an old key version.
    OldKeyVersion,
    /// A file system fills up.
    FileSystemFilling,
    /// An identity is near the limit of its vault.
    VaultNearQuota,
    /// The last backup is too old, or there is none.
    BackupTooOld,
    /// The host's clock is behind what is known to have happened.
    ClockBehind,
    /// Something could not be looked at.
    NotKnown,
}

impl AlarmCode {
    /// All of them, the gravest first.
    pub const ALL: [Self; 20] = [
        Self::KeyRevoked,
        Self::KeyUnreachable,
        Self::KeyUnusable,
        Self::KeyExpired,
        Self::KeyNearExpiry,
        Self::CertificateExpired,
        Self::CertificateNearExpiry,
        Self::SyncFailed,
        Self::DiskDamaged,
        Self::DiskDirty,
        Self::RequestsStalled,
        Self::CrashLoop,
        Self::LauncherEnded,
        Self::JobHeldUp,
        Self::OldKeyVersion,
        Self::FileSystemFilling,
        Self::VaultNearQuota,
        Self::BackupTooOld,
        Self::ClockBehind,
        Self::NotKnown,
    ];

    /// Whether the events of an attached disk tell of it under a name of their own.
    pub fn has_own_event(self) -> bool {
        matches!(
            self,
            Self::KeyRevoked
                | Self::KeyUnusable
                | Self::KeyUnreachable
                | Self::SyncFailed
                | Self::LauncherEnded
        )
    }
}

/// The name of the code.
impl fmt::Display for AlarmCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What kind of thing an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SubjectKind {
    /// A disk.
    Disk,
    /// A snapshot.
    Snapshot,
    /// An image.
    Image,
    /// A disk encryption set.
    DiskEncryptionSet,
    /// A key version, by its URL.
    Key,
    /// A key vault.
    Vault,
    /// A certificate, by its file.
    Certificate,
    /// A file system, by a directory on it.
    FileSystem,
    /// The installation as a whole.
    Installation,
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
            Self::DiskEncryptionSet => "disk encryption set",
            Self::Key => "key",
            Self::Vault => "key vault",
            Self::Certificate => "certificate",
            Self::FileSystem => "file system",
            Self::Installation => "installation",
        })
    }
}

/// What an alarm is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// What it is.
    pub kind: SubjectKind,
    /// Its name, URL or path.
    pub name: String,
}

impl Subject {
    /// The one of that kind and name.
    pub fn new(kind: SubjectKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Something that will break, or is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// Which one it is.
    pub code: AlarmCode,
    /// How grave it is now.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// Since when; nothing when that is not known.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub since: Option<OffsetDateTime>,
    /// What is the matter, in one line.
    pub message: String,
    /// What to do, in one line.
    pub remedy: String,
}

impl Alarm {
    /// What tells it from other alarms: the code and the subject.
    pub fn id(&self) -> (AlarmCode, &Subject) {
        (self.code, &self.subject)
    }
}

/// One line for the log.
impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            severity,
            message,
            remedy,
            ..
        } = self;
        write!(f, "{severity} {code}: {message}; {remedy}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_code_is_written_as_it_is_told() {
        let mut names = BTreeSet::new();
        for code in AlarmCode::ALL {
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            names.insert(code.to_string());
        }
        assert_eq!(names.len(), AlarmCode::ALL.len());
        assert!(AlarmCode::ALL.is_sorted(), "the gravest first");
    }

    /// docs/alarms.md has a row for each code, and for nothing else.
    #[test]
    fn each_code_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/alarms.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: BTreeSet<String> = rows
            .filter_map(|row| row.split_once('`'))
            .map(|(name, _)| name.to_owned())
            .filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))
            .collect();
        let codes = AlarmCode::ALL.iter().map(ToString::to_string);
        assert_eq!(documented, codes.collect());
    }
}
