//! The data plane's end of the command channel.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use keys::DekStack;
use keys::units::MAX_LAYERS;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::command::RequestNumber;
use crate::error::io_error;
use crate::files::MAX_FILES;
use crate::frame::{HEAD_LEN, decode, encode, message_len};
use crate::hello::{Hello, SUPPORTED, choose};
use crate::{
    Command, DiskFiles, Event, FrontendMemory, Message, Peer, ProtocolError, Reply, Request,
};

/// Receives commands, and says what becomes of them and what happens.
#[derive(Debug)]
pub struct DataPlaneEnd {
    stream: UnixStream,
    version: u16,
}

/// A command, with what came with it.
#[derive(Debug)]
pub struct Received {
    /// The number that its answer names.
    pub number: u64,
    /// The command.
    pub command: Command,
    /// The files and the keys that came with it.
    pub cargo: Cargo,
}

/// The files and the keys that came with a command.
pub struct Cargo {
    files: Vec<File>,
    deks: Option<DekStack>,
}

impl Cargo {
    /// The keys of [`Command::RestoreKey`].
    ///
    /// # Errors
    /// [`ProtocolError::Cargo`] when there are none.
    pub fn keys(self) -> Result<DekStack, ProtocolError> {
        let missing = || ProtocolError::Cargo("the command came without keys".into());
        self.deks.ok_or_else(missing)
    }

    /// The files of [`Command::Serve`] or [`Command::TakeDisk`] while the key is revoked, for a disk of so many layers.
    ///
    /// # Errors
    /// As [`Cargo::disk`].
    pub fn files(self, layers: usize) -> Result<DiskFiles, ProtocolError> {
        DiskFiles::from_descriptors(self.files, layers)
    }

    /// The files and the keys of [`Command::Serve`], [`Command::TakeDisk`] or [`Command::SwapVolume`].
    ///
    /// # Errors
    /// [`ProtocolError::Cargo`] when they are not those of one disk, [`ProtocolError::Store`].
    pub fn disk(mut self) -> Result<(DiskFiles, DekStack), ProtocolError> {
        let files = std::mem::take(&mut self.files);
        let deks = self.keys()?;
        Ok((DiskFiles::from_descriptors(files, deks.layers())?, deks))
    }
}

/// Says nothing of the keys but how many there are.
impl fmt::Debug for Cargo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cargo")
            .field("files", &self.files.len())
            .field("keys", &self.deks.as_ref().map_or(0, DekStack::layers))
            .finish()
    }
}

impl DataPlaneEnd {
    /// Exchanges hellos with the attach process.
    ///
    /// # Errors
    /// [`ProtocolError::Version`] when both speak no common version, and as [`DataPlaneEnd::receive`].
    pub fn open(stream: UnixStream) -> Result<Self, ProtocolError> {
        let hello = encode(&Hello { hello: SUPPORTED })?;
        let say = io_error("greet the attach process");
        (&stream).write_all(&hello).map_err(say)?;
        let (frame, _) = receive_frame(&stream)?;
        let theirs: Hello = decode(&frame)?;
        let version = choose(SUPPORTED, Peer::AttachProcess, theirs.hello)?;
        Ok(Self { stream, version })
    }

    /// The version that both use.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Waits for the next command and takes it whole, with its files and keys, and not a byte more. Is
    /// `None` for a frame that has no command of this version, which is refused here.
    ///
    /// # Errors
    /// [`ProtocolError::Ended`] when the attach process has closed its end. After any other error too
    /// nothing more can be received: where the next command begins is not known, and it could be taken from
    /// a key.
    pub fn receive(&self) -> Result<Option<Received>, ProtocolError> {
        let (frame, files) = receive_frame(&self.stream)?;
        let request = match decode::<Request>(&frame) {
            Ok(request) => request,
            Err(error) => {
                log::warn!("the attach process sent what is no command: {error}");
                if let Ok(request) = decode::<RequestNumber>(&frame) {
                    self.reply(request.number, Reply::refused(&error))?;
                }
                return Ok(None);
            }
        };
        let Request { number, command } = request;
        let deks = match command.keys() {
            0 => None,
            layers @ 1..=MAX_LAYERS => Some(DekStack::receive(&mut &self.stream, layers)?),
            layers => return Err(ProtocolError::Cargo(format!("a disk of {layers} layers"))),
        };
        if command.has_keys() && deks.is_none() {
            let error = ProtocolError::Cargo("a disk without layers".into());
            self.reply(number, Reply::refused(&error))?;
            return Ok(None);
        }
        Ok(Some(Received {
            number,
            command,
            cargo: Cargo { files, deks },
        }))
    }

    /// Answers the command of that number.
    ///
    /// # Errors
    /// [`ProtocolError::Io`] when the attach process is gone.
    pub fn reply(&self, number: u64, reply: Reply) -> Result<(), ProtocolError> {
        self.say(&Message::Reply { number, reply })
    }

    /// Tells what happened.
    ///
    /// # Errors
    /// As [`DataPlaneEnd::reply`].
    pub fn tell(&self, event: Event) -> Result<(), ProtocolError> {
        self.say(&Message::Event(event))
    }

    /// Tells what a frontend has announced, with the socket that it is connected to: who that is only the attach
    /// process can find out, since this one is in a PID namespace of its own.
    ///
    /// # Errors
    /// As [`DataPlaneEnd::reply`].
    pub fn tell_memory(
        &self,
        memory: FrontendMemory,
        connection: &UnixStream,
    ) -> Result<(), ProtocolError> {
        let fail = io_error("tell the attach process");
        let frame = encode(&Message::Event(Event::FrontendMemory(memory)))?;
        let sent = self
            .stream
            .send_with_fd(&frame[..], connection.as_raw_fd())
            .map_err(|error| fail(error.into()))?;
        (&self.stream).write_all(&frame[sent..]).map_err(fail)
    }

    fn say(&self, message: &Message) -> Result<(), ProtocolError> {
        let frame = encode(message)?;
        (&self.stream)
            .write_all(&frame)
            .map_err(io_error("tell the attach process"))
    }
}

impl AsRawFd for DataPlaneEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Reads one frame, not a byte more, and the descriptors that came with its beginning.
fn receive_frame(mut from: &UnixStream) -> Result<(Vec<u8>, Vec<File>), ProtocolError> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ProtocolError::NoFrame,
        // It went without having heard everything.
        io::ErrorKind::ConnectionReset => ProtocolError::Ended(Peer::AttachProcess),
        _ => io_error("receive a command")(error),
    };
    let mut head = [0; HEAD_LEN];
    let (received, files) = receive_with_files(from, &mut head).map_err(fail)?;
    if received == 0 {
        return Err(ProtocolError::Ended(Peer::AttachProcess));
    }
    from.read_exact(&mut head[received..]).map_err(fail)?;
    let len = message_len(&head)?;
    let mut frame = vec![0; HEAD_LEN + len + 1];
    frame[..HEAD_LEN].copy_from_slice(&head);
    from.read_exact(&mut frame[HEAD_LEN..]).map_err(fail)?;
    match frame.ends_with(b"\n") {
        true => Ok((frame, files)),
        false => Err(ProtocolError::NoFrame),
    }
}

/// Receives some bytes and the descriptors that came with them.
fn receive_with_files(from: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<File>)> {
    let mut numbers = [-1; MAX_FILES];
    let mut place = [libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    }];
    let (received, count) = loop {
        // SAFETY: the only element names `into`, which is writable and lives through the call.
        match unsafe { from.recv_with_fds(&mut place, &mut numbers) } {
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result?,
        }
    };
    let take_over = |number: &RawFd| {
        // SAFETY: the kernel has just made these descriptors for this process, and nobody else
        // knows their numbers.
        File::from(unsafe { OwnedFd::from_raw_fd(*number) })
    };
    Ok((received, numbers[..count].iter().map(take_over).collect()))
}
