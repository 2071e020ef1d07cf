//! A client of the NBD protocol as far as reading an image, and writing a new one, needs it: fixed
//! newstyle handshake, structured replies, and block status for holes.
//!
//! The rules are those of the NBD project's `doc/proto.md`; numbers are big-endian. The server is
//! a `qemu-nbd` that this process started, but what it reads is hostile, so its lengths are checked
//! before they are believed.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::feeder::Progress;
use super::{Cancel, ImportError};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const INFO_EXPORT: u16 = 0;
const BASE_ALLOCATION: &str = "base:allocation";

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_BLOCK_STATUS: u16 = 7;
const REPLY_DONE: u16 = 1;
const REPLY_NONE: u16 = 0;
const REPLY_OFFSET_DATA: u16 = 1;
const REPLY_OFFSET_HOLE: u16 = 2;
const REPLY_BLOCK_STATUS: u16 = 5;
const REPLY_ERROR_BIT: u16 = 1 << 15;
/// `NBD_STATE_ZERO` of `base:allocation`: the range reads as zeros.
const STATE_ZERO: u32 = 2;

/// No answer to an option or a status query is longer; reads are as long as was asked for.
const MAX_ANSWER: u32 = 1 << 20;
/// The longest range that is asked about at once, a multiple of every block size.
const MAX_STATUS: u64 = 1 << 31;

/// Until when a server is waited for.
pub(super) struct Patience {
    /// A signal ends the wait.
    pub(super) cancel: Cancel,
    /// How long the server may do nothing, and what it gets its image from meanwhile.
    pub(super) stall: Option<(Duration, Arc<Progress>)>,
}

impl Patience {
    /// An error when the server, which has said nothing since `since`, is not to be waited for.
    pub(super) fn check(&self, since: &mut (Instant, u64)) -> Result<(), ImportError> {
        self.cancel.check()?;
        let Some((most, feeder)) = &self.stall else {
            return Ok(());
        };
        if feeder.is_reading() || feeder.answered() != since.1 {
            *since = (Instant::now(), feeder.answered());
        }
        match since.0.elapsed() > *most {
            true => Err(protocol(&format!(
                "it did nothing for {} s",
                most.as_secs()
            ))),
            false => Ok(()),
        }
    }

    /// Where [`Patience::check`] begins.
    pub(super) fn start(&self) -> (Instant, u64) {
        let answered = self
            .stall
            .as_ref()
            .map_or(0, |(_, feeder)| feeder.answered());
        (Instant::now(), answered)
    }
}

/// A connection in its transmission phase.
pub struct NbdClient {
    stream: UnixStream,
    patience: Patience,
    size: u64,
    cookie: u64,
    /// The meta context id of `base:allocation`, when the server has it.
    allocation: Option<u32>,
}

impl NbdClient {
    /// Negotiates over a fresh connection and opens the default export.
    ///
    /// # Errors
    /// [`ImportError::Nbd`], also for a server that breaks the protocol.
    pub fn connect(stream: UnixStream, cancel: Cancel) -> Result<Self, ImportError> {
        let patience = Patience {
            cancel,
            stall: None,
        };
        Self::connect_to(stream, patience)
    }

    /// As [`NbdClient::connect`], to a server that may stop to work.
    pub(super) fn connect_to(stream: UnixStream, patience: Patience) -> Result<Self, ImportError> {
        // Short, so that a signal is noticed while the server is slow.
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .and_then(|()| stream.set_write_timeout(Some(Duration::from_millis(200))))
            .map_err(|e| broken("cannot set a timeout", e))?;
        let mut client = Self {
            stream,
            patience,
            size: 0,
            cookie: 0,
            allocation: None,
        };
        client.greet()?;
        client.option(OPT_STRUCTURED_REPLY, &[])?;
        if client.option_reply(OPT_STRUCTURED_REPLY)?.0 != REP_ACK {
            return Err(protocol("it has no structured replies"));
        }
        client.choose_allocation_context()?;
        client.go()?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`ImportError::Nbd`], or [`ImportError::Interrupted`].
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        let length = u32::try_from(buffer.len()).map_err(|_| protocol("too long a read"))?;
        self.request(CMD_READ, offset, length)?;
        // Every byte must be covered by the chunks, or an old content of the buffer would pass for
        // the image's. The chunks do not overlap (proto.md), so a count suffices.
        let mut missing = buffer.len();
        loop {
            let reply = self.reply()?;
            let covered = match reply.kind {
                REPLY_OFFSET_DATA if reply.length >= 8 => {
                    let at = self.u64()?;
                    let to = within(at, reply.length - 8, offset, buffer)?;
                    self.fill(to)?;
                    to.len()
                }
                REPLY_OFFSET_HOLE if reply.length == 12 => {
                    let at = self.u64()?;
                    let length = self.u32()?;
                    let to = within(at, length, offset, buffer)?;
                    to.fill(0);
                    to.len()
                }
                REPLY_NONE if reply.length == 0 => 0,
                kind => return Err(protocol(&format!("reply type {kind} to a read"))),
            };
            missing = missing
                .checked_sub(covered)
                .ok_or_else(|| protocol("it sent a range twice"))?;
            if reply.done {
                break;
            }
        }
        if missing != 0 {
            return Err(protocol("a reply left out a part of what was asked for"));
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`ImportError::Nbd`], or [`ImportError::Interrupted`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImportError> {
        let length = u32::try_from(bytes.len()).map_err(|_| protocol("too long a write"))?;
        self.request(CMD_WRITE, offset, length)?;
        self.send(bytes)?;
        self.success()
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`ImportError::Nbd`], or [`ImportError::Interrupted`].
    pub fn flush(&mut self) -> Result<(), ImportError> {
        self.request(CMD_FLUSH, 0, 0)?;
        self.success()
    }

    /// Takes a reply that says nothing but that all went well.
    fn success(&mut self) -> Result<(), ImportError> {
        let reply = self.reply()?;
        match (reply.kind, reply.length, reply.done) {
            (REPLY_NONE, 0, true) => Ok(()),
            (kind, ..) => Err(protocol(&format!("reply type {kind} to a write"))),
        }
    }

    /// The first range from `offset` on that the server does not know to be zeros.
    ///
    /// # Errors
    /// [`ImportError::Nbd`], or [`ImportError::Interrupted`].
    pub fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        let Some(context) = self.allocation else {
            return Ok((offset < self.size).then_some(offset..self.size));
        };
        let mut at = offset;
        while at < self.size {
            self.patience.cancel.check()?;
            let mut start = None;
            for (length, flags) in self.block_status(context, at)? {
                // Only the last extent may go further than was asked (proto.md).
                if at == self.size {
                    return Err(protocol("a status of what is behind the end"));
                }
                let zero = flags & STATE_ZERO != 0;
                match start {
                    None if !zero => start = Some(at),
                    Some(start) if zero => return Ok(Some(start..at)),
                    _ => {}
                }
                at = at.saturating_add(u64::from(length)).min(self.size);
            }
            if let Some(start) = start {
                return Ok(Some(start..at));
            }
        }
        Ok(None)
    }

    fn block_status(&mut self, context: u32, offset: u64) -> Result<Vec<(u32, u32)>, ImportError> {
        let length = (self.size - offset).min(MAX_STATUS);
        self.request(CMD_BLOCK_STATUS, offset, length as u32)?;
        let mut extents = Vec::new();
        loop {
            let reply = self.reply()?;
            match reply.kind {
                REPLY_BLOCK_STATUS if reply.length >= 4 && reply.length <= MAX_ANSWER => {
                    let mut body = vec![0; reply.length as usize];
                    self.fill(&mut body)?;
                    let mut numbers = body.chunks_exact(4).map(be32);
                    if numbers.next() != Some(context) {
                        return Err(protocol("status of another context"));
                    }
                    while let (Some(length), Some(flags)) = (numbers.next(), numbers.next()) {
                        if length == 0 {
                            return Err(protocol("a range of no length"));
                        }
                        extents.push((length, flags));
                    }
                }
                REPLY_NONE if reply.length == 0 => {}
                kind => return Err(protocol(&format!("reply type {kind} to a status query"))),
            }
            if reply.done {
                break;
            }
        }
        if extents.is_empty() {
            return Err(protocol("an empty status"));
        }
        Ok(extents)
    }

    fn greet(&mut self) -> Result<(), ImportError> {
        if (self.u64()?, self.u64()?) != (INIT_MAGIC, OPTION_MAGIC) {
            return Err(protocol("it is no NBD server"));
        }
        let flags = self.u16()?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(protocol("it has no fixed newstyle handshake"));
        }
        let ours = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.send(&ours.to_be_bytes())
    }

    fn choose_allocation_context(&mut self) -> Result<(), ImportError> {
        let mut body = Vec::new();
        body.extend(0u32.to_be_bytes()); // the export's name is empty
        body.extend(1u32.to_be_bytes());
        body.extend((BASE_ALLOCATION.len() as u32).to_be_bytes());
        body.extend(BASE_ALLOCATION.as_bytes());
        self.option(OPT_SET_META_CONTEXT, &body)?;
        loop {
            let (kind, body) = self.option_reply(OPT_SET_META_CONTEXT)?;
            match kind {
                REP_META_CONTEXT => self.allocation = body.get(..4).map(be32),
                // Without the context all is read, and found to be zeros here.
                _ => return Ok(()),
            }
        }
    }

    fn go(&mut self) -> Result<(), ImportError> {
        // The empty name, and no information requests beyond what is always sent.
        self.option(OPT_GO, &[0; 6])?;
        let mut size = None;
        loop {
            match self.option_reply(OPT_GO)? {
                (REP_INFO, body) => {
                    let kind = body.get(..2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                    if let (Some(INFO_EXPORT), Some(bytes)) = (kind, body.get(2..10)) {
                        size =
                            Some(u64::from(be32(&bytes[..4])) << 32 | u64::from(be32(&bytes[4..])));
                    }
                }
                (REP_ACK, _) => break,
                (_, body) => return Err(protocol(&printable(&body))),
            }
        }
        self.size = size.ok_or_else(|| protocol("it does not tell the size"))?;
        Ok(())
    }

    fn option(&mut self, option: u32, body: &[u8]) -> Result<(), ImportError> {
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(OPTION_MAGIC.to_be_bytes());
        message.extend(option.to_be_bytes());
        message.extend((body.len() as u32).to_be_bytes());
        message.extend(body);
        self.send(&message)
    }

    fn option_reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), ImportError> {
        if (self.u64()?, self.u32()?) != (OPTION_REPLY_MAGIC, option) {
            return Err(protocol("a reply to something else"));
        }
        let (kind, length) = (self.u32()?, self.u32()?);
        if length > MAX_ANSWER {
            return Err(protocol("too long a reply"));
        }
        let mut body = vec![0; length as usize];
        self.fill(&mut body)?;
        Ok((kind, body))
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> Result<(), ImportError> {
        self.cookie += 1;
        let mut message = Vec::with_capacity(28);
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(0u16.to_be_bytes());
        message.extend(command.to_be_bytes());
        message.extend(self.cookie.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        self.send(&message)
    }

    /// The head of the next chunk of the reply to the last request; an error reply is an error.
    fn reply(&mut self) -> Result<Reply, ImportError> {
        let magic = self.u32()?;
        if magic == SIMPLE_REPLY_MAGIC {
            let (error, cookie) = (self.u32()?, self.u64()?);
            if cookie != self.cookie {
                return Err(protocol("a reply to something else"));
            }
            if error != 0 {
                return Err(server_error(error, ""));
            }
            // A read, which has to bring its data, does not take this for an answer.
            return Ok(Reply {
                kind: REPLY_NONE,
                length: 0,
                done: true,
            });
        }
        if magic != STRUCTURED_REPLY_MAGIC {
            return Err(protocol("a reply without its magic number"));
        }
        let (flags, kind) = (self.u16()?, self.u16()?);
        if self.u64()? != self.cookie {
            return Err(protocol("a reply to something else"));
        }
        let length = self.u32()?;
        if kind & REPLY_ERROR_BIT != 0 {
            if !(6..=MAX_ANSWER).contains(&length) {
                return Err(protocol("an error of odd length"));
            }
            let mut body = vec![0; length as usize];
            self.fill(&mut body)?;
            let text = usize::from(u16::from_be_bytes([body[4], body[5]]));
            let message = body.get(6..6 + text).unwrap_or_default();
            return Err(server_error(be32(&body[..4]), &printable(message)));
        }
        Ok(Reply {
            kind,
            length,
            done: flags & REPLY_DONE != 0,
        })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let (mut rest, mut since) = (bytes, self.patience.start());
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(protocol("it takes no more")),
                Ok(sent) => {
                    rest = &rest[sent..];
                    since = self.patience.start();
                }
                Err(e) if is_retry(&e) => self.patience.check(&mut since)?,
                Err(e) => return Err(broken("cannot send to it", e)),
            }
        }
        Ok(())
    }

    /// Reads exactly `buffer`, giving up when a signal asks to.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ImportError> {
        let (mut filled, mut since) = (0, self.patience.start());
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(protocol("it closed the connection")),
                Ok(n) => {
                    filled += n;
                    since = self.patience.start();
                }
                Err(e) if is_retry(&e) => self.patience.check(&mut since)?,
                Err(e) => return Err(broken("cannot receive from it", e)),
            }
        }
        Ok(())
    }

    fn u16(&mut self) -> Result<u16, ImportError> {
        let mut bytes = [0; 2];
        self.fill(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, ImportError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, ImportError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // A courtesy: closing the socket ends the server as well.
        let _ = self.request(CMD_DISCONNECT, 0, 0);
    }
}

/// The head of one chunk of a structured reply.
struct Reply {
    kind: u16,
    length: u32,
    done: bool,
}

/// The part of `buffer`, which is for `offset` on, that a chunk of `length` bytes `at` fills.
fn within(at: u64, length: u32, offset: u64, buffer: &mut [u8]) -> Result<&mut [u8], ImportError> {
    let start = at.checked_sub(offset).and_then(|n| usize::try_from(n).ok());
    start
        .and_then(|start| buffer.get_mut(start..start.checked_add(length as usize)?))
        .ok_or_else(|| protocol("a range that was not asked for"))
}

fn is_retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, &b| n << 8 | u32::from(b))
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

fn protocol(what: &str) -> ImportError {
    ImportError::Nbd(what.into())
}

fn broken(what: &str, error: io::Error) -> ImportError {
    ImportError::Nbd(format!("{what}: {error}"))
}

/// NBD's error numbers are those of Linux for the few that it has.
fn server_error(number: u32, message: &str) -> ImportError {
    let reason = match i32::try_from(number) {
        Ok(number) => io::Error::from_raw_os_error(number).to_string(),
        Err(_) => format!("error {number}"),
    };
    ImportError::Nbd(match message {
        "" => reason,
        message => format!("{reason}: {message}"),
    })
}
