//! vhost-user messages as bytes on a socket, well-formed or not.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::PATIENCE;

/// Request codes of the frontend (vhost-user protocol, "Front-end message types").
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Protocol feature bits (vhost-user protocol, "Protocol features").
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
}

/// The version that every header carries.
pub const VERSION: u32 = 1;
/// This message is a reply.
pub const REPLY: u32 = 1 << 2;
/// The sender wants an acknowledgement (REPLY_ACK).
pub const NEED_REPLY: u32 = 1 << 3;

/// A message that arrived.
#[derive(Debug)]
pub struct Message {
    /// Its request code.
    pub request: u32,
    /// Its flags, version included.
    pub flags: u32,
    /// What follows the header.
    pub body: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The body as the one `u64` that most replies are.
    pub fn value(&self) -> u64 {
        u64::from_le_bytes(self.body[..].try_into().expect("a reply of 8 bytes"))
    }
}

/// The 12 bytes before every body.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&request.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// The little-endian words of a body.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A `vhost_vring_state`.
pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    words(&[u64::from(index) | u64::from(num) << 32])
}

/// A connection to a vhost-user back-end.
pub struct Connection {
    socket: UnixStream,
}

impl Connection {
    /// Connects to the back-end that listens at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::from(UnixStream::connect(path)?))
    }

    /// Waits no longer than this for an answer.
    pub fn set_patience(&self, limit: Duration) {
        self.socket.set_read_timeout(Some(limit)).unwrap();
    }

    /// Sends bytes and file descriptors as they are.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let rights = SendAncillaryMessage::ScmRights(fds);
        let mut space = vec![MaybeUninit::uninit(); rights.size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(rights));
        }
        let mut sent = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        while sent < bytes.len() {
            let rest = &[IoSlice::new(&bytes[sent..])];
            sent += sendmsg(
                &self.socket,
                rest,
                &mut Default::default(),
                SendFlags::NOSIGNAL,
            )?;
        }
        Ok(())
    }

    /// Sends one message with a correct header.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut bytes = header(request, VERSION | flags, body.len() as u32).to_vec();
        bytes.extend_from_slice(body);
        self.send_raw(&bytes, fds)
    }

    /// Receives one message. An end of the connection is `UnexpectedEof`.
    pub fn receive(&self) -> io::Result<Message> {
        let mut head = [0u8; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut head)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (&self.socket).read_exact(&mut head[got..])?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        (&self.socket).read_exact(&mut body)?;
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        Ok(Message {
            request: word(0),
            flags: word(4),
            body,
            fds,
        })
    }

    /// Sends a message and receives its reply.
    pub fn call(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.send(request, 0, body, fds)?;
        let reply = self.receive()?;
        assert_eq!(reply.request, request, "the reply is to another request");
        assert_eq!(reply.flags, VERSION | REPLY, "flags of a reply");
        Ok(reply)
    }

    /// Sends a message that has no reply of its own and asks for an acknowledgement (which needs
    /// REPLY_ACK negotiated): 0 for success.
    pub fn acknowledged(
        &self,
        request: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<u64> {
        self.send(request, NEED_REPLY, body, fds)?;
        let reply = self.receive()?;
        assert_eq!(
            reply.request, request,
            "the acknowledgement is of another request"
        );
        Ok(reply.value())
    }

    /// Waits until the back-end closes the connection, and drops what it says until then.
    pub fn closed_by_peer(&self) -> bool {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(error) => {
                    return !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    );
                }
            }
        }
    }
}

impl From<UnixStream> for Connection {
    fn from(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
