//! The bytes of an image file for a program that may open no file: a read-only NBD server on a socket
//! that is already connected.
//!
//! It has what QEMU's NBD driver needs (doc/proto.md of the NBD project): the fixed newstyle
//! handshake, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`, simple replies to reads. All other options and
//! commands are refused. Its client is as hostile as the image that it reads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keys::units::SECTOR_SIZE;

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// `NBD_FLAG_HAS_FLAGS` and `NBD_FLAG_READ_ONLY`.
const EXPORT_FLAGS: u16 = 3;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CMD_READ: u16 = 0;
const CMD_DISCONNECT: u16 = 2;

/// No option is longer; what a client sends behind its head is read and forgotten.
const MAX_OPTION: u32 = 64 << 10;
/// The longest read, which is what NBD's clients may rely on.
const MAX_READ: u32 = 32 << 20;

/// What a feeder does, for whoever waits for its client.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests that were answered.
    answered: AtomicU64,
    /// The file is being read, which can take long by itself.
    reading: AtomicBool,
}

impl Progress {
    /// A number that grows while the client asks for something.
    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether the file's storage is waited for.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.load(Ordering::Relaxed)
    }
}

/// Starts to serve `size` bytes of a file in a thread, which ends with the connection. They are filled up
/// to whole sectors with zeros, as QEMU does with a file: its NBD driver waits for more than it asked for
/// where the end of simple replies is in the middle of one.
///
/// # Errors
/// What the system said.
pub(super) fn spawn(
    file: File,
    size: u64,
    stream: UnixStream,
    progress: Arc<Progress>,
) -> io::Result<()> {
    let feeder = Feeder {
        file,
        size,
        stream,
        progress,
    };
    let serve = move || {
        let mut feeder = feeder;
        if let Err(error) = feeder.serve() {
            // Its client says what that means for the image.
            log::debug!("an image is served no more: {error}");
        }
    };
    std::thread::Builder::new()
        .name("image-feeder".into())
        .spawn(serve)
        .map(drop)
}

/// Serves in this thread, until the end of the connection: for the fuzz target `nbd_requests`.
///
/// # Errors
/// Why the connection was given up.
#[doc(hidden)]
pub fn feed(file: File, size: u64, stream: UnixStream) -> io::Result<()> {
    let progress = Arc::default();
    let mut feeder = Feeder {
        file,
        size,
        stream,
        progress,
    };
    feeder.serve()
}

struct Feeder {
    file: File,
    /// Bytes of the file that are served.
    size: u64,
    stream: UnixStream,
    progress: Arc<Progress>,
}

impl Feeder {
    fn serve(&mut self) -> io::Result<()> {
        self.stream.write_all(INIT_MAGIC)?;
        self.stream.write_all(OPTION_MAGIC)?;
        self.send(&[&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes()])?;
        let no_zeroes = self.u32()? & u32::from(NO_ZEROES) != 0;
        match self.negotiate(no_zeroes)? {
            true => self.transmit(),
            false => Ok(()),
        }
    }

    /// Whether an export was chosen.
    fn negotiate(&mut self, no_zeroes: bool) -> io::Result<bool> {
        let size = self.padded().to_be_bytes();
        let flags = EXPORT_FLAGS.to_be_bytes();
        loop {
            if self.take::<8>()? != *OPTION_MAGIC {
                return Err(invalid("an option without its magic number"));
            }
            let (option, length) = (self.u32()?, self.u32()?);
            self.skip(length)?;
            match option {
                OPT_EXPORT_NAME => {
                    let zeroes = [0; 124];
                    let padding = if no_zeroes { &[][..] } else { &zeroes };
                    self.send(&[&size, &flags, padding])?;
                    return Ok(true);
                }
                OPT_GO => {
                    self.reply(
                        option,
                        REP_INFO,
                        &[&INFO_EXPORT.to_be_bytes(), &size, &flags],
                    )?;
                    let blocks = [1u32, 4096, MAX_READ].map(u32::to_be_bytes);
                    let blocks = blocks.as_flattened();
                    self.reply(option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes(), blocks])?;
                    self.reply(option, REP_ACK, &[])?;
                    return Ok(true);
                }
                OPT_ABORT => {
                    self.reply(option, REP_ACK, &[])?;
                    return Ok(false);
                }
                _ => self.reply(option, REP_ERR_UNSUP, &[])?,
            }
        }
    }

    fn transmit(&mut self) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            if self.u32()? != REQUEST_MAGIC {
                return Err(invalid("a request without its magic number"));
            }
            let _flags: [u8; 2] = self.take()?;
            let command = u16::from_be_bytes(self.take()?);
            let cookie: [u8; 8] = self.take()?;
            let offset = u64::from_be_bytes(self.take()?);
            let length = self.u32()?;
            let error = match command {
                CMD_DISCONNECT => return Ok(()),
                CMD_READ if length > MAX_READ => libc::EOVERFLOW,
                CMD_READ => self.read(offset, length, &mut buffer),
                // Nothing follows the head of any other command but a write's, which is not read.
                _ => return Err(invalid("a command that is not offered")),
            };
            let magic = SIMPLE_REPLY_MAGIC.to_be_bytes();
            self.send(&[&magic, &(error as u32).to_be_bytes(), &cookie])?;
            if error == 0 {
                self.stream.write_all(&buffer)?;
            }
            self.progress.answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads into the buffer; the number of the error, or 0.
    fn read(&self, offset: u64, length: u32, buffer: &mut Vec<u8>) -> i32 {
        if offset
            .checked_add(length.into())
            .is_none_or(|end| end > self.padded())
        {
            return libc::EINVAL;
        }
        buffer.clear();
        buffer.resize(length as usize, 0);
        let there = self.size.saturating_sub(offset).min(length.into()) as usize;
        self.progress.reading.store(true, Ordering::Relaxed);
        let result = self.file.read_exact_at(&mut buffer[..there], offset);
        self.progress.reading.store(false, Ordering::Relaxed);
        match result {
            Ok(()) => 0,
            Err(error) => {
                log::error!("cannot read the image at {offset}: {error}");
                libc::EIO
            }
        }
    }

    fn padded(&self) -> u64 {
        self.size.next_multiple_of(SECTOR_SIZE)
    }

    fn reply(&mut self, option: u32, kind: u32, body: &[&[u8]]) -> io::Result<()> {
        let length: usize = body.iter().map(|part| part.len()).sum();
        self.send(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &(length as u32).to_be_bytes(),
        ])?;
        self.send(body)
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.stream.write_all(&parts.concat())
    }

    fn skip(&mut self, length: u32) -> io::Result<()> {
        if length > MAX_OPTION {
            return Err(invalid("too long an option"));
        }
        let mut rest = Read::by_ref(&mut self.stream).take(length.into());
        match io::copy(&mut rest, &mut io::sink())? {
            all if all == u64::from(length) => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
