//! Asking and telling an attached disk something: a socket in the runtime directory that `attach`
//! serves.
//!
//! A client sends one line of JSON, a [`Request`], and gets one line back, a [`Reply`]; for events it
//! gets a line for each instead, until it or the attach ends. Only the owner of the runtime
//! directory reaches the socket. Each client has a thread, so that none can keep others, or the key
//! guard, waiting.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::Installation;
use crate::control::disks::Disk;
use crate::control::files::bind_private;
use protocol::Limits;

use super::AttachError;
use super::board::{Board, Line};
use super::commands::Commands;
use super::exchange::Change;
use super::jobs::Jobs;
use super::serving::Serving;
use super::status::KeyStatus;

/// Bytes of a line at most.
const MOST_LINE: u64 = 16 * 1024;
/// How long the other end may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a new size may take: longer than the data plane may.
const RESIZE_PATIENCE: Duration = Duration::from_secs(40);
/// How long a change of layers may take: the data plane flushes, and the vault is asked.
const CHANGE_PATIENCE: Duration = Duration::from_secs(300);
/// How long the end of the attach waits for clients that are being answered.
const FAREWELL: Duration = Duration::from_millis(500);
/// Clients at once; more are sent away.
const MOST_CLIENTS: usize = 32;

/// What a client may ask for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    /// These limits, instead of those that the disk has.
    Limits(Limits),
    /// The size that the disk's header says, from now on.
    Resize,
    /// Something else of its layers.
    Change(Change),
    /// What the guard knows of the key, and what is being done to the layers.
    Status,
    /// The events so far, and with `follow` those to come.
    Events { follow: bool },
}

/// The answer to a request that is not for events.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Reply<T> {
    Ok(T),
    Error(String),
}

/// What the clients' requests go to.
pub(super) struct Handles {
    pub(super) board: Arc<Board>,
    pub(super) commands: Arc<Commands>,
    pub(super) installation: Arc<Installation>,
    pub(super) disk: Arc<Disk>,
    pub(super) serving: Arc<Serving>,
    pub(super) jobs: Jobs,
}

/// The serving end.
pub(super) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    clients: Arc<AtomicUsize>,
}

fn path_of(runtime_dir: &Path, disk: Uuid) -> PathBuf {
    runtime_dir.join(format!("{disk}.control"))
}

impl ControlSocket {
    /// Binds the socket of a disk that this process has claimed: one that is there already was left
    /// behind.
    pub(super) fn bind(runtime_dir: &Path, disk: Uuid) -> Result<Self, AttachError> {
        let path = path_of(runtime_dir, disk);
        let _ = std::fs::remove_file(&path);
        match bind_private(&path) {
            Ok(listener) => Ok(Self {
                listener,
                path,
                clients: Arc::default(),
            }),
            Err(source) => Err(AttachError::Socket { path, source }),
        }
    }

    /// Serves clients from now on, until the end of the process.
    pub(super) fn serve(&self, attached: Arc<Handles>) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let clients = self.clients.clone();
        let accept = move || {
            loop {
                match listener.accept() {
                    Ok((client, _)) => greet(client, &clients, &attached),
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
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + FAREWELL;
        while self.clients.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Gives a client a thread of its own, unless there are too many.
fn greet(client: UnixStream, clients: &Arc<AtomicUsize>, attached: &Arc<Handles>) {
    if clients.fetch_add(1, Ordering::Relaxed) >= MOST_CLIENTS {
        clients.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let (count, attached) = (clients.clone(), attached.clone());
    let spawned = std::thread::Builder::new()
        .name("control-client".into())
        .spawn(move || {
            // A client that went away needs no answer.
            let _ = serve_client(client, &attached);
            count.fetch_sub(1, Ordering::Relaxed);
        });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_client(mut client: UnixStream, attached: &Handles) -> io::Result<()> {
    let Handles {
        board,
        commands,
        serving,
        ..
    } = attached;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(Read::by_ref(&mut client).take(MOST_LINE)).read_line(&mut line)?;
    match serde_json::from_str(&line) {
        Ok(Request::Limits(limits)) => match commands.limits(&limits) {
            Ok(()) => reply(&mut client, &Reply::Ok(())),
            Err(error) => reply::<()>(&mut client, &Reply::Error(error.to_string())),
        },
        Ok(Request::Resize) => match serving.follow_header() {
            Ok(size) => reply(&mut client, &Reply::Ok(size)),
            Err(error) => reply::<u64>(&mut client, &Reply::Error(error)),
        },
        Ok(Request::Change(change)) => match change.make(attached) {
            Ok(made) => reply(&mut client, &Reply::Ok(made)),
            Err(error) => reply::<bool>(&mut client, &Reply::Error(error)),
        },
        Ok(Request::Status) => reply(&mut client, &Reply::Ok(board.status())),
        Ok(Request::Events { follow }) => {
            let (history, events) = board.subscribe();
            for line in history {
                writeln!(client, "{line}")?;
            }
            match follow {
                true => pass_on(&client, &events),
                false => Ok(()),
            }
        }
        Err(error) => reply::<()>(&mut client, &Reply::Error(error.to_string())),
    }
}

/// Sends events until there will be no more, or the client is gone.
fn pass_on(mut client: &UnixStream, events: &Receiver<Line>) -> io::Result<()> {
    loop {
        match events.recv_timeout(PATIENCE) {
            Ok(line) => writeln!(client, "{line}")?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                if recv(client, &mut [0; 1], flags).is_ok_and(|(_, bytes)| bytes == 0) {
                    return Ok(());
                }
            }
        }
    }
}

fn reply<T: Serialize>(client: &mut UnixStream, reply: &Reply<T>) -> io::Result<()> {
    let json = serde_json::to_string(reply)?;
    writeln!(client, "{json}")
}

/// Changes the limits of an attached disk.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn set_limits(runtime_dir: &Path, disk: Uuid, limits: &Limits) -> Result<(), AttachError> {
    ask(runtime_dir, disk, &Request::Limits(*limits))
}

/// Has an attached disk, whose files have grown, served with the size that its header says; which
/// that is.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn follow_size(runtime_dir: &Path, disk: Uuid) -> Result<u64, AttachError> {
    let socket = connect(runtime_dir, disk)?;
    socket
        .set_read_timeout(Some(RESIZE_PATIENCE))
        .map_err(not_attached)?;
    ask_over(socket, &Request::Resize)
}

/// Has an attached disk's layers changed; whether there was anything to change.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub(super) fn change_layers(
    runtime_dir: &Path,
    disk: Uuid,
    change: Change,
) -> Result<bool, AttachError> {
    let socket = connect(runtime_dir, disk)?;
    socket
        .set_read_timeout(Some(CHANGE_PATIENCE))
        .map_err(not_attached)?;
    ask_over(socket, &Request::Change(change))
}

/// What is known of the key of an attached disk.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn key_status(runtime_dir: &Path, disk: Uuid) -> Result<KeyStatus, AttachError> {
    ask(runtime_dir, disk, &Request::Status)
}

/// Gives the events of an attached disk to `each`, a line of JSON at a time: those that are kept,
/// and with `follow` those that happen, until the disk is detached.
///
/// # Errors
/// [`AttachError::NotAttached`], and what `each` says.
pub fn events(
    runtime_dir: &Path,
    disk: Uuid,
    follow: bool,
    mut each: impl FnMut(&str) -> io::Result<()>,
) -> Result<(), AttachError> {
    let (socket, gone) = (connect(runtime_dir, disk)?, not_attached);
    send(&socket, &Request::Events { follow })?;
    socket.set_read_timeout(None).map_err(gone)?;
    for line in BufReader::new(socket).lines() {
        let line = line.map_err(gone)?;
        each(&line).map_err(|source| AttachError::Process {
            what: "write an event",
            source,
        })?;
    }
    Ok(())
}

fn not_attached(source: io::Error) -> AttachError {
    AttachError::NotAttached { source }
}

fn connect(runtime_dir: &Path, disk: Uuid) -> Result<UnixStream, AttachError> {
    let socket = UnixStream::connect(path_of(runtime_dir, disk)).map_err(not_attached)?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
        .map_err(not_attached)?;
    Ok(socket)
}

fn send(mut socket: &UnixStream, request: &Request) -> Result<(), AttachError> {
    let json = serde_json::to_string(request).map_err(|e| AttachError::Refused(e.to_string()))?;
    writeln!(socket, "{json}").map_err(not_attached)
}

fn ask<T: DeserializeOwned>(
    runtime_dir: &Path,
    disk: Uuid,
    request: &Request,
) -> Result<T, AttachError> {
    ask_over(connect(runtime_dir, disk)?, request)
}

fn ask_over<T: DeserializeOwned>(socket: UnixStream, request: &Request) -> Result<T, AttachError> {
    send(&socket, request)?;
    let mut answer = String::new();
    BufReader::new(socket.take(MOST_LINE))
        .read_line(&mut answer)
        .map_err(not_attached)?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(error)) => Err(AttachError::Refused(format!(
            "the attached disk refused: {error}"
        ))),
        Err(error) => Err(AttachError::Refused(format!(
            "the attached disk did not answer as it should: {error}"
        ))),
    }
}
