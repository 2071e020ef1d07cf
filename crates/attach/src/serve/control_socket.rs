//! Asking and telling an attached disk something: a socket in the runtime directory that `attach`
//! serves.
//!
//! A client sends one line of JSON, a [`Request`], and gets one line back, a [`Reply`]; for events it
//! gets a line for each instead, until it or the attach ends. Only the owner of the runtime
//! directory reaches the socket. Each client has a thread, so that none can keep others, or the key
//! guard, waiting.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::Serialize;
use uuid::Uuid;

use crate::error::{AttachError, Refusal};
use crate::serve::attached_disk::AttachedDisk;
use crate::serve::control_name::Names;
use crate::serve::control_request::{MAX_LINE, PATIENCE, Reply, Request};
use crate::serve::event_hub::EventHub;
use crate::serve::jobs::Jobs;
use crate::serve::keeping::Counted;
use crate::serve::upgrades::UpgradeDesk;
use crate::serve::{followers, metrics};
use crate::status::Upgraded;
use disks::{Applied, Disk, DiskError, LayerOp};
use installation::Installation;
use keys::with_wiped_call_stack;
use protocol::Waiter;
use traces::{Span, SpanKind};

/// How long the end of the attach waits for clients that are being answered.
const FAREWELL: Duration = Duration::from_millis(500);
/// Clients at once; more are sent away.
const MAX_CLIENTS: usize = 32;

/// What the clients' requests go to.
pub(crate) struct Handles {
    pub(crate) event_hub: Arc<EventHub>,
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) counted: Arc<Counted>,
    pub(crate) jobs: Jobs,
    pub(crate) upgrades: UpgradeDesk,
}

impl Handles {
    /// Applies an operation that another process asks for.
    fn apply(&self, op: &LayerOp) -> Result<Applied, DiskError> {
        let turn = self.attached_disk.turns().wait();
        self.attached_disk.check_held()?;
        // Whoever asks has opened the catalog that is there now, and looks for the outcome in that.
        self.installation.renew()?;
        let mut volume = &*self.attached_disk;
        let applied =
            with_wiped_call_stack(|| op.apply(&self.installation, &self.disk, &mut volume));
        let applied = applied.map_err(|error| confined_by(op, error));
        if let Ok(header) = self.disk.header_file().and_then(|file| Ok(file.read()?))
            && let Some(job) = &header.claims().job
        {
            // Whoever asked for it sees it at once, until it is done.
            self.event_hub.announce_job(job.kind, job.paused);
        }
        drop(turn);
        self.jobs.look();
        applied
    }
}

/// What is forbidden to this process is not what the user lacks.
fn confined_by(op: &LayerOp, error: DiskError) -> DiskError {
    let dir = match op {
        LayerOp::CreateSnapshot(request) => &request.data_dir,
        LayerOp::CloneDisk(request) => &request.data_dir,
        LayerOp::DeepCopy(deep) => &deep.request.data_dir,
        _ => return error,
    };
    match (dir, &error) {
        (Some(dir), DiskError::File { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            DiskError::Argument(format!(
                "{error}: while the disk is attached, its process makes snapshots and copies beside the disk, and in \
                 the directories that `attach --allow-data-dir` names; {} is none of them",
                dir.display()
            ))
        }
        _ => error,
    }
}

/// The serving end.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    names: Names,
    clients: Arc<AtomicUsize>,
    /// Held while a client is let in, by which it is one that is being answered.
    gate: Arc<Mutex<()>>,
    /// Clients that are being answered.
    busy: Arc<AtomicUsize>,
}

/// A client that is being answered.
struct Busy(Option<Arc<AtomicUsize>>);

impl Busy {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Some(count.clone()))
    }

    /// From now on it waits for something, and need not have it.
    fn end(&mut self) {
        if let Some(count) = self.0.take() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end();
    }
}

impl ControlSocket {
    /// Binds the socket of a disk that this process has claimed.
    pub(crate) fn bind(runtime_dir: &Path, disk: Uuid, attach: Uuid) -> Result<Self, AttachError> {
        let this = Self::bind_waiting(runtime_dir, disk, attach)?;
        this.names.has_disk();
        Ok(this)
    }

    /// Binds the socket of a disk that this process waits for.
    pub(crate) fn bind_waiting(
        runtime_dir: &Path,
        disk: Uuid,
        attach: Uuid,
    ) -> Result<Self, AttachError> {
        let (listener, names) = Names::bind(runtime_dir, disk, attach)?;
        Ok(Self::of(listener, names))
    }

    /// The names that the socket has with the disk and without it.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    fn of(listener: UnixListener, names: Names) -> Self {
        Self {
            listener,
            names,
            clients: Arc::default(),
            gate: Arc::default(),
            busy: Arc::default(),
        }
    }

    /// The one that the program before this one had in this process.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn adopt(listener: OwnedFd, path: &Path, attach: Uuid) -> io::Result<Self> {
        Ok(Self::of(listener.into(), Names::adopt(path, attach)?))
    }

    /// Where it is while this attach has the disk.
    pub(crate) fn path(&self) -> &Path {
        self.names.with_disk()
    }

    /// Lets no client in while the guard lives; `None` while one is being answered.
    pub(crate) fn close(&self) -> Option<MutexGuard<'_, ()>> {
        let gate = enter(&self.gate);
        (self.busy.load(Ordering::Acquire) == 0).then_some(gate)
    }

    /// Serves clients from now on, until the end of the process.
    pub(crate) fn serve(&self, handles: Arc<Handles>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        // It is waited for outside of the gate.
        listener.set_nonblocking(true)?;
        let waiter = Waiter::new()?;
        waiter.watch(&listener, 0)?;
        let (clients, gate, busy) = (self.clients.clone(), self.gate.clone(), self.busy.clone());
        let accept = move || {
            loop {
                let accepted = waiter.wait().and_then(|_| {
                    let _gate = enter(&gate);
                    let (client, _) = listener.accept()?;
                    Ok((client, Busy::begin(&busy)))
                });
                match accepted {
                    Ok((client, busy)) => greet(client, busy, &clients, &handles),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        log::warn!("a client of the control socket is lost: {error}");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("control-socket".into())
            .spawn(accept)
            .map(drop)
    }

    /// Waits a moment for clients that are being told the last things.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now() + FAREWELL;
        while self.clients.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Where clients come in.
impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn enter(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    // Nothing is guarded but the way in.
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a client of the program before this one that what it has asked for is done.
pub(crate) fn answer_upgrade(mut client: UnixStream, upgraded: Upgraded) {
    // Who asked may have gone.
    let _ = client
        .set_write_timeout(Some(PATIENCE))
        .and_then(|()| reply(&mut client, &Reply::Ok(upgraded)));
}

/// Gives a client a thread of its own, unless there are too many.
fn greet(client: UnixStream, busy: Busy, clients: &Arc<AtomicUsize>, handles: &Arc<Handles>) {
    if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
        clients.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (count, handles) = (clients.clone(), handles.clone());
    let spawned = std::thread::Builder::new()
        .name("control-client".into())
        .spawn(move || {
            // A client that went away needs no answer.
            let _ = serve_client(client, &handles, busy);
            count.fetch_sub(1, Ordering::Relaxed);
        });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_client(mut client: UnixStream, handles: &Handles, mut busy: Busy) -> io::Result<()> {
    let Handles {
        event_hub,
        attached_disk,
        ..
    } = handles;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(Read::by_ref(&mut client).take(MAX_LINE)).read_line(&mut line)?;
    let asked = serde_json::from_str(&line).map(Request::untraced);
    let (asked, parent) = match asked {
        Ok((request, parent)) => (Ok(request), parent),
        Err(error) => (Err(error), None),
    };
    let span = begin(&asked, parent.as_deref());
    let _entered = span.enter();
    match asked {
        Ok(Request::Limits(limits)) => match attached_disk.set_limits(limits) {
            Ok(()) => reply(&mut client, &Reply::Ok(())),
            Err(error) => {
                span.failed("Refused");
                reply::<()>(&mut client, &Reply::Error(error.to_string()))
            }
        },
        Ok(Request::ApplyLayerOp(op)) => match handles.apply(&op) {
            Ok(applied) => reply(&mut client, &Reply::Ok(applied)),
            Err(error) => {
                span.failed(error.code());
                reply::<Applied>(&mut client, &Reply::Refused(Refusal::of(&error)))
            }
        },
        Ok(Request::Upgrade { program }) => {
            let outcome = match may_upgrade(&client) {
                true => {
                    let at_its_end = client.try_clone()?.into();
                    // It may wait while this process goes on as another program.
                    busy.end();
                    handles.upgrades.ask(program, Some(at_its_end), parent)
                }
                false => Err("only root and the user of the attach process may upgrade it".into()),
            };
            match outcome {
                Ok(upgraded) => reply(&mut client, &Reply::Ok(upgraded)),
                Err(why) => reply::<Upgraded>(&mut client, &Reply::NotUpgraded(why)),
            }
        }
        Ok(Request::Status) => reply(&mut client, &Reply::Ok(event_hub.status())),
        Ok(Request::Metrics) => {
            let counted = &handles.counted;
            let metrics = metrics::metrics(&handles.disk, attached_disk, event_hub, counted);
            reply(&mut client, &Reply::Ok(metrics))
        }
        Ok(Request::Events { follow }) => {
            busy.end();
            if follow {
                let at_its_end = client.try_clone()?.into();
                followers::follow(&client, &event_hub.subscribe(at_its_end));
                return Ok(());
            }
            let history = event_hub.history();
            history
                .iter()
                .try_for_each(|line| writeln!(client, "{line}"))
        }
        // There is none in another.
        Ok(Request::Traced { .. }) => Ok(()),
        Err(error) => {
            let version = env!("CARGO_PKG_VERSION");
            let why = format!(
                "it is attached by sealdisk {version}, which does not know this request; use that \
                 version, or detach the disk and attach it again ({error})"
            );
            reply::<()>(&mut client, &Reply::Error(why))
        }
    }
}

/// What is done for a client. An upgrade has a trace of its own: this process may be another program when it is done.
fn begin(asked: &serde_json::Result<Request>, parent: Option<&str>) -> Span {
    match asked {
        Err(_) | Ok(Request::Upgrade { .. }) => Span::none(),
        Ok(request) => request.span().map_or_else(Span::none, |name| {
            let span = Span::asked_by(parent, SpanKind::Server, "control request");
            span.set("sealdisk.request", name);
            span
        }),
    }
}

/// Who has a socket's permission to write may have been given it; a program is named by its owner alone.
fn may_upgrade(client: &UnixStream) -> bool {
    let owner = geteuid();
    socket_peercred(client).is_ok_and(|peer| peer.uid.is_root() || peer.uid == owner)
}

fn reply<T: Serialize>(client: &mut UnixStream, reply: &Reply<T>) -> io::Result<()> {
    let json = serde_json::to_string(reply)?;
    writeln!(client, "{json}")
}
