//! The socket through which a data plane has things kept, and through which the next one gets them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};

use crate::error::io_error;
use crate::kept::Change;
use crate::{Peer, ProtocolError};

/// Bytes of a packet at most; the longest is a ring, with 140.
const MAX_PACKET: usize = 512;

/// One end of the socket. Each change is a packet of its own, with its descriptor.
#[derive(Debug)]
pub struct KeepSocket(OwnedFd);

impl KeepSocket {
    /// Both ends: this process's, and the data plane's. Nobody is waited for longer than `patience` to take
    /// what this process sends.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pair(patience: Duration) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Send, Some(patience))?;
        Ok((Self(ours), theirs))
    }

    /// Sends a change.
    ///
    /// # Errors
    /// [`ProtocolError::Ended`], [`ProtocolError::Io`].
    pub fn send(
        &self,
        change: &Change,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ProtocolError> {
        let packet = serde_json::to_vec(change).map_err(|e| ProtocolError::malformed(&e))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            // There is room for one.
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let parts = [IoSlice::new(&packet)];
        loop {
            match sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(ProtocolError::Ended(Peer::AttachProcess));
                }
                Err(error) => return Err(io_error("have something kept")(error.into())),
            }
        }
    }

    /// Waits for the next change, and takes it with its descriptor; `None` when there will be no more.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`], [`ProtocolError::Cargo`] and [`ProtocolError::TooLong`] for what is no change;
    /// [`ProtocolError::Io`].
    pub fn receive(&self) -> Result<Option<(Change, Option<OwnedFd>)>, ProtocolError> {
        let mut packet = [0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut packet)];
            match recvmsg(&self.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // It went without having heard everything.
                Err(Errno::CONNRESET) => return Ok(None),
                result => break result.map_err(|e| io_error("receive what is kept")(e.into()))?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ProtocolError::TooLong(MAX_PACKET + 1));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > 1 {
            let why = "a descriptor to be kept could not be taken, or there were several";
            return Err(ProtocolError::Cargo(why.into()));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let change = serde_json::from_slice(&packet[..received.bytes]);
        Ok(Some((
            change.map_err(|e| ProtocolError::malformed(&e))?,
            descriptors.pop(),
        )))
    }
}

impl From<OwnedFd> for KeepSocket {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

/// Becomes readable when there is a change to receive, or the end.
impl AsRawFd for KeepSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for KeepSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::kept::{Kept, KeptKey};

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn changes_travel_with_their_descriptors_until_the_end() {
        let (ours, theirs) = KeepSocket::pair(PATIENCE).unwrap();
        let theirs = KeepSocket::from(theirs);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"here").unwrap();
        let put = Change::Put(Kept::Kick { ring: 3 });
        theirs.send(&put, Some(file.as_fd())).unwrap();
        theirs.send(&Change::ForgetMemory, None).unwrap();
        drop((theirs, file));
        let (change, descriptor) = ours.receive().unwrap().unwrap();
        assert_eq!(change, put);
        let (mut kept, mut text) = (File::from(descriptor.unwrap()), String::new());
        kept.rewind().unwrap();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
        let (change, descriptor) = ours.receive().unwrap().unwrap();
        assert_eq!((change, descriptor.is_none()), (Change::ForgetMemory, true));
        assert!(ours.receive().unwrap().is_none());
        let sent = ours.send(&Change::Forget(KeptKey::Log), None);
        assert!(matches!(sent, Err(ProtocolError::Ended(_))));
    }

    #[test]
    fn what_is_no_change_is_refused() {
        let said = |packet: &[u8], descriptors: &[BorrowedFd<'_>]| {
            let (ours, theirs) = KeepSocket::pair(PATIENCE).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
            }
            let parts = [IoSlice::new(packet)];
            sendmsg(&theirs, &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
            ours.receive().unwrap_err()
        };
        let refused = said(br#"{"put":"nothing"}"#, &[]).to_string();
        assert!(refused.contains("unknown variant `nothing`"), "{refused}");
        let long = said(&[b' '; MAX_PACKET + 1], &[]);
        assert!(matches!(long, ProtocolError::TooLong(_)));
        let file = tempfile::tempfile().unwrap();
        let several = said(br#"{"put":"channel"}"#, &[file.as_fd(); 3]);
        assert!(matches!(several, ProtocolError::Cargo(_)), "{several}");
    }
}
