//! The attach process itself goes on with another program: it executes that, with its descriptors and what it is at.
//!
//! The data plane notices nothing of it. It is the same process, so whoever watches it (systemd, a shell) sees no end.
//! Its confinement stays too: what was forbidden stays forbidden, whatever the new program would allow itself.
//!
//! # Order
//!
//! 1. The new program has said that it reads what it will be told (`candidate.rs`), and its data plane serves.
//! 2. It is waited for a moment in which nothing is half done here: no command of the data plane is without its answer,
//!    no key is on its way, no client is being answered, nobody changes the disk, and every record is written. Whoever
//!    comes waits in the sockets' queues.
//! 3. What it is at is written down, the keys are put into a socket, and the program is executed. If that fails, all
//!    goes on as before.
//! 4. The new program reads it and goes on (`resume.rs`). A crash before it does is a death of the attach process: the
//!    data plane ends, and the next attach goes on from the runtime map.

use std::convert::Infallible;
use std::ffi::{CString, NulError, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::begin::data_plane::process;
use crate::error::AttachError;
use crate::guard::key_guard::{GuardState, Moment};
use crate::serve::attach_state::{AttachState, Descriptors, SocketState};
use crate::serve::candidate::NewProgram;
use crate::serve::followers::follow_again;
use crate::serve::passed::Parcel;
use crate::serve::supervise::{Stage, Supervision, Watched};
use crate::serve::upgrades::{Step, Upgrade};
use crate::status::Upgraded;
use installation::{CATALOG_VARIABLE, HOST_VARIABLE, given_host_name};
use sandbox::{LOG_FORMAT, log_format};

/// The subcommand by which a program goes on as an attach process.
pub const CONTINUE: &str = "continue-attach";

/// Why the program was not executed.
enum Stays {
    /// Something is half done right now.
    Later,
    /// It cannot be.
    Failed(AttachError),
}

impl<E: Into<AttachError>> From<E> for Stays {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Supervision {
    /// Executes the new program, if there is one and nothing is half done. It goes on here only when it stays as it is.
    pub(crate) fn go_on_replacing(&mut self, watched: &Watched) {
        let Some(Upgrade {
            step: Step::Replacing { until, .. },
            ..
        }) = &self.upgrades.now
        else {
            return;
        };
        let is_late = Instant::now() >= *until;
        let replaced = self.replace(watched);
        // A client that is being answered may wait for it.
        self.turn = None;
        let why = match replaced {
            Ok(never) => match never {},
            Err(Stays::Later) if !is_late => return,
            Err(Stays::Later) => "something of it was under way all the time".into(),
            Err(Stays::Failed(error)) => error.to_string(),
        };
        follow_again(&self.attached.event_hub);
        log::warn!(
            "the attach process of the disk {} goes on with the program that it has: {why}",
            self.attached.name
        );
        self.end_upgrade(Some(why));
    }

    fn replace(&mut self, watched: &Watched) -> Result<Infallible, Stays> {
        let is_served = matches!(self.stage, Stage::Given) && self.serving;
        let attached = &self.attached;
        let is_quiet = attached.recorder.is_idle() && attached.marker.is_idle();
        let Some(guard) = self.guard.state(Moment::now()) else {
            return Err(Stays::Later);
        };
        let leaving = self.upgrades.leaving.as_ref();
        let has_left = leaving.is_none_or(JoinHandle::is_finished);
        if !is_served || !is_quiet || !has_left || self.captured {
            return Err(Stays::Later);
        }
        let turn = self.attached_disk.turns().take();
        self.turn = Some(turn.ok_or(Stays::Later)?);
        // Whoever changes the disk waits for answers that this thread hears, so that is only asked in turn.
        self.attached_disk.check_held()?;
        let control = self.control.clone();
        let _gate = control.close().ok_or(Stays::Later)?;
        if !self.attached.event_hub.park() {
            return Err(Stays::Later);
        }
        let commands = self.attached.commands.clone();
        let frozen = commands.freeze().ok_or(Stays::Later)?;
        let fail = process("execute the new program");
        self.keeping.pause().map_err(&fail)?;
        let executed = self.written(watched, guard, frozen.sent());
        let executed =
            executed.and_then(|(program, state, parcel)| self.execute(&program, &state, parcel));
        // It has failed: what was held back goes on.
        self.keeping.go_on().map_err(&fail)?;
        Err(Stays::Failed(match executed {
            Ok(never) => match never {},
            Err(error) => error,
        }))
    }

    /// Writes down what this process is at.
    fn written(
        &self,
        watched: &Watched,
        guard: GuardState,
        sent: u64,
    ) -> Result<(File, File, Parcel), AttachError> {
        let fail = process("write down what the attach process is at");
        let Some(Upgrade {
            client,
            step: Step::Replacing {
                program, upgraded, ..
            },
            ..
        }) = &self.upgrades.now
        else {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        };
        let NewProgram { file, version } = program;
        // Programs that read version 1 know nothing of what came with version 2.
        let is_known = *version >= 2;
        let mut parcel = Parcel::default();
        let (mut keys, theirs) = UnixStream::pair().map_err(&fail)?;
        let layers = self.attached_disk.send_keys(&mut keys)?;
        let served = self.attached_disk.served(&mut parcel).map_err(&fail)?;
        let client = client.as_ref().map(|client| parcel.put(client));
        let keeping = self.keeping.passed(&mut parcel).map_err(&fail)?;
        let launcher = self.attached.data_plane.launcher();
        let running = launcher.running().map_err(&fail)?;
        let running = running.filter(|_| is_known);
        let data_plane = running.map(|running| parcel.put(running));
        let events = self.attached.event_hub.passed(&mut parcel);
        let (offered, events) = events.map_err(&fail)?;
        let events = match is_known {
            true => events,
            false => events.without_notifier(),
        };
        let descriptors = Descriptors {
            commands: parcel
                .put(self.attached.data_plane.stream()?)
                .map_err(&fail)?,
            launcher: parcel.put(&*launcher).map_err(&fail)?,
            data_plane: data_plane.transpose().map_err(&fail)?,
            socket: parcel.put(&self.socket).map_err(&fail)?,
            control: parcel.put(&*self.control).map_err(&fail)?,
            keep: keeping.keep,
            region: keeping.region,
            runtime: served.runtime,
            claim: served.claim,
            witness: served.witness.filter(|_| is_known),
            keys: parcel.put(&theirs).map_err(&fail)?,
            end: parcel.put(&watched.signals.end).map_err(&fail)?,
            hangup: parcel.put(&watched.signals.hangup).map_err(&fail)?,
            client: client.transpose().map_err(&fail)?,
        };
        let state = AttachState {
            disk: self.attached.name.clone(),
            program: self.upgrades.program.clone(),
            options: self.guard.options(),
            setup: self.setup.clone(),
            header: served.header,
            top: served.top,
            size: served.size,
            limits: served.limits,
            runtime_path: self.attached_disk.runtime_path().into(),
            failed_sync: self.failed_sync,
            guard,
            layers,
            offered,
            events,
            restarts: self.restarts,
            sent,
            heard: watched.messages.rest().to_owned(),
            launcher: launcher.process(),
            socket: SocketState {
                listening: self.socket.is_listening(),
                bound: self.socket.bound(),
            },
            control_path: self.control.path().into(),
            upgraded: Upgraded {
                attach_kept: None,
                ..upgraded.clone()
            },
            kept: keeping.kept,
            descriptors,
        };
        let program = file.try_clone().map_err(&fail)?;
        Ok((program, state.write(*version).map_err(&fail)?, parcel))
    }

    /// Executes the program. Returns only when that fails.
    fn execute(
        &self,
        program: &File,
        state: &File,
        mut parcel: Parcel,
    ) -> Result<Infallible, AttachError> {
        let fail = process("execute the new program");
        let number = parcel.put(state).map_err(&fail)?.number();
        let arguments = self.arguments(number).map_err(|e| fail(e.into()))?;
        let environment = environment().map_err(|e| fail(e.into()))?;
        let blocked = Blocked::begin().map_err(&fail)?;
        parcel.stay_open(true).map_err(&fail)?;
        let error = execute(program, &arguments, &environment);
        let _ = parcel.stay_open(false);
        drop(blocked);
        Err(fail(error))
    }

    /// The command line: whoever lists processes sees which disk it is.
    fn arguments(&self, state: RawFd) -> Result<Vec<CString>, NulError> {
        let number = state.to_string();
        let verbose = match log::max_level() {
            log::LevelFilter::Off | log::LevelFilter::Error | log::LevelFilter::Warn => None,
            log::LevelFilter::Info => Some("-v"),
            log::LevelFilter::Debug => Some("-vv"),
            log::LevelFilter::Trace => Some("-vvv"),
        };
        let mut words: Vec<OsString> = vec!["sealdisk".into()];
        words.extend(self.place.options());
        words.extend([CONTINUE, &self.attached.name, "--state", &number].map(OsString::from));
        words.extend(verbose.map(OsString::from));
        let words = words.into_iter();
        words.map(|word| CString::new(word.into_vec())).collect()
    }
}

/// Signals that wait until there is somebody to hear them again.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn begin() -> io::Result<Self> {
        let set = heard();
        let mut before = set;
        // SAFETY: both sets live through the call.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) } {
            0 => Ok(Self(before)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the kernel gave.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

/// Has signals heard again that the program before this one has blocked.
pub(crate) fn unblock_signals() {
    let set = heard();
    // SAFETY: the set lives through the call.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Whether a signal that ends an attach process waits to be heard.
pub fn is_told_to_end() -> bool {
    let mut waiting = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call makes it a set, or fails; only then it is looked at.
    unsafe {
        libc::sigpending(waiting.as_mut_ptr()) == 0
            && [libc::SIGTERM, libc::SIGINT]
                .iter()
                .any(|signal| libc::sigismember(waiting.as_ptr(), *signal) == 1)
    }
}

/// The signals that an attach process hears.
fn heard() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call makes it an empty set, to which the others add.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// That of this process, with the form of the log and the name of the host as they were chosen, by whatever way. Where the
/// catalog is the arguments say.
fn environment() -> Result<Vec<CString>, NulError> {
    let format = log_format().map(|format| (LOG_FORMAT, format));
    let host = given_host_name().map(|name| (HOST_VARIABLE, name));
    let chosen: Vec<(&str, &str)> = format.into_iter().chain(host).collect();
    let is_chosen = |name: &OsString| chosen.iter().any(|(other, _)| name == other);
    let others =
        std::env::vars_os().filter(|(name, _)| !is_chosen(name) && name != CATALOG_VARIABLE);
    let chosen = chosen
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()));
    let variables = others
        .chain(chosen)
        .map(|(name, value): (OsString, OsString)| {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.extend(value.into_vec());
            CString::new(variable)
        });
    variables.collect()
}

/// Executes the program of a file in the place of this one. Why it does not.
fn execute(program: &File, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let ended = strings.iter().map(|string| string.as_ptr());
        ended.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both are lists of strings that end with a null pointer, and live through the call.
    unsafe {
        libc::fexecve(
            program.as_raw_fd(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    io::Error::last_os_error()
}
