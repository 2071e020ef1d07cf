//! What an attach process tells its data plane.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{CommandKind, CopyRequest, Limits, OnRevoke, Setup, Stack};

/// A command under its number. The data plane answers each with one [`Reply`](crate::Reply), in their
/// order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Counts the commands of a connection, from 0.
    pub number: u64,
    /// The command.
    pub command: Command,
}

/// The number of a request whose command is not known.
#[derive(Deserialize)]
pub(crate) struct RequestNumber {
    pub(crate) number: u64,
}

/// What the data plane is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Test the cipher, make all that a disk with so many queues needs, and be confined. The first command, and only
    /// once.
    Prepare {
        /// Queues that will be offered.
        queues: u16,
    },
    /// Serve a disk, whose files come with this and whose keys follow, unless they are revoked. The second
    /// command, and only once.
    Serve(Setup),
    /// Speak with a frontend for a disk that another attach has, until it comes. The first command instead of
    /// [`Command::Serve`], and only once.
    Wait(Setup),
    /// Serve the disk that was waited for, whose files come with this and whose keys follow, unless they are
    /// revoked. Rings that wait for it run then.
    TakeDisk(Setup),
    /// Make durable what was completed, close the disk and destroy its keys; go on as after [`Command::Wait`]. Refused
    /// while a ring runs.
    LetGo,
    /// Change the disk's limits.
    SetLimits(Limits),
    /// Serve the disk, whose files have grown, with a new size.
    Resize {
        /// Bytes.
        size: u64,
    },
    /// Complete what was begun, then destroy all keys and ciphers.
    RevokeKey {
        /// What becomes of the guest's requests meanwhile.
        on_revoke: OnRevoke,
    },
    /// Serve the disk again with the keys that follow.
    RestoreKey {
        /// The layers that they are of, from the top down: keys that were unwrapped for an older stack are
        /// never used for a newer one.
        layers: Vec<Uuid>,
    },
    /// Make durable what was completed, and begin nothing more.
    Quiesce,
    /// Resume a quiesced disk with another stack, whose files come with this and whose keys follow. Of the
    /// top layer's files the data plane goes on with those that it has, if it has that layer.
    SwapVolume(Stack),
    /// Resume a quiesced disk as it was.
    Resume,
    /// Copy up, in the background, what the top layer lacks.
    StartCopyUp(CopyRequest),
    /// End the copy-up. What is done of it stays.
    StopCopyUp,
    /// Tell how far the copy-up is.
    CopyUpProgress,
    /// End a connection of the frontend, which does not share the guest's memory.
    Disconnect {
        /// Its number, as in [`FrontendMemory`](crate::FrontendMemory).
        connection: u64,
    },
    /// Complete what was taken and leave in flight what waits; destroy all keys and ciphers; let go of the disk, and
    /// end without touching it again: another data plane goes on from what is kept.
    HandOver,
}

impl Command {
    /// Which it is.
    pub fn kind(&self) -> CommandKind {
        match self {
            Self::Prepare { .. } => CommandKind::Prepare,
            Self::Serve(_) => CommandKind::Serve,
            Self::Wait(_) => CommandKind::Wait,
            Self::TakeDisk(_) => CommandKind::TakeDisk,
            Self::LetGo => CommandKind::LetGo,
            Self::SetLimits(_) => CommandKind::SetLimits,
            Self::Resize { .. } => CommandKind::Resize,
            Self::RevokeKey { .. } => CommandKind::RevokeKey,
            Self::RestoreKey { .. } => CommandKind::RestoreKey,
            Self::Quiesce => CommandKind::Quiesce,
            Self::SwapVolume(_) => CommandKind::SwapVolume,
            Self::Resume => CommandKind::Resume,
            Self::StartCopyUp(_) => CommandKind::StartCopyUp,
            Self::StopCopyUp => CommandKind::StopCopyUp,
            Self::CopyUpProgress => CommandKind::CopyUpProgress,
            Self::Disconnect { .. } => CommandKind::Disconnect,
            Self::HandOver => CommandKind::HandOver,
        }
    }

    /// How many keys follow the command.
    pub(crate) fn keys(&self) -> usize {
        match self {
            Self::Serve(setup) | Self::TakeDisk(setup) if setup.revoked.is_some() => 0,
            Self::Serve(setup) | Self::TakeDisk(setup) => setup.stack.layers.len(),
            Self::SwapVolume(stack) => stack.layers.len(),
            Self::RestoreKey { layers } => layers.len(),
            Self::Prepare { .. }
            | Self::Wait(_)
            | Self::LetGo
            | Self::SetLimits(_)
            | Self::Resize { .. }
            | Self::RevokeKey { .. }
            | Self::Quiesce
            | Self::Resume
            | Self::StartCopyUp(_)
            | Self::StopCopyUp
            | Self::CopyUpProgress
            | Self::Disconnect { .. }
            | Self::HandOver => 0,
        }
    }

    /// Whether keys belong to it.
    pub(crate) fn has_keys(&self) -> bool {
        match self {
            Self::Serve(setup) | Self::TakeDisk(setup) => setup.revoked.is_none(),
            Self::SwapVolume(_) | Self::RestoreKey { .. } => true,
            _ => false,
        }
    }
}
