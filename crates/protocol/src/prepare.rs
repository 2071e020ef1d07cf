//! Preparing a data plane before there is a disk for it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::error::io_error;
use crate::frame::encode;
use crate::hello::greet;
use crate::{Command, Heard, Line, Message, Messages, Peer, ProtocolError, Reply, Request, Waiter};

/// How many commands a data plane has had that is prepared.
pub(crate) const PREPARED: u64 = 1;

/// Waits until a data plane has said which version it speaks, and is prepared for a disk with so many queues, until
/// `deadline` at most; it was greeted by nobody. The version of its program.
///
/// # Errors
/// [`ProtocolError`]: why it cannot serve a disk. [`ProtocolError::Version`] for one that speaks no common version of
/// the protocol.
pub fn prepare(
    stream: &UnixStream,
    messages: &mut Messages,
    queues: u16,
    deadline: Instant,
) -> Result<Line, ProtocolError> {
    greet(stream)?;
    messages.greet(deadline)?;
    let (number, command) = (0, Command::Prepare { queues });
    let frame = encode(&Request { number, command })?;
    let sent = (&*stream).write_all(&frame);
    let fail = io_error("hear the data plane");
    let waiter = Waiter::new().map_err(&fail)?;
    waiter.watch(messages, 0).map_err(&fail)?;
    loop {
        let heard = match messages.take() {
            Heard::Messages(heard) => heard,
            Heard::End => return Err(ProtocolError::Ended(Peer::DataPlane)),
            Heard::Endless => return Err(ProtocolError::NoFrame),
        };
        if let Some(message) = heard.into_iter().next() {
            return prepared(message);
        }
        // It may have said why it takes nothing.
        if let Err(error) = sent {
            return Err(io_error("tell the data plane")(error));
        }
        if waiter.wait_until(deadline).map_err(&fail)?.is_none() {
            return Err(ProtocolError::Silent(Peer::DataPlane));
        }
    }
}

/// The version that the first message names.
fn prepared(message: Message) -> Result<Line, ProtocolError> {
    match message {
        Message::Reply {
            number: 0,
            reply: Reply::Prepared { program },
        } => Ok(program),
        Message::Reply {
            number: 0,
            reply: Reply::Refused { why },
        }
        | Message::Event(crate::Event::Failed { why }) => Err(ProtocolError::Refused(why)),
        Message::Reply { number, reply } => Err(ProtocolError::Unasked {
            number,
            reply: reply.name(),
            asked: Some((0, crate::CommandKind::Prepare)),
        }),
        Message::Event(_) => Err(ProtocolError::Cargo(
            "the data plane tells of a disk that it does not have".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Event, Hello, SUPPORTED};

    /// What comes of a data plane that says this after its hello.
    fn said(messages: &[Message]) -> Result<Line, ProtocolError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(&encode(&Hello { hello: SUPPORTED }).unwrap())
            .unwrap();
        for message in messages {
            theirs.write_all(&encode(message).unwrap()).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Messages::new(ours.try_clone().unwrap());
        prepare(
            &ours,
            &mut heard,
            2,
            Instant::now() + Duration::from_secs(20),
        )
    }

    #[test]
    fn only_one_that_says_so_is_prepared() {
        let program = Line::from("1.2.3");
        let reply = |reply| Message::Reply { number: 0, reply };
        let prepared = reply(Reply::Prepared {
            program: program.clone(),
        });
        assert_eq!(said(&[prepared]).unwrap(), program);
        let failed = Message::Event(Event::Failed { why: "why".into() });
        for (other, why) in [
            (reply(Reply::refused(&"why")), "why"),
            (failed, "why"),
            (reply(Reply::Serving), "command 0 with \"serving\""),
            (
                Message::Event(Event::StorageOk),
                "a disk that it does not have",
            ),
        ] {
            let error = said(&[other]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let ended = said(&[]).unwrap_err();
        assert!(matches!(ended, ProtocolError::Ended(_)), "{ended}");
    }
}
