//! The names of the commands.

use std::fmt;

/// Which command it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of `Command`")]
pub enum CommandKind {
    Prepare,
    Serve,
    Wait,
    TakeDisk,
    LetGo,
    SetLimits,
    Resize,
    RevokeKey,
    RestoreKey,
    Quiesce,
    SwapVolume,
    Resume,
    StartCopyUp,
    StopCopyUp,
    CopyUpProgress,
    Disconnect,
    HandOver,
}

impl fmt::Display for CommandKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Serve => "serve",
            Self::Wait => "wait",
            Self::TakeDisk => "take-disk",
            Self::LetGo => "let-go",
            Self::SetLimits => "set-limits",
            Self::Resize => "resize",
            Self::RevokeKey => "revoke-key",
            Self::RestoreKey => "restore-key",
            Self::Quiesce => "quiesce",
            Self::SwapVolume => "swap-volume",
            Self::Resume => "resume",
            Self::StartCopyUp => "start-copy-up",
            Self::StopCopyUp => "stop-copy-up",
            Self::CopyUpProgress => "copy-up-progress",
            Self::Disconnect => "disconnect",
            Self::HandOver => "hand-over",
        })
    }
}
