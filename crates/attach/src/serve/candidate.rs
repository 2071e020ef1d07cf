//! A data plane of another program, which is prepared beside the one that serves.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::begin::data_plane::DataPlane;
use crate::error::AttachError;
use crate::serve::attach_state::{VERSIONS, common_version};
use installation::{CATALOG_VARIABLE, Place};
use protocol::{KeepSocket, Messages, Waiter, prepare};
use sandbox::Launcher;

/// How long it may take until one is prepared, on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one is prepared with.
pub(crate) struct Preparation {
    /// The file of the program.
    pub(crate) program: PathBuf,
    /// Of the installation, which the program has to be able to use.
    pub(crate) place: Place,
    /// The launcher of the program that serves.
    pub(crate) launcher: Arc<Launcher>,
    /// The socket of the frontends, listening or connected.
    pub(crate) socket: OwnedFd,
    /// The memory that outlives a data plane.
    pub(crate) region: OwnedFd,
    /// Queues that are offered.
    pub(crate) queues: u16,
}

/// The program of a candidate.
pub(crate) struct NewProgram {
    pub(crate) file: File,
    /// The version in which it is told what an attach process is at.
    pub(crate) version: u16,
}

/// One that is prepared, and needs nothing but the disk.
pub(crate) struct Candidate {
    pub(crate) data_plane: DataPlane,
    pub(crate) keep: KeepSocket,
    pub(crate) messages: Messages,
    /// The version of its program.
    pub(crate) version: String,
    pub(crate) program: NewProgram,
    /// The launcher that has started its launcher.
    by: Arc<Launcher>,
}

impl Preparation {
    /// Starts a launcher of the program, by that a data plane, and waits until this is prepared. Nothing of it is left
    /// when it is not.
    ///
    /// # Errors
    /// [`AttachError`]: why it cannot take the place of the one that serves.
    pub(crate) fn make(self) -> Result<Candidate, AttachError> {
        let deadline = Instant::now() + PATIENCE;
        // From here on it is this file, whatever comes to its path.
        let mut options = File::options();
        // A FIFO would wait for whoever writes to it.
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let program = options
            .open(&self.program)
            .map_err(|source| AttachError::Program {
                path: self.program.clone(),
                source,
            })?;
        if !program.metadata().is_ok_and(|found| found.is_file()) {
            return Err(AttachError::Program {
                path: self.program,
                source: io::Error::other("it is not a file"),
            });
        }
        let by = self.launcher.clone();
        let launcher = Arc::new(by.succeed(&program)?);
        let prepared = self.prepared(&launcher, program, deadline);
        if prepared.is_err() {
            // It may do nothing of what it is told, so it is not asked to end.
            by.abandon(&launcher);
        }
        prepared
    }

    fn prepared(
        self,
        launcher: &Arc<Launcher>,
        program: File,
        deadline: Instant,
    ) -> Result<Candidate, AttachError> {
        let version = version_read(&program, &self.program, &self.place, deadline)?;
        let program = NewProgram {
            file: program,
            version,
        };
        let left = || deadline.saturating_duration_since(Instant::now());
        let spawned = DataPlane::spawn(launcher.clone(), self.socket, self.region, left());
        let (mut data_plane, keep) = spawned?;
        let prepared = || {
            let mut messages = data_plane.messages()?;
            let stream = data_plane.stream()?;
            let version = prepare(&stream, &mut messages, self.queues, deadline)?;
            Ok((messages, version.into()))
        };
        match prepared() {
            Ok((messages, version)) => Ok(Candidate {
                data_plane,
                keep,
                messages,
                version,
                program,
                by: self.launcher,
            }),
            Err(error) => {
                data_plane.abandon();
                Err(error)
            }
        }
    }
}

/// The version in which a program reads what an attach process is at: it is asked, as this process would execute it. It
/// opens the installation for that, as it has to when it takes over.
fn version_read(
    program: &File,
    path: &Path,
    place: &Place,
    deadline: Instant,
) -> Result<u16, AttachError> {
    let fail = |source| AttachError::Program {
        path: path.to_owned(),
        source,
    };
    let mut asked = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    asked
        .arg0("sealdisk")
        .arg(VERSIONS)
        .args(place.options())
        .env_remove(CATALOG_VARIABLE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut asked = asked.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => fail(io::Error::other(
            "the attach process may start only what lies beside its own program, or where programs are installed: put \
             it there",
        )),
        _ => fail(error),
    })?;
    let said = asked.stdout.take().ok_or(io::ErrorKind::BrokenPipe);
    let said = said.map_err(|kind| fail(kind.into()))?;
    let waiter = Waiter::new().map_err(fail)?;
    waiter.watch(&said, 0).map_err(fail)?;
    let has_spoken = waiter.wait_until(deadline).map_err(fail)?.is_some();
    let version = match has_spoken {
        true => common_version(said),
        false => Err("it does not say in time what it can read of an attach process".into()),
    };
    // What it had to say it has said.
    let _ = asked.kill();
    let _ = asked.wait();
    version.map_err(|why| fail(io::Error::other(why)))
}

impl Candidate {
    /// Ends it, and its launcher.
    pub(crate) fn give_up(mut self) {
        self.data_plane.abandon();
        self.by.abandon(&self.data_plane.launcher());
    }
}
