//! How an attach process, or a command, and a store process speak with each other: packets over a socket pair.
//!
//! A packet is the length of a message, the length of what follows it, both 4 bytes little-endian, the message as JSON, and
//! bytes that are no text. Descriptors come with it. A packet arrives as a whole or not at all, so nothing has to be
//! found in a stream after an error.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreProcessError;

/// Bytes of a packet at most: two headers, or a list, and what is said of them. A socket takes some more.
const MAX_PACKET: usize = 160 << 10;
/// Bytes before the message.
const HEAD: usize = 8;
/// Descriptors of a packet at most, which is some less than the kernel allows.
pub(crate) const MAX_FDS: usize = 240;

/// One end of the socket pair.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Who is at the other end, for messages.
    other: &'static str,
}

/// What came.
pub(crate) struct Packet<T> {
    pub(crate) message: T,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends: this process's, at whose other end `other` is, and the other one's.
    pub(crate) fn pair(other: &'static str) -> io::Result<(Self, OwnedFd)> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Self { socket, other }, theirs))
    }

    /// An end that another process has made.
    pub(crate) fn adopt(socket: OwnedFd, other: &'static str) -> Self {
        Self { socket, other }
    }

    /// Lets nobody wait longer for the other end.
    pub(crate) fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(time))?;
        set_socket_timeout(&self.socket, Timeout::Send, Some(time))?;
        Ok(())
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// [`StoreProcessError::Ended`], [`StoreProcessError::Io`].
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), StoreProcessError> {
        let fail = StoreProcessError::io::<io::Error>("send a message");
        let json = serde_json::to_vec(message).map_err(|error| fail(error.into()))?;
        if HEAD + json.len() + bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        let lengths = [json.len() as u32, bytes.len() as u32].map(u32::to_le_bytes);
        let parts = [
            IoSlice::new(lengths.as_flattened()),
            IoSlice::new(&json),
            IoSlice::new(bytes),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        loop {
            match sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(StoreProcessError::Ended(self.other));
                }
                Err(error) => return Err(fail(error.into())),
            }
        }
    }

    /// Waits for a packet.
    ///
    /// # Errors
    /// [`StoreProcessError::Ended`], [`StoreProcessError::Malformed`], [`StoreProcessError::Io`].
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> Result<Packet<T>, StoreProcessError> {
        let mut packet = vec![0; MAX_PACKET];
        let (len, fds) = self.receive_into(&mut packet)?;
        if len == 0 {
            return Err(StoreProcessError::Ended(self.other));
        }
        packet.truncate(len);
        let (message, bytes) = self.parts(&packet)?;
        Ok(Packet {
            message,
            bytes: bytes.to_vec(),
            fds,
        })
    }

    fn receive_into(&self, into: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), StoreProcessError> {
        let fail = StoreProcessError::io::<io::Error>("receive a message");
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(into)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.socket, &mut parts, &mut control, flags) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(StoreProcessError::Ended(self.other)),
                Err(error) => return Err(fail(error.into())),
            };
            let fds = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                })
                .flatten()
                .collect();
            return Ok((received.bytes, fds));
        }
    }

    /// The message of a packet, and what follows it.
    fn parts<'a, T: DeserializeOwned>(
        &self,
        packet: &'a [u8],
    ) -> Result<(T, &'a [u8]), StoreProcessError> {
        let malformed = |why: String| StoreProcessError::Malformed {
            from: self.other,
            why,
        };
        let cut = || malformed("it is cut off".into());
        let (json_len, rest) = packet.split_first_chunk::<4>().ok_or_else(cut)?;
        let (bytes_len, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let [json_len, bytes_len] = [*json_len, *bytes_len].map(u32::from_le_bytes);
        if rest.len() as u64 != u64::from(json_len) + u64::from(bytes_len) {
            return Err(cut());
        }
        let (json, bytes) = rest.split_at(json_len as usize);
        let message = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
        Ok((message, bytes))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_whole_with_what_is_in_them() {
        let (ours, theirs) = Channel::pair("store process").unwrap();
        let theirs = Channel::adopt(theirs, "attach process");
        let (reader, writer) = io::pipe().unwrap();
        let fds = [reader.as_fd(), writer.as_fd()];
        ours.send(&"first", &[7; 65536], &fds).unwrap();
        ours.send(&"second", &[], &[]).unwrap();
        let Packet {
            message,
            bytes,
            fds,
        } = theirs.receive::<String>().unwrap();
        assert_eq!((message.as_str(), fds.len()), ("first", 2));
        assert_eq!(bytes, [7; 65536]);
        assert_eq!(theirs.receive::<String>().unwrap().message, "second");
        theirs.send(&7, &[], &[]).unwrap();
        let wrong = ours.receive::<String>();
        assert!(matches!(wrong, Err(StoreProcessError::Malformed { .. })));
        drop(ours);
        let ended = theirs.receive::<String>();
        assert!(matches!(
            ended,
            Err(StoreProcessError::Ended("attach process"))
        ));
        assert!(theirs.send(&"text", &[], &[]).is_err());
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let (ours, theirs) = Channel::pair("store process").unwrap();
        let theirs = Channel::adopt(theirs, "attach process");
        let send = |bytes: &[u8]| rustix::net::send(&ours, bytes, SendFlags::empty()).unwrap();
        for bad in [
            &b"\x01"[..],
            b"\x04\0\0\0\0\0\0\0",
            b"\x02\0\0\0\xff\xff\xff\xff\"\"",
            b"\x02\0\0\0\0\0\0\0\"\"x",
        ] {
            send(bad);
            let refused = theirs.receive::<String>();
            assert!(matches!(refused, Err(StoreProcessError::Malformed { .. })));
        }
        ours.wait_at_most(Duration::from_millis(10)).unwrap();
        assert!(matches!(
            ours.receive::<String>(),
            Err(StoreProcessError::Io { .. })
        ));
    }
}
