//! The channel on which this back-end sends messages of its own to the frontend
//! (`SET_BACKEND_REQ_FD`). There is one such message: that the configuration space has changed.
//!
//! The `vhost` crate takes the channel's descriptor and does not give it away, nor can it send that
//! message. So a look at the connection's next message, before the crate reads it, duplicates the
//! descriptor; the crate then checks the message and answers it as any other.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

use protocol::Waiter;

/// Bytes of a message's header: request, flags, length of the body.
const HEADER_LEN: usize = 12;
/// Flags: the protocol's version, a reply, and the wish for one.
pub(super) const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// A header and the body of an acknowledgement, a `u64`.
const ACKNOWLEDGEMENT_LEN: usize = HEADER_LEN + 8;

/// How long the frontend may take to acknowledge. It asks for the new configuration before.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the next message of a frontend and looks at it without taking it. The channel that it
/// announces, if it does.
pub(crate) fn announced_channel(connection: &UnixStream) -> Option<UnixStream> {
    let mut header = [0; HEADER_LEN];
    let (_, len) = recv(connection, &mut header, RecvFlags::PEEK).ok()?;
    let request = u32::from_ne_bytes(*header.first_chunk()?);
    if len < HEADER_LEN || request != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
        return None;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        flags,
    )
    .ok()?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.map(UnixStream::from)
}

/// The channel to the frontend. No call waits for it: a frontend that does not read, or does not
/// answer, keeps only a thread of its own from ending for a while.
#[derive(Clone)]
pub(crate) struct BackendChannel(Arc<Mutex<UnixStream>>);

impl BackendChannel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    /// Tells the frontend that the configuration space has changed; `acknowledged` says whether it
    /// answers. It may ask for the configuration before it does, so whoever serves that must not
    /// wait for this.
    pub(crate) fn config_changed(&self, acknowledged: bool) {
        let channel = self.clone();
        let tell = move || match channel.send_config_change(acknowledged) {
            Ok(()) => log::info!("the frontend was told of the disk's new size"),
            Err(error) => log::warn!(
                "the frontend could not be told of the disk's new size ({error}): the guest sees it \
                 when it starts again"
            ),
        };
        let thread = std::thread::Builder::new().name("config-change".into());
        if let Err(error) = thread.spawn(tell) {
            log::warn!("the frontend is not told of the disk's new size: {error}");
        }
    }

    fn send_config_change(&self, acknowledged: bool) -> io::Result<()> {
        // One message after the other, each with its answer. Nothing is half done at any point where
        // a holder could panic.
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wish = if acknowledged { NEED_REPLY } else { 0 };
        let header = header(VERSION | wish, 0);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if send(&*stream, &header, flags)? != header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        match acknowledged {
            true => receive_acknowledgement(&stream),
            false => Ok(()),
        }
    }
}

fn header(flags: u32, len: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let request = u32::from(BackendReq::CONFIG_CHANGE_MSG);
    for (bytes, word) in header
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip([request, flags, len])
    {
        *bytes = word.to_ne_bytes();
    }
    header
}

fn receive_acknowledgement(stream: &UnixStream) -> io::Result<()> {
    let waiter = Waiter::new()?;
    waiter.watch(stream, 0)?;
    let deadline = Instant::now() + PATIENCE;
    let (mut answer, mut have) = ([0; ACKNOWLEDGEMENT_LEN], 0);
    while have < answer.len() {
        if waiter.wait_until(deadline)?.is_none() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match recv(stream, &mut answer[have..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, len)) => have += len,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (head, body) = answer.split_at(HEADER_LEN);
    if head != header(VERSION | REPLY, 8) {
        return Err(io::Error::other("its answer is not an acknowledgement"));
    }
    match body {
        [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
        _ => Err(io::Error::other("it refused")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn told(acknowledged: bool, answer: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        let result = BackendChannel::new(ours).send_config_change(acknowledged);
        let mut message = [0; HEADER_LEN];
        theirs.read_exact(&mut message).unwrap();
        (message.to_vec(), result)
    }

    #[test]
    fn the_message_is_what_the_protocol_says_and_a_refusal_is_seen() {
        let (message, result) = told(false, &[]);
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        result.unwrap();
        let mut answer = vec![2, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0];
        answer.extend([0; 8]);
        let (message, result) = told(true, &answer);
        assert_eq!(message[4], 9, "an acknowledgement is asked for");
        result.unwrap();
        answer[12] = 1;
        assert!(told(true, &answer).1.is_err(), "a refusal");
        answer[0] = 3;
        assert!(told(true, &answer).1.is_err(), "another message");
    }

    #[test]
    fn a_frontend_that_does_not_read_keeps_nobody_waiting() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let channel = BackendChannel::new(ours);
        let full = (0..1_000_000).find_map(|_| channel.send_config_change(false).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
