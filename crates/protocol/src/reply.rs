//! What a data plane says: answers to commands, and events that nobody asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CommandKind, CopyProgress, FrontendMemory, Line};

/// A message of the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// The answer to a command.
    Reply {
        /// The number of the command.
        number: u64,
        /// What became of it.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// What became of a command. Each answers one kind of command, but [`Reply::Refused`] any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// The cipher is right, and all is there that can be before the disk is.
    Prepared {
        /// The version of the program.
        program: Line,
    },
    /// Guests are served.
    Serving,
    /// Frontends are spoken with, for a disk that another attach has.
    Waiting,
    /// The disk is served.
    DiskTaken,
    /// All that was completed is durable; no file, no DEK and no cipher of the disk is left in the data plane.
    DiskLetGo,
    /// The limits are the new ones.
    LimitsSet,
    /// The disk has a new size.
    Resized {
        /// Bytes.
        size: u64,
    },
    /// No DEK and no cipher is left in the data plane.
    KeyDestroyed,
    /// Guests are served again.
    KeyRestored,
    /// All that was completed is durable, and nothing more begins.
    Quiesced,
    /// The new stack is served.
    VolumeSwapped,
    /// The disk is served as before it was quiesced.
    Resumed,
    /// The copy-up has begun.
    CopyUpStarted,
    /// There is no copy-up any more.
    CopyUpStopped,
    /// How far the copy-up is.
    CopyUpProgress(CopyProgress),
    /// The connection ends, if it was still there.
    Disconnected,
    /// No key and no cipher is left, and the disk is as if the process had died when nothing was under way. It ends
    /// now.
    HandedOver,
    /// The command was not done. A quiesced disk stays quiesced, and a key that came is gone again.
    Refused {
        /// Why.
        why: Line,
    },
}

impl Reply {
    /// The refusal of a command.
    pub fn refused(why: &impl fmt::Display) -> Self {
        Self::Refused { why: Line::of(why) }
    }

    /// Whether it can be the answer to such a command.
    pub fn answers(&self, command: CommandKind) -> bool {
        let answered = match self {
            Self::Prepared { .. } => CommandKind::Prepare,
            Self::Serving => CommandKind::Serve,
            Self::Waiting => CommandKind::Wait,
            Self::DiskTaken => CommandKind::TakeDisk,
            Self::DiskLetGo => CommandKind::LetGo,
            Self::LimitsSet => CommandKind::SetLimits,
            Self::Resized { .. } => CommandKind::Resize,
            Self::KeyDestroyed => CommandKind::RevokeKey,
            Self::KeyRestored => CommandKind::RestoreKey,
            Self::Quiesced => CommandKind::Quiesce,
            Self::VolumeSwapped => CommandKind::SwapVolume,
            Self::Resumed => CommandKind::Resume,
            Self::CopyUpStarted => CommandKind::StartCopyUp,
            Self::CopyUpStopped => CommandKind::StopCopyUp,
            Self::CopyUpProgress(_) => CommandKind::CopyUpProgress,
            Self::Disconnected => CommandKind::Disconnect,
            Self::HandedOver => CommandKind::HandOver,
            Self::Refused { .. } => return true,
        };
        answered == command
    }

    /// Its name, without details.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepared { .. } => "prepared",
            Self::Serving => "serving",
            Self::Waiting => "waiting",
            Self::DiskTaken => "disk-taken",
            Self::DiskLetGo => "disk-let-go",
            Self::LimitsSet => "limits-set",
            Self::Resized { .. } => "resized",
            Self::KeyDestroyed => "key-destroyed",
            Self::KeyRestored => "key-restored",
            Self::Quiesced => "quiesced",
            Self::VolumeSwapped => "volume-swapped",
            Self::Resumed => "resumed",
            Self::CopyUpStarted => "copy-up-started",
            Self::CopyUpStopped => "copy-up-stopped",
            Self::CopyUpProgress(_) => "copy-up-progress",
            Self::Disconnected => "disconnected",
            Self::HandedOver => "handed-over",
            Self::Refused { .. } => "refused",
        }
    }
}

/// What the data plane says unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A frontend announced the guest's memory.
    FrontendMemory(FrontendMemory),
    /// A connection was ended, since a queue of it is in no shared memory.
    MemoryNotShared,
    /// The rings do something else than before. It is said at the beginning too.
    Rings {
        /// What they do.
        rings: RingsDo,
        /// The number of the frontend's connection, as in [`FrontendMemory`].
        connection: u64,
    },
    /// Requests begin to wait for space on the host.
    StorageFull,
    /// None waits any more.
    StorageOk,
    /// A sync has failed, so that no flush succeeds until the disk was checked. It is said once.
    SyncFailed {
        /// Of which file.
        file: SyncedFile,
        /// The kernel's words.
        why: Line,
    },
    /// The data plane ends without having done all of its work.
    Failed {
        /// Why.
        why: Line,
    },
}

/// What the rings of a device do, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingsDo {
    /// None runs, and none is to.
    Rest,
    /// At least one is served.
    Run,
    /// At least one is to be served, for which there is no disk.
    Wait,
}

/// A file of the top layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncedFile {
    /// The ciphertext.
    Data,
    /// The block map.
    Map,
}

impl From<volume::FailedSync> for SyncedFile {
    fn from(file: volume::FailedSync) -> Self {
        match file {
            volume::FailedSync::Data => Self::Data,
            volume::FailedSync::Map => Self::Map,
        }
    }
}
