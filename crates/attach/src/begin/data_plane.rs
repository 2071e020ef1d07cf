//! Starting the data plane process, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};

use crate::begin::socket::Socket;
use crate::error::AttachError;
use protocol::{COMMAND_FD, Commands, Messages, SOCKET_FD};

/// How long the data plane may take to take a command, and to end after it closed its socket.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// The running data plane.
pub(crate) struct DataPlane {
    child: Child,
    control: UnixStream,
}

pub(crate) fn process(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| AttachError::Process { what, source }
}

impl DataPlane {
    /// Starts this program again as the data plane, with nothing but its two sockets.
    pub(crate) fn spawn(socket: &Socket) -> Result<Self, AttachError> {
        let fail = process("start the data plane");
        let (control, theirs) = UnixStream::pair().map_err(&fail)?;
        // Commands are short: it takes them, or it is not to be waited for.
        control
            .set_write_timeout(Some(LAST_PATIENCE))
            .map_err(&fail)?;
        let map = |parent_fd: OwnedFd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        let mappings = vec![
            map(theirs.into(), COMMAND_FD),
            map(socket.duplicate()?, SOCKET_FD),
        ];
        let program = std::env::current_exe().map_err(&fail)?;
        let mut command = Command::new(program);
        command
            .arg("data-plane")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env_clear();
        if let Some(level) = std::env::var_os("RUST_LOG") {
            command.env("RUST_LOG", level);
        } else {
            command.env("RUST_LOG", log::max_level().as_str());
        }
        let collision = |_| fail(io::ErrorKind::InvalidInput.into());
        command.fd_mappings(mappings).map_err(collision)?;
        let child = command.spawn().map_err(&fail)?;
        Ok(Self { child, control })
    }

    /// For commands, from now on.
    pub(crate) fn commands(&self) -> Result<Commands, AttachError> {
        Ok(Commands::new(self.duplicate()?)?)
    }

    /// What it says.
    pub(crate) fn messages(&self) -> Result<Messages, AttachError> {
        Ok(Messages::new(self.duplicate()?))
    }

    fn duplicate(&self) -> Result<UnixStream, AttachError> {
        let fail = process("duplicate the data plane's socket");
        self.control.try_clone().map_err(fail)
    }

    /// Ends it at once. What it had completed is kept by the runtime map.
    pub(crate) fn kill(&mut self) {
        // It fails only when it has ended already.
        let _ = self.child.kill();
    }

    /// Waits for its end, which has begun: its socket is closed, which it never does by itself before
    /// that. One that does not come to it is killed.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus, AttachError> {
        let fail = process("wait for the data plane");
        let deadline = Instant::now() + LAST_PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(&fail)? {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
        }
        log::error!("the data plane says nothing more and does not end, so it is killed");
        self.kill();
        self.child.wait().map_err(fail)
    }
}

/// Whoever has it no more has nobody to tell what becomes of it.
impl Drop for DataPlane {
    fn drop(&mut self) {
        // Neither does anything when it was waited for.
        self.kill();
        let _ = self.child.wait();
    }
}
