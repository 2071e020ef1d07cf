//! A store process as whoever has started it sees it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandbox::{Launch, Launcher};
use store_ring::{LaneBells, Layout};

use crate::channel::{Channel, MAX_FDS, Packet};
use crate::messages::{Answer, Command, LayerOf, PoolOf, State, VERSION};
use crate::place::{Asked, Place, PlaceAnswer, PlaceCommand, RemotePlace};
use crate::{PlaceError, StoreProcessError};

/// The subcommand of this program that is the store process.
pub const STORE_PROCESS: &str = "store-process";
/// The subcommand that is its launcher.
pub const STORE_PROCESS_LAUNCHER: &str = "store-process-launcher";

/// How long it may take to start, or to answer what takes no I/O, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lanes of a data plane at most: what can be given away in one message.
pub const MAX_LANES: u16 = ((MAX_FDS - 1) / 2) as u16;

/// How long the storage may take for what is asked of it: to remove an image, or to read maps, on a cluster that recovers.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// A store process that this process speaks with. Dropped, it is killed.
pub struct StoreProcess {
    channel: Mutex<Channel>,
    /// Where its client is seen to be, if it has one.
    address: Option<String>,
    /// What has started it, if this process has.
    launcher: Option<Launcher>,
}

impl StoreProcess {
    /// Starts one that works on files of this host: the data of the layers from the top down, and the map of the top one.
    ///
    /// # Errors
    /// [`StoreProcessError`].
    pub fn on_files(
        launch: &Launch,
        data: &[File],
        map: &File,
        read_only: bool,
    ) -> Result<Self, StoreProcessError> {
        let fds = data.iter().chain([map]).map(AsFd::as_fd);
        Self::start(launch, &files(read_only), &fds.collect::<Vec<_>>())
    }

    /// Starts one that works on a pool of a Ceph cluster.
    ///
    /// # Errors
    /// [`StoreProcessError`]: what is missing or wrong, in one line.
    pub fn on_rbd(launch: &Launch, of: PoolOf) -> Result<Self, StoreProcessError> {
        let version = VERSION;
        Self::start(launch, &Command::Rbd { version, of }, &[])
    }

    /// As [`StoreProcess::on_rbd`], with one that somebody else has started, with the other end of this socket.
    ///
    /// # Errors
    /// As [`StoreProcess::on_rbd`].
    pub fn at_rbd(socket: OwnedFd, of: PoolOf) -> Result<Self, StoreProcessError> {
        let version = VERSION;
        Self::adopt(socket, &Command::Rbd { version, of }, &[])
    }

    fn start(
        launch: &Launch,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, StoreProcessError> {
        let (channel, theirs) = Channel::pair("store process")
            .map_err(StoreProcessError::io("make a socket for the store process"))?;
        // It decides by the first command how it is confined, before it tells that it has started.
        channel.send(command, &[], fds)?;
        let launcher = Launcher::start(STORE_PROCESS_LAUNCHER, launch, &[])?;
        launcher.launch(&[theirs.as_fd()], PATIENCE)?;
        drop(theirs);
        let this = Self {
            channel: Mutex::new(channel),
            address: None,
            launcher: Some(launcher),
        };
        this.opened()
    }

    fn adopt(
        socket: OwnedFd,
        command: &Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, StoreProcessError> {
        let channel = Channel::adopt(socket, "store process");
        channel.send(command, &[], fds)?;
        let this = Self {
            channel: Mutex::new(channel),
            address: None,
            launcher: None,
        };
        this.opened()
    }

    /// One that somebody else has started, with the other end of this socket, and has sent nothing to.
    ///
    /// # Errors
    /// [`StoreProcessError`].
    pub fn at(
        socket: OwnedFd,
        data: &[File],
        map: &File,
        read_only: bool,
    ) -> Result<Self, StoreProcessError> {
        let fds = data.iter().chain([map]).map(AsFd::as_fd);
        Self::adopt(socket, &files(read_only), &fds.collect::<Vec<_>>())
    }

    /// Waits until it has what it works on.
    fn opened(mut self) -> Result<Self, StoreProcessError> {
        let opened = {
            let channel = self.channel();
            let fail = StoreProcessError::io("wait for the store process");
            channel.wait_at_most(PATIENCE).map_err(&fail)?;
            let opened = answer(&channel)?;
            channel.wait_at_most(LONG_PATIENCE).map_err(&fail)?;
            opened
        };
        if let Answer::Connected { address } = opened.message {
            self.address = Some(address);
        }
        Ok(self)
    }

    /// Where its client is seen to be by a cluster, by which it is fenced.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// The cluster as a place of resources.
    pub fn place(&self) -> impl Place + '_ {
        RemotePlace(self)
    }

    /// Has it work on these layers, from the top down: read only, or with the lock of the top one, which may be taken from
    /// the client of the address `take_from`. Gives back their maps, in the same order.
    ///
    /// # Errors
    /// [`PlaceError::InUse`] when somebody else has the lock.
    pub fn open(
        &self,
        layers: &[LayerOf],
        read_only: bool,
        take_from: Option<&str>,
    ) -> Result<Vec<File>, PlaceError> {
        let command = Command::Open {
            layers: layers.to_vec(),
            read_only,
            take_from: take_from.map(str::to_owned),
        };
        let Packet { message, fds, .. } = self.told(&command, &[])?;
        match message {
            Answer::Opened if fds.len() == layers.len() => {
                Ok(fds.into_iter().map(File::from).collect())
            }
            other => Err(not_done(other)),
        }
    }

    /// Has it make the top layer longer.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn grow(&self, data_len: u64, map_len: u64) -> Result<(), PlaceError> {
        let command = Command::Grow { data_len, map_len };
        match self.told(&command, &[])?.message {
            Answer::Done => Ok(()),
            other => Err(not_done(other)),
        }
    }

    /// Has it work on no layers any more, and give the lock up.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn close(&self) -> Result<(), PlaceError> {
        match self.told(&Command::Close, &[])?.message {
            Answer::Done => Ok(()),
            other => Err(not_done(other)),
        }
    }

    /// Asks what is asked of storage.
    fn told(&self, command: &Command, bytes: &[u8]) -> Result<Packet<Answer>, PlaceError> {
        let told = self.ask(command, bytes, &[]);
        told.map_err(|error| PlaceError::Failed(error.to_string()))
    }

    /// Has it serve the lanes of another data plane, once nothing of the last one is under way.
    ///
    /// # Errors
    /// [`StoreProcessError`].
    pub fn serve(
        &self,
        layout: Layout,
        memory: &File,
        bells: &[LaneBells],
    ) -> Result<(), StoreProcessError> {
        let mut fds = vec![memory.as_fd()];
        for LaneBells {
            to_store,
            to_data_plane,
        } in bells
        {
            fds.extend([to_store.as_fd(), to_data_plane.as_fd()]);
        }
        self.ask(&Command::Lanes(layout.into()), &[], &fds)
            .map(drop)
    }

    /// How it is.
    ///
    /// # Errors
    /// [`StoreProcessError`].
    pub fn state(&self) -> Result<State, StoreProcessError> {
        match self.ask(&Command::State, &[], &[])?.message {
            Answer::State(state) => Ok(state),
            _ => Err(StoreProcessError::Malformed {
                from: "store process",
                why: "it is the answer to something else".into(),
            }),
        }
    }

    /// Has it take nothing more from lanes, and waits until nothing is under way.
    ///
    /// # Errors
    /// [`StoreProcessError::Refused`] when that takes too long.
    pub fn drain(&self) -> Result<(), StoreProcessError> {
        self.ask(&Command::Drain, &[], &[]).map(drop)
    }

    /// The socket to it, to be watched for its end.
    ///
    /// # Errors
    /// [`StoreProcessError::Io`].
    pub fn watched(&self) -> Result<OwnedFd, StoreProcessError> {
        self.channel()
            .as_fd()
            .try_clone_to_owned()
            .map_err(StoreProcessError::io("duplicate a socket"))
    }

    /// Lets it end in order, and waits for that, for so long at most; then it is killed. Whether it has ended by itself.
    pub fn end(mut self, patience: Duration) -> bool {
        let Some(launcher) = self.launcher.take() else {
            return true;
        };
        // The end of the channel is what tells it.
        drop(self);
        let deadline = Instant::now() + patience;
        let ended = matches!(launcher.ended(deadline), Ok(Some(_)));
        if !ended {
            kill(&launcher);
        }
        launcher.end();
        ended
    }

    fn ask(
        &self,
        command: &Command,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Packet<Answer>, StoreProcessError> {
        let channel = self.channel();
        channel.send(command, bytes, fds)?;
        answer(&channel)
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        // An answer that nobody took would be somebody else's: whoever panics over one ends the process.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        if let Some(launcher) = &self.launcher {
            kill(launcher);
        }
    }
}

fn files(read_only: bool) -> Command {
    Command::Files {
        version: VERSION,
        read_only,
    }
}

fn kill(launcher: &Launcher) {
    if let Err(error) = launcher.kill() {
        log::debug!("the store process cannot be killed: {error}");
    }
}

fn answer(channel: &Channel) -> Result<Packet<Answer>, StoreProcessError> {
    let packet = channel.receive::<Answer>()?;
    match packet.message {
        Answer::Refused(why) => Err(StoreProcessError::Refused(why)),
        _ => Ok(packet),
    }
}

fn not_done(answer: Answer) -> PlaceError {
    match answer {
        Answer::NotDone(error) => error,
        other => PlaceError::Failed(format!("{other:?} is the answer to something else")),
    }
}

impl Asked for StoreProcess {
    fn ask_place(
        &self,
        command: PlaceCommand,
        bytes: &[u8],
    ) -> Result<(PlaceAnswer, Vec<u8>), PlaceError> {
        let Packet { message, bytes, .. } = self.told(&Command::Place(command), bytes)?;
        match message {
            Answer::Place(answer) => Ok((answer, bytes)),
            other => Err(not_done(other)),
        }
    }
}
