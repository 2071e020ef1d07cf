//! What every store process does, whatever it works on: it serves lanes, and obeys whoever has started it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use store_ring::{LaneBells, LaneMemory, Layout, ServerLane};

use crate::StoreProcessError;
use crate::backend::Backend;
use crate::channel::{Channel, Packet};
use crate::engine::{Engine, EngineHandle};
use crate::messages::{Answer, Command, State};

/// How long what is under way may take once there is nobody any more for whom it is done: as long as a data plane that has
/// lost its attach process may.
const LAST_PATIENCE: Duration = Duration::from_secs(30);

/// How long a drain may take before it is answered that it takes longer.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// An answer, and what follows it.
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    /// One that nothing follows.
    pub(crate) fn of(answer: Answer) -> Self {
        Self {
            answer,
            bytes: Vec::new(),
            fds: Vec::new(),
        }
    }
}

/// Serves lanes through what does the I/O, until the other end is closed. Its first command has this answer; what is
/// not for lanes `others` obeys.
pub(crate) fn serve_with<B: Backend>(
    channel: &Channel,
    backend: B,
    first: Answer,
    mut others: impl FnMut(&EngineHandle<B>, Command, &[u8]) -> Result<Reply, StoreProcessError>,
) -> Result<(), StoreProcessError> {
    let (engine, handle) =
        Engine::new(backend).map_err(StoreProcessError::io("make an eventfd"))?;
    let run = move || {
        if let Err(error) = engine.run() {
            // Its data plane cannot go on with it. Nothing more is to be done for it.
            log::error!("{error}");
            end_now(1);
        }
    };
    let thread = std::thread::Builder::new()
        .name("lanes".into())
        .spawn(run)
        .map_err(StoreProcessError::io("start a thread"))?;
    channel.send(&first, &[], &[])?;
    loop {
        let Packet {
            message,
            bytes,
            fds,
        } = match channel.receive::<Command>() {
            Ok(packet) => packet,
            Err(StoreProcessError::Ended(_)) => break,
            Err(error) => return Err(error),
        };
        let obeyed = match message {
            Command::Lanes(_) | Command::State | Command::Drain => {
                obey(&handle, message, fds).map(Reply::of)
            }
            other => others(&handle, other, &bytes),
        };
        let Reply { answer, bytes, fds } =
            obeyed.unwrap_or_else(|error| Reply::of(Answer::Refused(error.to_string())));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(&answer, &bytes, &fds)?;
    }
    if !handle.drain(LAST_PATIENCE) {
        log::error!("what was under way has not ended, and there is nobody who waits for it");
        end_now(1);
    }
    handle.end();
    // What it has open is closed before the library is.
    let _ = thread.join();
    Ok(())
}

/// Ends the process without anything that a library does at its end, which may wait for its storage.
pub(crate) fn end_now(status: i32) -> ! {
    // SAFETY: it ends the process, which has nothing to put away.
    unsafe { libc::_exit(status) }
}

fn obey<B: Backend>(
    handle: &EngineHandle<B>,
    command: Command,
    fds: Vec<OwnedFd>,
) -> Result<Answer, StoreProcessError> {
    match command {
        Command::Lanes(layout) => {
            handle.serve(lanes(layout.into(), fds)?)?;
            Ok(Answer::Done)
        }
        Command::State => Ok(Answer::State(State {
            waits_ms: handle
                .waits_since()
                .map(|since| since.elapsed().as_millis() as u64),
        })),
        Command::Drain if handle.drain(DRAIN_PATIENCE) => Ok(Answer::Done),
        Command::Drain => Err(StoreProcessError::Refused(
            "operations are under way that do not end".into(),
        )),
        _ => Err(StoreProcessError::Refused(
            "it works on something already".into(),
        )),
    }
}

/// The lanes of a data plane.
fn lanes(layout: Layout, fds: Vec<OwnedFd>) -> Result<Vec<ServerLane>, StoreProcessError> {
    let count = fds.len();
    let refuse = || StoreProcessError::Refused(format!("{count} descriptors for {layout:?}"));
    if count != 1 + 2 * usize::from(layout.lanes) {
        return Err(refuse());
    }
    let mut fds = fds.into_iter();
    let memory = File::from(fds.next().ok_or_else(refuse)?);
    let memory = LaneMemory::map(&memory, layout)?;
    (0..layout.lanes)
        .map(|number| {
            let bells = LaneBells {
                to_store: fds.next().ok_or_else(refuse)?,
                to_data_plane: fds.next().ok_or_else(refuse)?,
            };
            Ok(ServerLane::new(memory.clone(), number, bells)?)
        })
        .collect()
}
