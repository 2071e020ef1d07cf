//! What the other threads tell a queue's thread.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use protocol::OnRevoke;

use crate::disk::shared::Extent;
use crate::request::Memory;

use super::dirty_log::DirtyLog;
use super::notifier::Notifier;
use super::ring::RingSetup;

/// What a worker is told. Each command is answered when it is done.
pub(crate) enum Command {
    /// Serve a ring.
    Start(Box<RingSetup>),
    /// Serve it no more: take no new chain, complete those taken.
    Stop(Waiting),
    /// Use this memory from now on.
    Memory(Arc<Memory>),
    /// Note written pages here, or nowhere.
    Log(Option<Arc<DirtyLog>>),
    /// Notify the guest through this.
    Call(Option<Box<Notifier>>),
    /// Tell of a broken ring through this.
    Err(Option<File>),
    /// Complete what was taken, then destroy the cipher; afterwards requests fail or stay in the
    /// ring. One that a limit held back stays in the ring in any case.
    Suspend(OnRevoke),
    /// Make a cipher of the shared key, and go on.
    Resume,
    /// Complete what was taken, and stay quiesced until the disk's new extent comes; when none comes,
    /// go on with the old one.
    Quiesce(Receiver<WhileQuiesced>),
    /// Complete what was taken, and end the thread.
    Exit,
}

/// What becomes of requests that wait, for space on the host or for the key, when their ring is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// They fail: who starts the ring again knows of no request that was taken and not returned.
    Fail,
    /// They stay in flight: who starts the ring again has the in-flight region.
    StayInFlight,
}

/// What a quiesced worker is told.
pub(crate) enum WhileQuiesced {
    /// Serve this from now on.
    Serve(Arc<Extent>),
    /// Destroy the cipher, as for [`Command::Suspend`], and stay quiesced.
    DestroyKey(OnRevoke, SyncSender<Answer>),
}

pub(crate) type Answer = Result<u16, String>;
