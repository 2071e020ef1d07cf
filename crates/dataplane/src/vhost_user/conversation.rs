//! A connection of a frontend: its messages, one after the other, until it ends.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{DupFlags, dup3};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use protocol::Kept;

use crate::disk::log_limit::LogLimit;

use super::backend_channel::announced_channel;
use super::handler::BlockHandler;
use super::keeper::Keeper;

/// What handles the messages of a connection.
pub(crate) struct Conversation {
    messages: BackendReqHandler<Mutex<BlockHandler>>,
    /// Looks at the next message before it is taken.
    peek: UnixStream,
    handler: Arc<Mutex<BlockHandler>>,
    keeper: Arc<Keeper>,
}

impl Conversation {
    /// Begins with a frontend that has just connected.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn begin(stream: UnixStream, handler: Arc<Mutex<BlockHandler>>) -> io::Result<Self> {
        let peek = stream.try_clone()?;
        let keeper = lock(&handler).keeper.clone();
        keeper.put(Kept::Connection, Some(stream.as_fd()));
        Ok(Self {
            messages: BackendReqHandler::from_stream(stream, handler.clone()),
            peek,
            handler,
            keeper,
        })
    }

    /// Goes on with a frontend that has told another process what it acknowledges.
    ///
    /// The `vhost` crate keeps that to itself, and takes it from messages only. So it gets these messages again,
    /// through a pair of sockets, in the place of one of which the connection is put then. `acknowledged` are these
    /// messages, each of which is answered without waiting.
    ///
    /// # Errors
    /// What the kernel says, or why the features cannot be what the frontend acknowledges.
    pub(crate) fn go_on(
        (stream, (ours, mut other)): (UnixStream, (UnixStream, UnixStream)),
        handler: Arc<Mutex<BlockHandler>>,
        acknowledged: Vec<Vec<u8>>,
    ) -> io::Result<Self> {
        let place = ours.as_raw_fd();
        let mut messages = BackendReqHandler::from_stream(ours, handler.clone());
        for message in acknowledged {
            other.write_all(&message)?;
            messages.handle_request().map_err(io::Error::other)?;
        }
        // SAFETY: `messages` owns this open descriptor and closes it; it is not dropped here. What is put in its
        // place is one of the same kind.
        let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place) });
        dup3(&stream, &mut place, DupFlags::CLOEXEC)?;
        let keeper = lock(&handler).keeper.clone();
        Ok(Self {
            messages,
            peek: stream,
            handler,
            keeper,
        })
    }

    /// Handles messages until the connection ends, then gives up everything that it set up.
    pub(crate) fn hold(mut self) {
        let mut refusals = LogLimit::default();
        loop {
            let channel = announced_channel(&self.peek);
            // Where that has to wait, the message waits in the socket.
            lock(&self.handler).offer_channel(channel);
            self.keeper.begin();
            match self.messages.handle_request() {
                Ok(()) => {}
                // A well-formed message that cannot be granted; the frontend was told if it asked. After
                // every other error it may wait for a reply that never comes, so the connection ends.
                Err(VhostError::ReqHandlerError(error)) => {
                    refusals.warn(|| format!("a vhost-user message was refused: {error}"));
                }
                Err(VhostError::Disconnected) => break,
                Err(error) => {
                    log::warn!("the vhost-user connection ends: {error}");
                    break;
                }
            }
            self.keeper.end();
            lock(&self.handler).tell_rings();
        }
        let mut handler = lock(&self.handler);
        handler.disconnect();
        handler.tell_rings();
        drop(handler);
        self.keeper.forget_connection();
        self.keeper.end();
    }
}

/// A panic of any thread ends the process.
fn lock(handler: &Mutex<BlockHandler>) -> MutexGuard<'_, BlockHandler> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}
