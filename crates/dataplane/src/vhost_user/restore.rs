//! Going on with what a frontend set up in a process before this one.
//!
//! Everything passes through what its messages pass through, with the same checks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{
    FrontendReq, VhostUserInflight, VhostUserLog, VhostUserSingleMemoryRegion,
};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};
use vm_memory::GuestAddress;

use protocol::{
    Change, InflightPlace, KeepSocket, Kept, KeptMemory, KeptRing, ProtocolError, inflight_len,
};

use crate::DataplaneError;
use crate::queue::ring::RingAddresses;

use super::backend_channel::{BackendChannel, VERSION};
use super::conversation::Conversation;
use super::handler::{BlockHandler, refused};

/// What a frontend acknowledges.
#[derive(Debug, Default, Clone, Copy)]
struct Acknowledged {
    features: Option<u64>,
    /// The device was reset since, so that they do not count.
    reset: bool,
    protocol_features: Option<u64>,
}

impl Acknowledged {
    /// The messages by which it said so.
    fn messages(&self) -> Vec<Vec<u8>> {
        let mut messages = vec![message(FrontendReq::GET_FEATURES, None)];
        if let Some(features) = self.protocol_features {
            messages.push(message(FrontendReq::GET_PROTOCOL_FEATURES, None));
            messages.push(message(FrontendReq::SET_PROTOCOL_FEATURES, Some(features)));
        }
        if let Some(features) = self.features {
            messages.push(message(FrontendReq::SET_FEATURES, Some(features)));
        }
        messages
    }
}

/// What was kept of a connection.
pub(crate) struct KeptConnection {
    /// Its socket.
    pub(crate) stream: UnixStream,
    /// What was set up through it.
    pub(crate) setup: KeptSetup,
    /// Through which it is said again what the frontend acknowledged.
    pub(crate) pair: (UnixStream, UnixStream),
}

/// What a frontend set up.
#[derive(Default)]
pub(crate) struct KeptSetup {
    acknowledged: Acknowledged,
    things: Vec<(Kept, Option<OwnedFd>)>,
}

impl KeptConnection {
    /// Receives `count` things; `None` when there is no connection. The pair of sockets is for what a process that is
    /// confined cannot make.
    ///
    /// # Errors
    /// [`DataplaneError::Protocol`].
    pub(crate) fn receive(
        from: &KeepSocket,
        count: u32,
        pair: (UnixStream, UnixStream),
    ) -> std::result::Result<Option<Self>, DataplaneError> {
        let unexpected = || ProtocolError::Cargo("what was kept is not complete".into());
        let mut stream = None;
        let mut setup = KeptSetup::default();
        for _ in 0..count {
            let (change, descriptor) = from.receive()?.ok_or_else(unexpected)?;
            let Change::Put(kept) = change else {
                return Err(unexpected().into());
            };
            let said = &mut setup.acknowledged;
            match (kept, descriptor) {
                (Kept::Connection, Some(socket)) => stream = Some(UnixStream::from(socket)),
                (Kept::ProtocolFeatures(bits), _) => said.protocol_features = Some(bits),
                (
                    Kept::Features {
                        acknowledged,
                        in_use,
                    },
                    _,
                ) => (said.features, said.reset) = (Some(acknowledged), !in_use),
                thing => setup.things.push(thing),
            }
        }
        let Some(stream) = stream else {
            return Ok(None);
        };
        Ok(Some(Self {
            stream,
            setup,
            pair,
        }))
    }
}

impl KeptSetup {
    /// Sets everything up as it was. Rings that were served are served again.
    ///
    /// # Errors
    /// What cannot be as it was: the connection is to end.
    pub(crate) fn restore(
        self,
        stream: &UnixStream,
        pair: (UnixStream, UnixStream),
        handler: &Arc<Mutex<BlockHandler>>,
    ) -> io::Result<Conversation> {
        let acknowledged = self.acknowledged.messages();
        let conversation =
            Conversation::go_on((stream.try_clone()?, pair), handler.clone(), acknowledged)?;
        let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
        if self.acknowledged.reset {
            handler.forget_features();
        }
        for (kept, descriptor) in self.things {
            match (handler.restore(kept, descriptor.map(File::from)), kept) {
                (Ok(()), _) => {}
                // As when its guest breaks it: the others go on.
                (
                    Err(error),
                    Kept::Ring(KeptRing { index: ring, .. })
                    | Kept::Call { ring }
                    | Kept::Err { ring }
                    | Kept::Kick { ring },
                ) => log::warn!("queue {ring} is not served until it is set up again: {error}"),
                (Err(error), _) => return Err(io::Error::other(format!("{kept:?}: {error}"))),
            }
        }
        Ok(conversation)
    }
}

impl BlockHandler {
    fn restore(&mut self, kept: Kept, file: Option<File>) -> Result<()> {
        let missing = || refused("a descriptor of what was kept is missing");
        match kept {
            Kept::Connection | Kept::Features { .. } | Kept::ProtocolFeatures(_) => Ok(()),
            Kept::Memory(memory) => {
                let file = file.ok_or_else(missing)?;
                self.add_mem_region(&region_of(&memory), file, None)
                    .map(drop)
            }
            Kept::Log { offset, len } => {
                let log = VhostUserLog::new(len, offset);
                self.set_log_base(&log, file.ok_or_else(missing)?)
            }
            Kept::Inflight(InflightPlace {
                offset,
                queues,
                entries,
            }) => {
                let of = VhostUserInflight {
                    mmap_size: inflight_len(queues, entries),
                    mmap_offset: offset,
                    num_queues: queues,
                    queue_size: entries,
                };
                self.set_inflight_fd(&of, file.ok_or_else(missing)?)
            }
            Kept::Ring(ring) => self.restore_ring(&ring),
            Kept::Call { ring } => self.set_vring_call(index_of(ring)?, file),
            Kept::Err { ring } => self.set_vring_err(index_of(ring)?, file),
            Kept::Kick { ring } => self.set_vring_kick(index_of(ring)?, file),
            Kept::Channel => {
                let socket = OwnedFd::from(file.ok_or_else(missing)?);
                self.channel = Some(BackendChannel::new(UnixStream::from(socket)));
                Ok(())
            }
        }
    }

    fn restore_ring(&mut self, ring: &KeptRing) -> Result<()> {
        let index = u32::from(ring.index);
        if ring.size != 0 {
            self.set_vring_num(index, u32::from(ring.size))?;
        }
        self.set_vring_base(index, u32::from(ring.next_avail))?;
        if let Some([descriptors, avail, used]) = ring.addresses.map(|at| at.map(GuestAddress)) {
            let addresses = RingAddresses {
                descriptors,
                avail,
                used,
            };
            self.set_ring_addresses(ring.index.into(), addresses)?;
        }
        self.ring(ring.index.into())?.enabled = ring.enabled;
        Ok(())
    }
}

fn region_of(memory: &KeptMemory) -> VhostUserSingleMemoryRegion {
    let KeptMemory {
        guest,
        len,
        user,
        offset,
    } = *memory;
    VhostUserSingleMemoryRegion::new(guest, len, user, offset)
}

fn index_of(ring: u16) -> Result<u8> {
    u8::try_from(ring).map_err(|_| Error::ReqHandlerError(io::ErrorKind::InvalidInput.into()))
}

/// A message of a frontend whose body is a number, or which has none.
fn message(request: FrontendReq, body: Option<u64>) -> Vec<u8> {
    let len = body.map_or(0, |_| size_of::<u64>() as u32);
    let mut message: Vec<u8> = [u32::from(request), VERSION, len]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    message.extend(body.into_iter().flat_map(u64::to_ne_bytes));
    message
}
