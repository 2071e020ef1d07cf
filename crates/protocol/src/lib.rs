//! What an attach process and its data plane say to each other, over the socket that the data plane gets as
//! descriptor [`COMMAND_FD`].
//!
//! The attach process has the vault's word on the disk's key; the data plane has the guest. Each side first
//! says which versions it speaks ([`Versions`]). Then the attach process sends commands, of which the first two
//! are [`Command::Prepare`] and [`Command::Serve`], and the data plane answers each with one [`Reply`], in their order and under
//! their numbers; it tells an [`Event`] when something happens. When either end goes away, the other notices
//! it by the end of the socket.
//!
//! Each message is one frame: its length, JSON and a newline ([`encode`], [`decode`]). The descriptors of a
//! disk's files come with the first byte of a frame, as [`DiskFiles`] has them. The 64 bytes of each layer's
//! DEK follow the frame, from the top down: no key is in a message, in a buffer, in an argument or in the
//! environment, and the socket is in no file system.
//!
//! | Command | With it | What the data plane does | Answer |
//! |---|---|---|---|
//! | [`Prepare`](Command::Prepare) | | tests the cipher, makes what a disk needs, and is confined; the first command, once | [`Prepared`](Reply::Prepared), or it ends with [`Event::Failed`] |
//! | [`Serve`](Command::Serve) | files, keys if any | serves the disk; the second command, once | [`Serving`](Reply::Serving), or it ends with [`Event::Failed`] |
//! | [`Wait`](Command::Wait) | | speaks with a frontend for a disk that another attach has; instead of the second command | [`Waiting`](Reply::Waiting) |
//! | [`TakeDisk`](Command::TakeDisk) | files, keys if any | serves the disk that it has waited for | [`DiskTaken`](Reply::DiskTaken) |
//! | [`LetGo`](Command::LetGo) | | makes durable what was completed, closes the disk, destroys its keys, and waits | [`DiskLetGo`](Reply::DiskLetGo) |
//! | [`SetLimits`](Command::SetLimits) | | changes the disk's limits | [`LimitsSet`](Reply::LimitsSet) |
//! | [`Resize`](Command::Resize) | | serves the disk, whose files have grown, with a new size | [`Resized`](Reply::Resized) |
//! | [`RevokeKey`](Command::RevokeKey) | | completes what was begun, then destroys all keys and ciphers | [`KeyDestroyed`](Reply::KeyDestroyed) |
//! | [`RestoreKey`](Command::RestoreKey) | keys | serves the disk again | [`KeyRestored`](Reply::KeyRestored) |
//! | [`Quiesce`](Command::Quiesce) | | makes durable what was completed, and begins nothing more | [`Quiesced`](Reply::Quiesced) |
//! | [`SwapVolume`](Command::SwapVolume) | files, keys | resumes with another stack, if it is quiesced | [`VolumeSwapped`](Reply::VolumeSwapped) |
//! | [`Resume`](Command::Resume) | | resumes as before | [`Resumed`](Reply::Resumed) |
//! | [`StartCopyUp`](Command::StartCopyUp) | | copies up what the top layer lacks, in the background | [`CopyUpStarted`](Reply::CopyUpStarted) |
//! | [`StopCopyUp`](Command::StopCopyUp) | | ends the copy-up | [`CopyUpStopped`](Reply::CopyUpStopped) |
//! | [`CopyUpProgress`](Command::CopyUpProgress) | | tells how far the copy-up is | [`CopyUpProgress`](Reply::CopyUpProgress) |
//! | [`Disconnect`](Command::Disconnect) | | ends a connection that does not share the guest's memory | [`Disconnected`](Reply::Disconnected) |
//! | [`HandOver`](Command::HandOver) | | completes what it took, destroys all keys, lets go of the disk and ends | [`HandedOver`](Reply::HandedOver) |
//!
//! Instead of each answer [`Reply::Refused`] can come, which says why.
//!
//! # What outlives a data plane
//!
//! A data plane that dies is replaced by another ([`Setup::restart`]), and the frontend does not notice. For
//! that it sends on what the frontend sets up, through a second socket ([`KEEP_FD`], [`Kept`]), and notes in
//! memory that it shares with the attach process which requests are in flight ([`REGION_FD`], [`KeptRegion`]), and
//! what it counts ([`io_counters`]).
//! The next one gets the same memory, and what was kept through its own second socket, right after
//! [`Command::Serve`]. While the key is revoked no keys follow that ([`Setup::revoked`]).
//!
//! # Another program
//!
//! A data plane of another program takes the place of one that serves without anybody noticing. It is prepared beside
//! ([`prepare`]). Then the one that serves hands over ([`Command::HandOver`]): after its answer it touches neither the
//! disk nor the memory of the guest, so that the other one can go on before it has ended, from what is kept, as after
//! a death. Until it is told that, it can be left as it is at any time.
//!
//! # A disk that is let go of
//!
//! While no ring runs the disk can go over to another attach. The data plane tells what its rings do
//! ([`Event::Rings`]); told to [let go](Command::LetGo) it has neither files nor keys, and whatever the frontend sets up
//! is kept until a ring is to run. Then the attach process gives it the disk again ([`Command::TakeDisk`]), or ends the
//! connection. One that was started to wait for a disk is the same from the beginning ([`Command::Wait`]).
//!
//! # A quiesced disk
//!
//! Between [`Command::Quiesce`] and what follows it the disk's header may come to name another stack, so a
//! quiesced data plane never resumes by itself: when the attach process goes away it ends, with nothing left to
//! be flushed. A stack that it cannot take leaves it quiesced; the attach process ends it then. A key that is
//! revoked meanwhile is destroyed as ever, and what a new stack brings of keys is zeroed too: the disk goes
//! on without, until it is restored.
//!
//! # Two adversaries
//!
//! A guest that escapes owns the data plane and says what it likes: [`Messages`] takes only whole frames of
//! bounded length, never waits for one, and prints no control character; [`Commands`] takes an answer only
//! in its turn. The data plane trusts the attach process, which gives it the keys; it still refuses what it
//! does not know by name, and ends when it cannot tell where the next command begins.

mod command;
mod command_kind;
mod commands;
mod data_plane_end;
#[cfg(test)]
mod encoding_tests;
mod error;
mod files;
mod frame;
mod frontend_memory;
mod hello;
pub mod io_counters;
mod keep_socket;
mod kept;
mod kept_region;
mod limits;
mod line;
mod messages;
mod prepare;
mod reply;
mod setup;
#[cfg(test)]
mod tests;
mod version;
mod waiter;

pub use command::{Command, Request};
pub use command_kind::CommandKind;
pub use commands::{Asked, Commands, FrozenCommands, Opening};
pub use data_plane_end::{Cargo, DataPlaneEnd, Received};
pub use error::ProtocolError;
pub use files::DiskFiles;
pub use frame::{MAX_MESSAGE_LEN, decode, encode};
pub use frontend_memory::{FileId, FrontendMemory};
pub use hello::{Hello, SUPPORTED};
pub use io_counters::{IoCounters, OpCounters, Operation};
pub use keep_socket::KeepSocket;
pub use kept::{
    Change, InflightPlace, Kept, KeptKey, KeptMemory, KeptRing, KeptThings, MAX_MEMORY_REGIONS,
};
pub use kept_region::{
    INFLIGHT_AT, INFLIGHT_ENTRY, INFLIGHT_HEADER, INFLIGHT_USED_IDX, KeptRegion, MAX_QUEUE_SIZE,
    counters_at, inflight_len, inflight_part_len, inflight_progress, sealed_memory,
};
pub use limits::Limits;
pub use line::Line;
pub use messages::{Heard, Messages};
pub use prepare::prepare;
pub use reply::{Event, Message, Reply, RingsDo, SyncedFile};
pub use setup::{
    CopyProgress, CopyRequest, CopyState, Discard, OnFull, OnRevoke, Restart, Setup, Stack,
    StackLayer,
};
pub use version::{Peer, Versions};
pub use waiter::{Waiter, hangup_pipe, signal_pipe};

/// The descriptor of the command channel in the data plane process.
pub const COMMAND_FD: i32 = 3;
/// That of the vhost-user socket, listening or connected.
pub const SOCKET_FD: i32 = 4;
/// That of the socket through which things are kept ([`KeepSocket`]).
pub const KEEP_FD: i32 = 5;
/// That of the memory that outlives the process ([`KeptRegion`]).
pub const REGION_FD: i32 = 6;
