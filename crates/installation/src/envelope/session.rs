//! What a header says of a disk's use: who has it attached, and whether a sync of it failed.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::host::{id_of_host, is_this_host, name_of_host};

/// Longest path of a runtime map, in bytes.
const MAX_PATH_LEN: usize = 1024;
/// Longest name of a host, Linux' `HOST_NAME_MAX`.
const MAX_HOST_LEN: usize = 64;
/// Longest reason for a failed sync, in bytes.
const MAX_ERROR_LEN: usize = 256;

/// An attach of a disk that has not ended in order, as far as the header knows.
///
/// What a guest was told is written and had not flushed is known to the runtime map alone. So within
/// the same boot of the kernel, that map is needed to open the disk; after another boot of the same host it is
/// gone, and so may be those writes. On another host it is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Session {
    /// The boot of the kernel under which the disk was attached.
    pub boot: Uuid,
    /// The host, as [`this_host`](crate::this_host) has it; of an earlier version of this program its name alone.
    pub host: String,
    /// The absolute path of the runtime map.
    pub runtime_map: String,
    /// When the disk was attached.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl Session {
    /// A session that begins now. Of what is said of the host only what a header may hold is taken.
    ///
    /// # Errors
    /// What is wrong with the path, as the end of a sentence.
    pub fn new(boot: Uuid, host: &str, runtime_map: &Path) -> Result<Self, String> {
        let host: String = host.chars().filter(char::is_ascii_graphic).collect();
        let this = Self {
            boot,
            host: match host.is_empty() || host.len() > MAX_HOST_LEN {
                true => "unknown".into(),
                false => host,
            },
            runtime_map: runtime_map.to_str().unwrap_or_default().into(),
            since: OffsetDateTime::now_utc(),
        };
        this.check().map(|()| this)
    }

    /// Whether that host is this one; nothing where the header does not tell.
    pub fn is_of_this_host(&self) -> Option<bool> {
        is_this_host(&self.host)
    }

    /// The host, as people call it.
    pub fn host_name(&self) -> &str {
        name_of_host(&self.host)
    }

    /// The id of the host, if the header says one.
    pub fn host_id(&self) -> Option<&str> {
        id_of_host(&self.host)
    }

    /// The path of the runtime map.
    pub fn runtime_map(&self) -> &Path {
        Path::new(&self.runtime_map)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let path = &self.runtime_map;
        if !path.starts_with('/') || path.len() > MAX_PATH_LEN || !path.chars().all(is_printable) {
            return Err(format!(
                "the path of its runtime map must be absolute, have {MAX_PATH_LEN} bytes at most, and \
                 only characters that can be printed"
            ));
        }
        let host = &self.host;
        if host.is_empty() || host.len() > MAX_HOST_LEN || !host.chars().all(is_printable) {
            return Err("the name of the host on which it was attached is not one".into());
        }
        Ok(())
    }
}

/// A file of a layer that is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SyncedFile {
    /// The ciphertext.
    Data,
    /// The block map.
    Map,
}

impl fmt::Display for SyncedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Map => "map",
        })
    }
}

/// A sync of a layer that failed. The kernel may have dropped writes that the guest was told are
/// complete, and the next sync succeeds without them; so nothing of the layer counts as durable any
/// more, until the disk was checked and repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailedSync {
    /// The layer, which was the top one.
    pub layer: Uuid,
    /// Which of its files, where that is known.
    pub file: Option<SyncedFile>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What the kernel said.
    pub error: String,
}

impl FailedSync {
    /// One that was found out now. Of the error only what a header may hold is taken.
    pub fn new(layer: Uuid, file: Option<SyncedFile>, error: &str) -> Self {
        let mut shortened = String::new();
        for character in error.chars().filter(|c| is_printable(*c)) {
            if shortened.len() + character.len_utf8() > MAX_ERROR_LEN {
                break;
            }
            shortened.push(character);
        }
        Self {
            layer,
            file,
            time: OffsetDateTime::now_utc(),
            error: shortened,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self.error.len() <= MAX_ERROR_LEN && self.error.chars().all(is_printable) {
            true => Ok(()),
            false => Err("the reason for a failed sync is too long or has odd characters".into()),
        }
    }
}

impl fmt::Display for FailedSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some(file) => write!(f, "{file}: {}", self.error),
            None => f.write_str(&self.error),
        }
    }
}

/// Nothing that moves a terminal's cursor or turns its text around.
fn is_printable(character: char) -> bool {
    character.is_alphanumeric() || character.is_ascii_graphic() || character == ' '
}
