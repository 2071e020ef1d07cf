//! The data plane process: from its first instruction to its last flush.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use keys::{DekStack, harden_process, lock_stack_again};
use protocol::{
    COMMAND_FD, Cargo, Command, DataPlaneEnd, Discard, Event, KEEP_FD, KeepSocket, Line,
    ProtocolError, REGION_FD, Received, Reply, SOCKET_FD, Waiter,
};
use sandbox::Launch;
use volume::pipeline::DiskIo;

use crate::DataplaneError;
use crate::counters::Counters;
use crate::disk::full_storage::StorageNews;
use crate::disk::key::SharedKey;
use crate::disk::shared::{Extent, Shared};
use crate::inflight::InflightRegion;
use crate::process::signs::alive_while;
use crate::queue::pulse::{PERIOD, Watchdog};
use crate::vhost_user::config_space::ConfigSpace;
use crate::vhost_user::conversation::Conversation;
use crate::vhost_user::handler::BlockHandler;
use crate::vhost_user::keeper::Keeper;
use crate::vhost_user::restore::KeptConnection;

use super::confine::{Confinement, Help, help, share_maps};
use super::copier::Copier;
use super::last_resort::{Bound, end_after_the_attach_process};
use super::map_scan::MapScan;
use super::open::{NO_DISK, WITHOUT, disk_of, files_and_keys, open_disk};
use super::prepare::Prepared;

/// What woke the main thread.
const CONTROL: u64 = 0;
const SIGNAL: u64 = 1;
const SOCKET: u64 = 2;
const CONNECTION_ENDED: u64 = 3;
const STORAGE: u64 = 4;
const SYNC: u64 = 5;
const MEMORY: u64 = 6;
const RINGS: u64 = 7;

/// How long space is given back at the end, before the rest is left to the next attach.
const LAST_RELEASE: Duration = Duration::from_secs(20);

/// Runs the data plane in this process, which must have been started by the attach process with
/// the descriptors [`COMMAND_FD`], [`SOCKET_FD`], [`KEEP_FD`] and [`REGION_FD`]. Returns after the last flush. It may
/// go on in a child.
///
/// # Errors
/// [`DataplaneError`], which there is nobody to tell; what the attach process could be told has ended the
/// process.
pub fn serve(launch: Launch) -> Result<(), DataplaneError> {
    harden_process()?;
    end_with_any_thread();
    let confinement = Confinement::begin(launch)?;
    // Where that is /proc tells, while there is one.
    lock_stack_again()?;
    let control = DataPlaneEnd::open(UnixStream::from(inherited(COMMAND_FD)?))?;
    log::debug!(
        "the attach process and this use protocol {}",
        control.version()
    );
    let result = serve_disk(&control, confinement);
    if let Err(error) = &result
        && control
            .tell(Event::Failed {
                why: Line::of(error),
            })
            .is_ok()
    {
        // The attach process prints it.
        std::process::exit(1);
    }
    result
}

/// A queue whose thread panicked would hang its guest silently. The process ends instead: nothing
/// that was completed is lost, and the supervisor starts another.
fn end_with_any_thread() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Takes over a descriptor that the attach process left open for us.
fn inherited(fd: RawFd) -> Result<OwnedFd, DataplaneError> {
    let what = "use the descriptors of the attach process (`sealdisk attach` starts this)";
    let fail = |e: rustix::io::Errno| DataplaneError::Io {
        what,
        source: e.into(),
    };
    // SAFETY: only a look at whether the number is an open descriptor.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).map_err(fail)?;
    // SAFETY: the descriptor is open (just seen), the attach process made it for this purpose, and
    // each number is taken over once, at the start of the process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn serve_disk(control: &DataPlaneEnd, confinement: Confinement) -> Result<(), DataplaneError> {
    let socket = inherited(SOCKET_FD)?;
    let keep = KeepSocket::from(inherited(KEEP_FD)?);
    let region = File::from(inherited(REGION_FD)?);
    let Prepared {
        queues,
        rings,
        vacant,
        signals,
        pair,
    } = Prepared::make(control, confinement)?;
    let watched = end_after_the_attach_process(control);
    watched.map_err(io_error("watch the attach process"))?;
    let not_second = || DataplaneError::Setup("its second command is another".into());
    let Received {
        number,
        command,
        cargo,
    } = control.receive()?.ok_or_else(not_second)?;
    let (setup, given) = match command {
        Command::Serve(setup) => {
            let given = files_and_keys(&setup, cargo)?;
            (setup, Some(given))
        }
        Command::Wait(setup) => (setup, None),
        _ => return Err(not_second()),
    };
    if setup.num_queues != queues {
        let why = format!(
            "{} queues, and it was prepared for {queues}",
            setup.num_queues
        );
        return Err(DataplaneError::Setup(why));
    }
    share_maps(&setup);
    let kept = match &setup.restart {
        Some(restart) => KeptConnection::receive(&keep, restart.kept, pair)?,
        None => None,
    };
    let is_vacant = given.is_none();
    let vacant = Extent::vacant(vacant, disk_of(&setup))?;
    let (extent, key) = match given {
        Some((files, deks)) => open_disk(&setup, files, deks)?,
        None => (vacant.clone(), SharedKey::revoked(WITHOUT)),
    };

    let Help { threads, layers } = help(&setup);
    let key = key.with_threads(threads, layers)?;

    let config = ConfigSpace::new(&setup);
    let counters = Counters::kept(&region, setup.num_queues);
    let counters = counters.map_err(io_error("map what outlives this process"))?;
    let limits = config.limits();
    let shared = Shared::new(extent, key, (rings, counters), limits, &setup)?;
    let shared = Arc::new(shared);
    // All that the queues need is there before anybody can connect, or it is said why not.
    let keeper = Keeper::new(keep, &region).map_err(io_error("map what outlives this process"))?;
    let in_flight = InflightRegion::kept(region, setup.num_queues)?;
    let keeping = (Arc::new(keeper), in_flight);
    let mut handler = BlockHandler::new(shared.clone(), config, setup.num_queues, keeping)?;
    handler.set_vacant(is_vacant);
    let mut server = Server {
        shared: shared.clone(),
        watchdogs: handler.watchdogs(),
        next_look: Instant::now(),
        handler: Arc::new(Mutex::new(handler)),
        ended: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(io_error("make an eventfd"))?,
        connection: None,
        connections: 0,
        news: StorageNews::default(),
        copier: Copier::default(),
        scan: None,
        read_only: setup.read_only,
        vacant,
        is_vacant,
    };
    if let Some(kept) = kept {
        server.go_on(kept, setup.restart.is_some_and(|restart| restart.resized));
    }
    let answer = match is_vacant {
        true => Reply::Waiting,
        false => Reply::Serving,
    };
    control.reply(number, answer)?;
    // What a process before this one met.
    shared.sync_alarm.tell(&shared.extent().volume, control);
    log::info!(
        "{} disk {} with {} queues",
        if is_vacant { "waiting for" } else { "serving" },
        setup.stack.disk,
        setup.num_queues
    );
    server.scan_again();
    let served = match setup.listening {
        true => server.accept_all(&UnixListener::from(socket), control, &signals),
        false => server.serve_one(UnixStream::from(socket), control, &signals),
    };
    if let Some(scan) = server.scan.take() {
        scan.finish();
    }
    server.handler().finish();
    server.close();
    server.copier.stop();
    let is_vacant = server.is_vacant;
    drop(server);
    served?;
    if is_vacant {
        return Ok(());
    }
    // The disk stays claimed until the attach process has put everything away.
    let flushed = last_flush(&shared);
    shared.sync_alarm.tell(&shared.extent().volume, control);
    flushed
}

/// Makes what the guest had not flushed durable: the runtime map is not needed any more then. And gives
/// back what was discarded. That takes no key, which may be revoked by now.
fn last_flush(shared: &Shared) -> Result<(), DataplaneError> {
    let overwrite = shared.discard == Discard::Overwrite;
    let mut io = open_to_flush(shared)?;
    alive_while(&shared.counters, || {
        io.flush_and_release(overwrite, LAST_RELEASE)
    })
    .map_err(DataplaneError::Flush)
}

pub(crate) fn open_to_flush(shared: &Shared) -> Result<DiskIo, DataplaneError> {
    let extent = shared.extent();
    let store = shared.lent_store(extent.files.clone())?;
    let (volume, pool) = (extent.volume.clone(), shared.other_pool()?);
    DiskIo::on(store, volume, None, pool).map_err(DataplaneError::Flush)
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Io { what, source }
}

/// The connection that is being served.
struct Connection {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    handler: Arc<Mutex<BlockHandler>>,
    ended: EventFd,
    connection: Option<Connection>,
    /// Connections so far.
    pub(super) connections: u64,
    news: StorageNews,
    pub(crate) copier: Copier,
    /// One for each queue.
    watchdogs: Vec<Watchdog>,
    /// When they look next.
    next_look: Instant,
    /// Looks through the map of the disk.
    pub(super) scan: Option<MapScan>,
    /// The disk is not written to.
    pub(super) read_only: bool,
    /// What stands in the place of the disk while another attach has it.
    pub(super) vacant: Arc<Extent>,
    /// It does.
    pub(super) is_vacant: bool,
}

impl Server {
    /// Serves one connection after another until the attach process or a signal says stop.
    fn accept_all(
        &mut self,
        listener: &UnixListener,
        control: &DataPlaneEnd,
        signals: &UnixStream,
    ) -> Result<(), DataplaneError> {
        let waiter = self.waiter(control, signals)?;
        let fail = io_error("watch the socket");
        if self.connection.is_none() {
            waiter.watch(listener, SOCKET).map_err(&fail)?;
        }
        loop {
            match self
                .wait(&waiter, control)
                .map_err(io_error("wait for events"))?
            {
                SOCKET => {
                    let accepted = listener.accept();
                    let started = accepted.and_then(|(stream, _)| self.start(stream));
                    match started {
                        // One frontend at a time: further ones wait in the socket's queue.
                        Ok(()) => waiter.unwatch(listener).map_err(&fail)?,
                        Err(error) => log::warn!("cannot serve a connection: {error}"),
                    }
                }
                CONNECTION_ENDED => {
                    self.close();
                    waiter.watch(listener, SOCKET).map_err(&fail)?;
                }
                CONTROL if self.obey(control) => {}
                _ => return Ok(()),
            }
        }
    }

    /// Serves a connection that is there already; it ends with it.
    fn serve_one(
        &mut self,
        stream: UnixStream,
        control: &DataPlaneEnd,
        signals: &UnixStream,
    ) -> Result<(), DataplaneError> {
        let waiter = self.waiter(control, signals)?;
        if self.connection.is_none() {
            self.start(stream)
                .map_err(io_error("serve the connection"))?;
        }
        let fail = io_error("wait for events");
        while self.wait(&waiter, control).map_err(&fail)? == CONTROL && self.obey(control) {}
        Ok(())
    }

    /// Waits until there is something to do, and tells what it is. The attach process is told of
    /// full storage and of a failed sync on the way.
    fn wait(&mut self, waiter: &Waiter, control: &DataPlaneEnd) -> io::Result<u64> {
        loop {
            let news = self.news.deadline();
            let deadline = news.map_or(self.next_look, |news| news.min(self.next_look));
            let woken = waiter.wait_until(deadline)?;
            self.look_at_queues();
            let full = self.shared.storage.is_full();
            if let Some(event) = self.news.look(full, Instant::now()) {
                // When the attach process is gone its end of the socket says so next.
                let _ = control.tell(event);
            }
            let volume = &self.shared.extent().volume;
            self.shared.sync_alarm.tell(volume, control);
            self.tell_memory(control);
            self.tell_rings(control);
            match woken {
                Some(STORAGE | SYNC | MEMORY | RINGS) | None => {}
                Some(other) => return Ok(other),
            }
        }
    }

    /// Tells what is new of the frontend's memory.
    fn tell_memory(&self, control: &DataPlaneEnd) {
        let (memory, not_shared) = self.shared.memory_news.take(self.connections);
        if let (Some(memory), Some(connection)) = (memory, &self.connection) {
            let _ = control.tell_memory(memory, &connection.stream);
        }
        if not_shared {
            let _ = control.tell(Event::MemoryNotShared);
        }
    }

    /// Does what the attach process sent. Whether the process goes on: not when the other end is
    /// closed.
    fn obey(&mut self, control: &DataPlaneEnd) -> bool {
        let Received {
            number,
            command,
            cargo,
        } = match next_command(control) {
            Some(Some(received)) => received,
            Some(None) => return true,
            None => return false,
        };
        let reply = match command {
            Command::Prepare { .. } | Command::Serve(_) | Command::Wait(_) => {
                Reply::refused(&"a disk is served already")
            }
            Command::TakeDisk(setup) => self.take_disk(&setup, cargo),
            Command::LetGo => self.let_disk_go(),
            Command::SetLimits(limits) => {
                self.shared.limiter.set(&limits);
                log::info!("new limits: {limits:?}");
                Reply::LimitsSet
            }
            Command::RevokeKey { on_revoke } => {
                let _bound = Bound::begin();
                self.copier.stop();
                self.handler().suspend(on_revoke);
                log::info!("the key was revoked: no DEK and no cipher is left");
                Reply::KeyDestroyed
            }
            // It comes with the disk.
            Command::RestoreKey { .. } if self.is_vacant => Reply::KeyRestored,
            Command::Resize { .. } | Command::Quiesce | Command::StartCopyUp(_)
                if self.is_vacant =>
            {
                Reply::refused(&NO_DISK)
            }
            Command::RestoreKey { layers } => {
                let restored = self.keys_of(cargo, &layers);
                let restored = restored.map_err(|error| error.to_string());
                answer(
                    restored.and_then(|deks| self.handler().resume(deks)),
                    Reply::KeyRestored,
                )
            }
            Command::Resize { size } => self.resize(size),
            Command::Quiesce => return self.quiesce(control, number),
            Command::HandOver => return self.hand_over(control, number),
            Command::SwapVolume(_) => Reply::refused(&"the disk is not quiesced"),
            Command::Resume => Reply::Resumed,
            Command::StartCopyUp(request) => answer(
                self.copier.start(&self.shared, request),
                Reply::CopyUpStarted,
            ),
            Command::StopCopyUp => {
                self.copier.stop();
                Reply::CopyUpStopped
            }
            Command::CopyUpProgress => Reply::CopyUpProgress(self.copier.progress()),
            Command::Disconnect { connection } => {
                self.disconnect(connection);
                Reply::Disconnected
            }
        };
        control.reply(number, reply).is_ok()
    }

    fn resize(&mut self, size: u64) -> Reply {
        // It knows the smaller volume only.
        let copy = self.copier.stop();
        let grown = self.handler().grow(size);
        self.copy_again(copy);
        if grown.is_ok() {
            log::info!("the disk has {size} bytes now");
        }
        answer(grown, Reply::Resized { size })
    }

    /// The DEKs of `layers`, which came with a command; they are of no use when the disk has others by now.
    pub(crate) fn keys_of(
        &self,
        cargo: Cargo,
        layers: &[Uuid],
    ) -> Result<DekStack, DataplaneError> {
        let deks = cargo.keys()?;
        match self.shared.extent().layers().eq(layers.iter().copied()) {
            true => Ok(deks),
            false => Err(DataplaneError::Setup(
                "keys of another stack of layers".into(),
            )),
        }
    }

    pub(crate) fn handler(&self) -> MutexGuard<'_, BlockHandler> {
        // A panic of any thread ends the process.
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiter(
        &self,
        control: &DataPlaneEnd,
        signals: &UnixStream,
    ) -> Result<Waiter, DataplaneError> {
        let watched = || {
            let waiter = Waiter::new()?;
            waiter.watch(control, CONTROL)?;
            waiter.watch(signals, SIGNAL)?;
            waiter.watch(&self.ended, CONNECTION_ENDED)?;
            waiter.watch(self.shared.storage.changed(), STORAGE)?;
            waiter.watch(self.shared.memory_news.changed(), MEMORY)?;
            waiter.watch(self.shared.ring_news.changed(), RINGS)?;
            waiter.watch(self.shared.sync_alarm.event(), SYNC)?;
            Ok(waiter)
        };
        watched().map_err(io_error("watch for the end"))
    }

    /// Ends the process when a queue's thread does not take its turns any more.
    fn look_at_queues(&mut self) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + PERIOD;
        self.shared.counters.sign_of_life();
        if let Some(why) = self.watchdogs.iter_mut().find_map(Watchdog::ask) {
            log::error!("{why}; the process ends, so that another goes on for it");
            std::process::abort();
        }
    }

    fn start(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let ours = stream.try_clone()?;
        let conversation = Conversation::begin(stream, self.handler.clone())?;
        self.converse(ours, conversation)
    }

    /// Goes on with the connection of a process that has died. One that cannot be as it was ends, and the
    /// frontend can connect anew.
    fn go_on(&mut self, kept: KeptConnection, resized: bool) {
        let keeper = self.handler().keeper.clone();
        let KeptConnection {
            stream,
            setup,
            pair,
        } = kept;
        let gone_on = keeper
            .while_restoring(|| setup.restore(&stream, pair, &self.handler))
            .and_then(|conversation| self.converse(stream.try_clone()?, conversation));
        if gone_on.is_ok() && resized {
            self.handler().tell_of_new_size();
        }
        self.handler().tell_rings();
        if let Err(error) = gone_on {
            log::warn!(
                "the connection to the frontend ends, since it cannot be as it was: {error}"
            );
            // The attach process has its socket too.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            keeper.begin();
            self.handler().disconnect();
            keeper.forget_connection();
            keeper.end();
        }
    }

    fn converse(&mut self, ours: UnixStream, conversation: Conversation) -> io::Result<()> {
        let ended = self.ended.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                conversation.hold();
                let _ = ended.write(1);
            })?;
        self.connections += 1;
        self.connection = Some(Connection {
            stream: ours,
            thread,
        });
        Ok(())
    }

    /// Has the connection of that number end, if it is still there; its thread tells when it has.
    pub(crate) fn disconnect(&self, number: u64) {
        if let Some(connection) = &self.connection
            && number == self.connections
        {
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Ends the connection, if there is one. What its rings have is completed, if it was not before.
    fn close(&mut self) {
        if let Some(Connection { stream, thread, .. }) = self.connection.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            let _ = thread.join();
            let _ = self.ended.read();
        }
    }
}

/// The next command; an inner `None` for one that was refused already, and an outer one when no more can be
/// received.
pub(crate) fn next_command(control: &DataPlaneEnd) -> Option<Option<Received>> {
    match control.receive() {
        Ok(received) => Some(received),
        Err(ProtocolError::Ended(_)) => None,
        Err(error) => {
            log::error!("the attach process cannot be understood any more: {error}");
            None
        }
    }
}

/// The answer to a command that was done, or was not.
pub(crate) fn answer<E: std::fmt::Display>(result: Result<(), E>, done: Reply) -> Reply {
    match result {
        Ok(()) => done,
        Err(why) => Reply::refused(&why),
    }
}
