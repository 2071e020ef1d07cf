//! What is done before there is a disk: it takes privileges, or it takes time that no guest is to wait for.

use std::io;
use std::os::unix::net::UnixStream;

use keys::with_wiped_call_stack;
use protocol::{Command, DataPlaneEnd, Received, Reply, signal_pipe};

use crate::DataplaneError;
use crate::disk::memory::raise_limits;
use crate::disk::rings::Rings;
use crate::disk::vacant::VacantFiles;

use super::confine::Confinement;

/// What a process has that is confined and has no disk yet.
pub(super) struct Prepared {
    /// Queues that all this is for.
    pub(super) queues: u16,
    pub(super) rings: Rings,
    /// What stands in the place of the disk when that is another attach's.
    pub(super) vacant: VacantFiles,
    /// Has something to read when the process is told to end.
    pub(super) signals: UnixStream,
    /// No sockets can be made any more.
    pub(super) pair: (UnixStream, UnixStream),
}

impl Prepared {
    /// Waits for the first command, tests the cipher, makes all that a disk needs, confines the process and says so.
    ///
    /// # Errors
    /// [`DataplaneError`]: why it can serve no disk.
    pub(super) fn make(
        control: &DataPlaneEnd,
        mut confinement: Confinement,
    ) -> Result<Self, DataplaneError> {
        let Some(Received {
            number,
            command: Command::Prepare { queues },
            ..
        }) = control.receive()?
        else {
            return Err(DataplaneError::Setup("its first command is another".into()));
        };
        with_wiped_call_stack(xts::self_test)?;
        raise_limits(queues)?;
        let rings = Rings::make(queues)?;
        let vacant = VacantFiles::make()?;
        let signals = signal_pipe().map_err(io_error("handle signals"))?;
        let pair = UnixStream::pair().map_err(io_error("make a pair of sockets"))?;
        confinement.leave_host(queues);
        confinement.finish(queues)?;
        let program = env!("CARGO_PKG_VERSION").into();
        control.reply(number, Reply::Prepared { program })?;
        Ok(Self {
            queues,
            rings,
            vacant,
            signals,
            pair,
        })
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Io { what, source }
}
