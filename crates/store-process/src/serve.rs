//! The store process: from its first instruction to its end.

use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};
use sandbox::Launch;

use crate::StoreProcessError;
use crate::channel::{Channel, Packet};
use crate::confine::{Confinement, Reach};
use crate::files::FileBackend;
use crate::messages::{Answer, Command, VERSION};
use crate::rbd::serve_rbd;
use crate::session::serve_with;

/// The descriptor of the channel in the store process.
pub const CONTROL_FD: i32 = 3;

/// Runs the store process in this process, which must have been started with the descriptor [`CONTROL_FD`]. Returns when
/// the other end of that is closed. It may go on in a child.
///
/// # Errors
/// [`StoreProcessError`], which whoever has started it was told if that was possible.
pub fn serve(launch: Launch) -> Result<(), StoreProcessError> {
    let channel = Channel::adopt(inherited()?, "attach process");
    outlive_signals();
    let Packet { message, fds, .. } = channel.receive::<Command>()?;
    let served = match message {
        Command::Files { version, read_only } => {
            check_version(version).and_then(|()| serve_files(&channel, launch, fds, read_only))
        }
        Command::Rbd { version, of } => {
            check_version(version).and_then(|()| serve_rbd(&channel, launch, of))
        }
        _ => Err(StoreProcessError::Refused(
            "the first command says what is to be worked on".into(),
        )),
    };
    if let Err(error) = &served {
        // It may be what the other end has been told already, or gone.
        let _ = channel.send(&Answer::Refused(error.to_string()), &[], &[]);
    }
    served
}

fn check_version(version: u32) -> Result<(), StoreProcessError> {
    match version {
        VERSION => Ok(()),
        other => Err(StoreProcessError::Refused(format!(
            "the attach process speaks version {other}, and the store process version {VERSION}"
        ))),
    }
}

fn serve_files(
    channel: &Channel,
    launch: Launch,
    fds: Vec<OwnedFd>,
    read_only: bool,
) -> Result<(), StoreProcessError> {
    Confinement::begin(launch, Reach::Nothing)?.finish()?;
    let mut files: Vec<File> = fds.into_iter().map(File::from).collect();
    let map = files
        .pop()
        .ok_or_else(|| StoreProcessError::Refused("no files came with the command".into()))?;
    let backend = FileBackend::new(files, map, read_only)
        .map_err(StoreProcessError::io("use the files of a disk"))?;
    serve_with(channel, backend, Answer::Done, |_, command, _| {
        Err(StoreProcessError::Refused(format!(
            "{command:?} is no command for a store process of files"
        )))
    })
}

/// Takes over the descriptor that was left open for this process.
fn inherited() -> Result<OwnedFd, StoreProcessError> {
    let fail = StoreProcessError::io("use the descriptor of the attach process (it starts this)");
    // SAFETY: only a look at whether the number is an open descriptor.
    let look = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    fcntl_setfd(look, FdFlags::CLOEXEC).map_err(fail)?;
    // SAFETY: it is open (just seen), its maker left it open for this, and it is taken over once, at the start.
    Ok(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}

/// What ends its attach process is no reason to end: a data plane flushes then. It is told by the end of the channel.
fn outlive_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the signal is ignored, and no handler is called.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
