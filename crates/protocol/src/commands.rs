//! The sending half of the attach process's end of the command channel.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use keys::DekStack;

use crate::error::io_error;
use crate::frame::encode;
use crate::hello::greet;
use crate::prepare::PREPARED;
use crate::{
    Command, CommandKind, CopyProgress, CopyRequest, DiskFiles, Limits, OnRevoke, Peer,
    ProtocolError, Reply, Request, Setup, Stack,
};

/// How long the data plane may take for what it answers when the guest's requests, or a flush, are
/// done.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to quiesce: it flushes before, which can be long.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take for what it answers at once, after what it was told before.
const COPY_PATIENCE: Duration = Duration::from_secs(120);
/// Commands without an answer at most: a data plane that answers none of them is not worth the memory.
const MAX_UNANSWERED: usize = 4096;

/// Tells the data plane what to do, from whichever thread. Commands do not mix: each is written whole.
#[derive(Debug)]
pub struct Commands {
    control: Mutex<Control>,
    /// The commands that are not answered, in their order; `None` after the data plane's end.
    unanswered: Mutex<Option<VecDeque<Unanswered>>>,
}

#[derive(Debug)]
struct Control {
    stream: UnixStream,
    /// The number of the next command.
    next: u64,
    /// The data plane is to end.
    ending: bool,
}

#[derive(Debug)]
struct Unanswered {
    number: u64,
    kind: CommandKind,
    /// Who waits for the answer.
    waiting: Option<SyncSender<Reply>>,
}

/// The files and the keys that go with a command.
enum Cargo<'a> {
    None,
    Keys(&'a DekStack),
    Disk(&'a DiskFiles, Option<&'a DekStack>),
}

/// Keeps everybody's commands back: the data plane has to get its disk before.
pub struct Opening<'a> {
    commands: &'a Commands,
    control: MutexGuard<'a, Control>,
    /// It is prepared already.
    prepared: bool,
}

/// Keeps everybody's commands back, for as long as it lives.
pub struct FrozenCommands<'a>(MutexGuard<'a, Control>);

impl FrozenCommands<'_> {
    /// How many commands the data plane has had.
    pub fn sent(&self) -> u64 {
        self.0.next
    }
}

impl Opening<'_> {
    /// Gives the data plane its disk, and lets others' commands follow. There are keys unless the setup says that they
    /// are revoked.
    ///
    /// # Errors
    /// [`ProtocolError`], when the data plane has ended among others.
    pub fn serve(
        mut self,
        setup: Setup,
        files: &DiskFiles,
        deks: Option<&DekStack>,
    ) -> Result<(), ProtocolError> {
        if setup.revoked.is_some() == deks.is_some() {
            let why = "a disk is served with its keys, or without any while they are revoked";
            return Err(ProtocolError::Cargo(why.into()));
        }
        let queues = setup.num_queues;
        self.begin(queues, Command::Serve(setup), Cargo::Disk(files, deks))
    }

    /// Has the data plane wait for its disk, which another attach has, and lets others' commands follow.
    ///
    /// # Errors
    /// As [`Opening::serve`].
    pub fn wait(mut self, setup: Setup) -> Result<(), ProtocolError> {
        let queues = setup.num_queues;
        self.begin(queues, Command::Wait(setup), Cargo::None)
    }

    fn begin(
        &mut self,
        queues: u16,
        command: Command,
        cargo: Cargo<'_>,
    ) -> Result<(), ProtocolError> {
        if !self.prepared {
            let prepare = Command::Prepare { queues };
            self.commands
                .send(&mut self.control, prepare, Cargo::None, None)?;
        }
        self.commands
            .send(&mut self.control, command, cargo, None)?;
        match self.control.ending {
            // It was told before there was a data plane to hear it.
            true => self
                .control
                .stream
                .shutdown(Shutdown::Write)
                .map_err(io_error("tell the data plane to end")),
            false => Ok(()),
        }
    }
}

impl Commands {
    /// Greets the data plane. Its own hello is for [`Messages::greet`](crate::Messages::greet).
    ///
    /// # Errors
    /// [`ProtocolError::Io`].
    pub fn new(stream: UnixStream) -> Result<Self, ProtocolError> {
        greet(&stream)?;
        Ok(Self {
            control: Mutex::new(Control {
                stream,
                next: 0,
                ending: false,
            }),
            unanswered: Mutex::new(Some(VecDeque::new())),
        })
    }

    /// Goes on with a data plane whose commands the program before this one has sent, so many by now, each of which is
    /// answered.
    pub fn adopt(stream: UnixStream, next: u64) -> Self {
        Self {
            control: Mutex::new(Control {
                stream,
                next,
                ending: false,
            }),
            unanswered: Mutex::new(Some(VecDeque::new())),
        }
    }

    /// Keeps everybody's commands back, once all are answered that were sent; `None` before that.
    pub fn freeze(&self) -> Option<FrozenCommands<'_>> {
        let control = self.control();
        let all_answered = self.unanswered().as_ref().is_some_and(VecDeque::is_empty);
        (all_answered && !control.ending).then_some(FrozenCommands(control))
    }

    /// Greets another data plane, in the place of the one that has ended. Whoever has a command waits until it
    /// has its disk.
    ///
    /// # Errors
    /// [`ProtocolError::Io`].
    pub fn open_again(&self, stream: UnixStream) -> Result<Opening<'_>, ProtocolError> {
        greet(&stream)?;
        Ok(self.turn_to(stream, 0))
    }

    /// The same with one that was greeted and is prepared ([`prepare`](crate::prepare)).
    pub fn open_prepared(&self, stream: UnixStream) -> Opening<'_> {
        Opening {
            prepared: true,
            ..self.turn_to(stream, PREPARED)
        }
    }

    /// Commands go to another data plane from now on, which has had so many.
    fn turn_to(&self, stream: UnixStream, next: u64) -> Opening<'_> {
        let mut control = self.control();
        (control.stream, control.next) = (stream, next);
        *self.unanswered() = Some(VecDeque::new());
        Opening {
            commands: self,
            control,
            prepared: false,
        }
    }

    /// Whoever has a command waits until the data plane has its disk.
    pub fn open(&self) -> Opening<'_> {
        Opening {
            commands: self,
            control: self.control(),
            prepared: false,
        }
    }

    /// Gives the data plane the disk that it waits for. There are keys unless the setup says that they are revoked.
    /// What is returned waits for the answer: whoever has the keys need not be kept for as long.
    ///
    /// # Errors
    /// [`ProtocolError`]: it was not told.
    pub fn take_disk(
        &self,
        setup: Setup,
        files: &DiskFiles,
        deks: Option<&DekStack>,
    ) -> Result<Asked, ProtocolError> {
        let cargo = Cargo::Disk(files, deks);
        Ok(Asked(self.ask_later(Command::TakeDisk(setup), cargo)?))
    }

    /// Has the data plane make everything durable and let go of the disk, if no ring runs.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it does not.
    pub fn let_go(&self) -> Result<(), ProtocolError> {
        self.ask(Command::LetGo, Cargo::None, QUIESCE_PATIENCE)
            .map(drop)
    }

    /// Has the disk, whose files have grown, served with `size` bytes.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it keeps its size.
    pub fn resize(&self, size: u64) -> Result<(), ProtocolError> {
        match self.ask(Command::Resize { size }, Cargo::None, PATIENCE)? {
            Reply::Resized { size: served } if served != size => {
                let why = format!("the data plane serves {served} bytes");
                Err(ProtocolError::Refused(why.into()))
            }
            _ => Ok(()),
        }
    }

    /// Has the data plane make everything durable and begin nothing more.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it goes on.
    pub fn quiesce(&self) -> Result<(), ProtocolError> {
        self.ask(Command::Quiesce, Cargo::None, QUIESCE_PATIENCE)
            .map(drop)
            .inspect_err(|_| {
                // Should it be quiesced later, it resumes at once. If it cannot be told, it is at
                // its end.
                let _ = self.post(Command::Resume);
            })
    }

    /// Has the data plane, which is quiesced, swap its layers for others and resume.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it does not; it stays quiesced.
    pub fn swap_volume(
        &self,
        stack: Stack,
        files: &DiskFiles,
        deks: &DekStack,
    ) -> Result<(), ProtocolError> {
        let cargo = Cargo::Disk(files, Some(deks));
        self.ask(Command::SwapVolume(stack), cargo, PATIENCE)
            .map(drop)
    }

    /// Has it resume with the layers that it has.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn resume(&self) -> Result<(), ProtocolError> {
        self.ask(Command::Resume, Cargo::None, PATIENCE).map(drop)
    }

    /// Has it copy up into the top layer.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it does not.
    pub fn start_copy_up(&self, request: CopyRequest) -> Result<(), ProtocolError> {
        self.ask(Command::StartCopyUp(request), Cargo::None, COPY_PATIENCE)
            .map(drop)
    }

    /// Has it copy up no more.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn stop_copy_up(&self) -> Result<(), ProtocolError> {
        self.ask(Command::StopCopyUp, Cargo::None, COPY_PATIENCE)
            .map(drop)
    }

    /// How far the copy-up is.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn copy_up_progress(&self) -> Result<CopyProgress, ProtocolError> {
        match self.ask(Command::CopyUpProgress, Cargo::None, COPY_PATIENCE)? {
            Reply::CopyUpProgress(progress) => Ok(progress),
            other => Err(ProtocolError::Refused(other.name().into())),
        }
    }

    /// Ends a connection of the frontend, whose guest's memory is not shared. Nobody waits for the answer.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn disconnect(&self, connection: u64) -> Result<(), ProtocolError> {
        self.post(Command::Disconnect { connection })
    }

    /// Has the data plane hand its disk over and end. The answer is what [`Commands::answered`] gives back.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn hand_over(&self) -> Result<(), ProtocolError> {
        self.post(Command::HandOver)
    }

    /// Changes the disk's limits. Nobody waits for the answer.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn set_limits(&self, limits: Limits) -> Result<(), ProtocolError> {
        self.post(Command::SetLimits(limits))
    }

    /// Has the data plane destroy its keys. The answer is what [`Commands::answered`] gives back.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn revoke_key(&self, on_revoke: OnRevoke) -> Result<(), ProtocolError> {
        self.post(Command::RevokeKey { on_revoke })
    }

    /// Gives the data plane the keys of these layers. The answer is what [`Commands::answered`] gives back.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn restore_key(&self, layers: Vec<Uuid>, deks: &DekStack) -> Result<(), ProtocolError> {
        let command = Command::RestoreKey { layers };
        self.send(&mut self.control(), command, Cargo::Keys(deks), None)
    }

    /// Takes an answer of the data plane, for whoever waits for it. An answer that nobody waits for is given
    /// back, with the kind of its command.
    ///
    /// # Errors
    /// [`ProtocolError::Unasked`] when it is not the answer to the command that was to be answered next.
    pub fn answered(
        &self,
        number: u64,
        reply: Reply,
    ) -> Result<Option<(CommandKind, Reply)>, ProtocolError> {
        let mut unanswered = self.unanswered();
        let Some(unanswered) = unanswered.as_mut() else {
            return Ok(None);
        };
        match unanswered.pop_front() {
            Some(asked) if asked.number == number && reply.answers(asked.kind) => {
                let Some(waiting) = asked.waiting else {
                    return Ok(Some((asked.kind, reply)));
                };
                // Who waited has given up at most.
                let _ = waiting.try_send(reply);
                Ok(None)
            }
            asked => Err(ProtocolError::Unasked {
                number,
                reply: reply.name(),
                asked: asked.map(|asked| (asked.number, asked.kind)),
            }),
        }
    }

    /// Whether the data plane has ended.
    pub fn has_ended(&self) -> bool {
        self.unanswered().is_none()
    }

    /// There will be no more answers.
    pub fn ended(&self) {
        *self.unanswered() = None;
    }

    /// The data plane sees the end of the socket, and ends; so does one that is opened later.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn end(&self) -> io::Result<()> {
        let mut control = self.control();
        control.ending = true;
        control.stream.shutdown(Shutdown::Write)
    }

    /// Whether it was told to end.
    pub fn is_ending(&self) -> bool {
        self.control().ending
    }

    /// Sends a command whose answer nobody waits for.
    fn post(&self, command: Command) -> Result<(), ProtocolError> {
        self.send(&mut self.control(), command, Cargo::None, None)
    }

    /// Sends a command, and waits for its answer. Whoever waits no more still has the answer taken.
    fn ask(
        &self,
        command: Command,
        cargo: Cargo<'_>,
        patience: Duration,
    ) -> Result<Reply, ProtocolError> {
        let answered = self.ask_later(command, cargo)?;
        answer(&answered, patience)
    }

    fn ask_later(
        &self,
        command: Command,
        cargo: Cargo<'_>,
    ) -> Result<Receiver<Reply>, ProtocolError> {
        let (waiting, answered) = sync_channel(1);
        self.send(&mut self.control(), command, cargo, Some(waiting))?;
        Ok(answered)
    }

    /// Until the command is written nobody else's comes in between: `control` is locked.
    fn send(
        &self,
        control: &mut Control,
        command: Command,
        cargo: Cargo<'_>,
        waiting: Option<SyncSender<Reply>>,
    ) -> Result<(), ProtocolError> {
        let (number, kind) = (control.next, command.kind());
        let frame = encode(&Request { number, command })?;
        match self.unanswered().as_mut() {
            Some(unanswered) if unanswered.len() >= MAX_UNANSWERED => {
                return Err(ProtocolError::Silent(Peer::DataPlane));
            }
            Some(unanswered) => unanswered.push_back(Unanswered {
                number,
                kind,
                waiting,
            }),
            None => return Err(ProtocolError::Ended(Peer::DataPlane)),
        }
        control.next += 1;
        let (files, deks) = match cargo {
            Cargo::None => (Vec::new(), None),
            Cargo::Keys(deks) => (Vec::new(), Some(deks)),
            Cargo::Disk(files, deks) => (files.descriptors(), deks),
        };
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe => ProtocolError::Ended(Peer::DataPlane),
            _ => io_error("tell the data plane")(error),
        };
        let sent = match files.is_empty() {
            true => 0,
            false => control
                .stream
                .send_with_fds(&[&frame[..]], &files)
                .map_err(|e| fail(e.into()))?,
        };
        control.stream.write_all(&frame[sent..]).map_err(fail)?;
        match deks {
            Some(deks) => Ok(deks.send(&mut control.stream)?),
            None => Ok(()),
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<VecDeque<Unanswered>>> {
        // Nothing is half changed at any point where a holder could panic.
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // A command that was cut off ends the data plane, whoever holds the lock.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command that was sent and whose answer is awaited.
pub struct Asked(Receiver<Reply>);

impl Asked {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`ProtocolError`]: why it was not done, or that this is not known.
    pub fn done(self) -> Result<(), ProtocolError> {
        answer(&self.0, PATIENCE).map(drop)
    }
}

fn answer(answered: &Receiver<Reply>, patience: Duration) -> Result<Reply, ProtocolError> {
    let reply = answered.recv_timeout(patience).map_err(|e| match e {
        RecvTimeoutError::Timeout => ProtocolError::Silent(Peer::DataPlane),
        RecvTimeoutError::Disconnected => ProtocolError::Ended(Peer::DataPlane),
    })?;
    match reply {
        Reply::Refused { why } => Err(ProtocolError::Refused(why)),
        reply => Ok(reply),
    }
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
