//! The hearing half of the attach process's end of the command channel.
//!
//! A guest may have taken the data plane over. Whatever that says must not keep the attach process from
//! guarding the disk's key: the end of a frame is never waited for, no frame is longer than
//! [`MAX_MESSAGE_LEN`](crate::MAX_MESSAGE_LEN) allows, and no text carries what a terminal obeys
//! ([`Line`](crate::Line)). A line that is no message of this version is refused by its name in the log, and
//! the next one is heard.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::io_error;
use crate::frame::{MAX_FRAME_LEN, decode};
use crate::hello::{Hello, SUPPORTED, choose};
use crate::{Message, Peer, ProtocolError, Waiter};

/// Bytes that are taken at a time.
const MAX_READ: usize = 16 << 10;

/// Hears what the data plane says.
#[derive(Debug)]
pub struct Messages {
    stream: UnixStream,
    /// What came of frames that were not given out.
    rest: Vec<u8>,
    /// How many lines were no message.
    refused: u64,
    /// The socket that came last: the frontend is at its other end.
    frontend: Option<OwnedFd>,
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The messages that are whole by now.
    Messages(Vec<Message>),
    /// Nothing more will come.
    End,
    /// More than any frame has, without an end.
    Endless,
}

impl Messages {
    /// Of the data plane at the other end.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
            refused: 0,
            frontend: None,
        }
    }

    /// Of one that the program before this one has heard: `rest` is what it has heard of a frame.
    pub fn adopt(stream: UnixStream, rest: Vec<u8>) -> Self {
        Self {
            rest,
            ..Self::new(stream)
        }
    }

    /// What was heard of a frame that has not come to its end.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Waits for the data plane's hello, until `deadline` at most. Is the version that both use.
    ///
    /// # Errors
    /// [`ProtocolError::Version`] when both speak no common version, [`ProtocolError::Ended`],
    /// [`ProtocolError::Silent`], [`ProtocolError::Malformed`] and [`ProtocolError::NoFrame`].
    pub fn greet(&mut self, deadline: Instant) -> Result<u16, ProtocolError> {
        let fail = io_error("hear the data plane");
        let waiter = Waiter::new().map_err(&fail)?;
        waiter.watch(&self.stream, 0).map_err(&fail)?;
        loop {
            if let Some(line) = self.first_line() {
                let theirs: Hello = decode(&line)?;
                return choose(SUPPORTED, Peer::DataPlane, theirs.hello);
            }
            if waiter.wait_until(deadline).map_err(&fail)?.is_none() {
                return Err(ProtocolError::Silent(Peer::DataPlane));
            }
            match self.fill() {
                Filled::End => return Err(ProtocolError::Ended(Peer::DataPlane)),
                Filled::Some | Filled::Nothing if self.rest.len() > MAX_FRAME_LEN => {
                    return Err(ProtocolError::NoFrame);
                }
                Filled::Some | Filled::Nothing => {}
            }
        }
    }

    /// Takes what is there, without waiting for more.
    pub fn take(&mut self) -> Heard {
        let filled = self.fill();
        let whole = self.rest.iter().rposition(|b| *b == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |at| at + 1));
        let lines = std::mem::replace(&mut self.rest, rest);
        let mut lines = lines.split_inclusive(|b| *b == b'\n').peekable();
        if filled == Filled::End && lines.peek().is_none() {
            return Heard::End;
        }
        let mut messages = Vec::new();
        for line in lines {
            if line.len() > MAX_FRAME_LEN {
                return Heard::Endless;
            }
            messages.extend(self.understood(line));
        }
        match self.rest.len() > MAX_FRAME_LEN {
            true => Heard::Endless,
            false => Heard::Messages(messages),
        }
    }

    /// The socket of the frontend that [`Event::FrontendMemory`](crate::Event::FrontendMemory) speaks of.
    pub fn frontend(&self) -> Option<BorrowedFd<'_>> {
        self.frontend.as_ref().map(AsFd::as_fd)
    }

    fn understood(&mut self, line: &[u8]) -> Option<Message> {
        decode(line)
            .inspect_err(|error| {
                self.refused += 1;
                // A data plane that says nothing else must not fill the log.
                if self.refused.is_power_of_two() {
                    let count = self.refused;
                    log::warn!(
                        "a message of the data plane is refused ({count} until now): {error}"
                    );
                }
            })
            .ok()
    }

    /// The first line that came, if it is whole.
    fn first_line(&mut self) -> Option<Vec<u8>> {
        let end = self.rest.iter().position(|b| *b == b'\n')?;
        let rest = self.rest.split_off(end + 1);
        Some(std::mem::replace(&mut self.rest, rest))
    }

    fn fill(&mut self) -> Filled {
        let mut buffer = [0; MAX_READ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.stream, &mut into, &mut control, flags);
        let sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        if let Some(socket) = sockets.flatten().last() {
            self.frontend = Some(socket);
        }
        match received.map(|received| received.bytes) {
            Ok(0) => Filled::End,
            Ok(read) => {
                self.rest.extend(&buffer[..read]);
                Filled::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Filled::Nothing,
            Err(_) => Filled::End,
        }
    }
}

/// Becomes readable when there is something to hear, and when the data plane has ended.
impl AsRawFd for Messages {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[derive(PartialEq, Eq)]
enum Filled {
    Some,
    Nothing,
    End,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;
    use crate::frame::encode;
    use crate::{Event, FrontendMemory, Reply, Versions};

    fn pair() -> (Messages, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Messages::new(ours), theirs)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn reply(number: u64, reply: Reply) -> Message {
        Message::Reply { number, reply }
    }

    #[test]
    fn messages_are_heard_when_they_are_whole() {
        let (mut messages, mut data_plane) = pair();
        assert_eq!(messages.take(), Heard::Messages(vec![]), "nobody waits");
        let full = Message::Event(Event::StorageFull);
        let frames = [reply(0, Reply::Serving), full, reply(1, Reply::Resumed)];
        let bytes: Vec<u8> = frames.iter().flat_map(|m| encode(m).unwrap()).collect();
        let mut heard = Vec::new();
        for part in bytes.chunks(7) {
            data_plane.write_all(part).unwrap();
            match messages.take() {
                Heard::Messages(some) => heard.extend(some),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heard, frames);
        data_plane.write_all(&bytes[..9]).unwrap();
        drop(data_plane);
        assert_eq!(messages.take(), Heard::Messages(vec![]));
        assert_eq!(messages.take(), Heard::End);
    }

    #[test]
    fn what_is_no_message_is_refused_and_the_next_one_is_heard() {
        let (mut messages, mut data_plane) = pair();
        for said in [
            &b"\n"[..],
            b"\xff\xfe\n",
            b"storage-full\n",
            b"00009 \"nothing\"\n",
            b"00022 {\"event\":\"on-fire\"}\n",
            b"00004 {\"a\n",
        ] {
            data_plane.write_all(said).unwrap();
            assert_eq!(messages.take(), Heard::Messages(vec![]));
        }
        let heard = Message::Event(Event::StorageOk);
        data_plane.write_all(&encode(&heard).unwrap()).unwrap();
        assert_eq!(messages.take(), Heard::Messages(vec![heard]));
        assert_eq!(messages.refused, 6);
    }

    #[test]
    fn a_frame_without_an_end_is_heard_no_more() {
        let (mut messages, mut data_plane) = pair();
        for _ in 0..4 {
            data_plane.write_all(&[b'x'; MAX_READ]).unwrap();
            assert_eq!(messages.take(), Heard::Messages(vec![]));
        }
        data_plane.write_all(&[b'x'; 10]).unwrap();
        assert_eq!(messages.take(), Heard::Endless);
    }

    #[test]
    fn a_data_plane_of_an_unknown_version_is_refused_by_name() {
        let (mut messages, mut data_plane) = pair();
        let hello = Versions {
            lowest: 900,
            highest: 901,
        };
        let hello = encode(&Hello { hello }).unwrap();
        data_plane.write_all(&hello).unwrap();
        let error = messages.greet(soon()).unwrap_err().to_string();
        let expected =
            format!("the data plane speaks protocol 900 to 901, this program {SUPPORTED}");
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn a_data_plane_greets_or_is_given_up() {
        let (mut messages, mut data_plane) = pair();
        let silent = messages.greet(Instant::now());
        assert!(matches!(silent, Err(ProtocolError::Silent(_))));
        data_plane.write_all(b"00002 {}\n").unwrap();
        let other = messages.greet(soon());
        assert!(matches!(other, Err(ProtocolError::Malformed(_))));
        let hello = encode(&Hello { hello: SUPPORTED }).unwrap();
        let failed = Message::Event(Event::Failed { why: "why".into() });
        data_plane.write_all(&hello).unwrap();
        data_plane.write_all(&encode(&failed).unwrap()).unwrap();
        drop(data_plane);
        assert_eq!(messages.greet(soon()).unwrap(), SUPPORTED.highest);
        assert_eq!(messages.take(), Heard::Messages(vec![failed]), "it said so");
        let ended = messages.greet(soon());
        assert!(matches!(ended, Err(ProtocolError::Ended(_))));
        let (mut messages, mut data_plane) = pair();
        data_plane.write_all(&[b'x'; MAX_FRAME_LEN + 1]).unwrap();
        assert!(matches!(
            messages.greet(soon()),
            Err(ProtocolError::NoFrame)
        ));
    }

    #[test]
    fn whose_memory_it_is_the_socket_tells() {
        let (mut messages, theirs) = pair();
        let (connection, frontend) = UnixStream::pair().unwrap();
        let memory = FrontendMemory {
            connection: 3,
            files: vec![],
        };
        let told = Message::Event(Event::FrontendMemory(memory));
        let frame = encode(&told).unwrap();
        theirs
            .send_with_fd(&frame[..5], connection.as_raw_fd())
            .unwrap();
        drop(connection);
        assert_eq!(messages.take(), Heard::Messages(vec![]));
        (&theirs).write_all(&frame[5..]).unwrap();
        assert_eq!(messages.take(), Heard::Messages(vec![told]));
        let socket = messages.frontend().unwrap().try_clone_to_owned().unwrap();
        drop(messages);
        (&UnixStream::from(socket)).write_all(b"x").unwrap();
        assert_eq!((&frontend).read(&mut [0; 8]).unwrap(), 1);
    }
}
