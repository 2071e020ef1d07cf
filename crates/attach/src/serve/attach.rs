//! An attach from its beginning to its end.
//!
//! # Order
//!
//! The disk is claimed first, so that everything after happens once at a time. The socket is bound, and the
//! data plane's process started, before anything on disk changes; what fails after that takes the change
//! back, so a refused attach leaves nothing behind. The socket gets its name when the
//! data plane has all that it needs, so that nobody connects to what cannot serve. The runtime map is
//! stamped with the new attach id before the header is: it counts for the old id as well as the new
//! one, so a crash between the two loses nothing. `session.rs` of the disks has what the header says from then
//! on, and when that ends. The claim is kept until then, so that nobody else begins in between.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::begin::confine::{changed, confine, untrusted};
use crate::begin::data_plane::DataPlane;
use crate::begin::open::{DiskOf, Opened, open};
use crate::begin::request::AttachRequest;
use crate::begin::setup::top_of;
use crate::begin::socket::Socket;
use crate::begin::take::TakeOptions;
use crate::begin::{cpus, data_plane, host_memory};
use crate::error::AttachError;
use crate::guard::checker::Checker;
use crate::guard::key_guard::{Finding, Guard, Moment};
use crate::guard::records::{Operation, Recorder, record};
use crate::guard::{checker, records};
use crate::serve::alarm_watch::AlarmWatch;
use crate::serve::attached_disk::{AttachedDisk, Held, Now};
use crate::serve::control_socket::{ControlSocket, Handles};
use crate::serve::event_hub::{EventHub, offered};
use crate::serve::event_targets;
use crate::serve::jobs::{self, Jobs};
use crate::serve::keeping::{Keeping, raise_file_limit};
use crate::serve::kept_keys::KeptKeys;
use crate::serve::lives::Lives;
use crate::serve::marker::Marker;
use crate::serve::migration::{self, Migration};
use crate::serve::restart::GREETING_PATIENCE;
use crate::serve::stall_watch::StallWatch;
use crate::serve::supervise::{Attached, Ended, Signals, Stage, Supervision, Watched};
use crate::serve::upgrades::Upgrades;
use crate::status::{DiskHold, EventKind, GuardOptions, Reason};
use disks::{self, Awaiting, Disk, DiskError};
use installation::{Installation, files, runtime_map};
use keys::{DekStack, harden_process, with_wiped_call_stack};
use protocol::{Commands, DiskFiles, KeepSocket, ProtocolError, Setup, hangup_pipe, signal_pipe};
use sandbox::Launcher;
use traces::Span;

/// The subcommand that is the launcher of data planes.
pub const LAUNCHER: &str = "data-plane-launcher";

/// Serves a disk until a signal, or until the connection ends that it was given.
///
/// # Errors
/// [`AttachError`]: the disk was not served, or is not any more.
pub fn attach(installation: Installation, request: AttachRequest) -> Result<(), AttachError> {
    let span = Span::of_command("attach");
    span.set("sealdisk.disk", request.disk.clone());
    span.came_to(attach_traced(installation, request, &span), |error| {
        error.code()
    })
}

/// `span` is ended when the disk is served.
fn attach_traced(
    installation: Installation,
    mut request: AttachRequest,
    span: &Span,
) -> Result<(), AttachError> {
    let entered = span.enter();
    harden_process().map_err(DiskError::Key)?;
    raise_file_limit();
    // Before anything can take long: a signal during the attach is then not lost.
    let signals = signals().map_err(data_plane::process("handle signals"))?;
    let program = own_program().map_err(data_plane::process("find this program"))?;
    host_memory::check(request.memory)?;
    cpus::check(&request.cpus)?;
    let disk = find(&installation, &request.disk)?;
    if let Some(host) = &request.take_over_from {
        request.unflushed = disk.take_over_from(host)?;
    }
    let changed = changed(&installation, &disk, &request)?;
    // A thread of its own would keep what this one gives up.
    installation.rest();
    // It is to have no key, and nothing forbidden.
    let launcher = Launcher::start(LAUNCHER, &request.launch, untrusted(&changed))?;
    let launcher = Arc::new(launcher);
    // The socket may be in it.
    files::passable_dir(
        &request.runtime_dir,
        request.socket.is_for_others_in(&request.runtime_dir),
    )
    .map_err(DiskError::from)?;
    // Before a key is here, and before this process may start nothing of the kind.
    request.socket.keep_private()?;
    let events_to = event_targets::start(&request, &program);
    let events_to = events_to.map_err(data_plane::process("start what tells of events"))?;
    confine(&changed, &program, &request)?;
    let opened = with_wiped_call_stack(|| open(&installation, &disk, &request, launcher))?;
    let served = Served {
        installation: Arc::new(installation),
        disk: Arc::new(disk),
        options: request.guard,
        program,
    };
    drop(entered);
    served.run(opened, TakeOptions::of(&request), signals, events_to, span)
}

/// What is heard of signals.
///
/// # Errors
/// What the kernel says.
pub(crate) fn signals() -> std::io::Result<Signals> {
    Ok(Signals {
        end: signal_pipe()?,
        hangup: hangup_pipe()?,
    })
}

/// The path from which this process was started. What is there by now may be another program.
fn own_program() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let name = path
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(name.map_or_else(|| path.clone(), PathBuf::from))
}

/// What the data plane is given.
struct Give {
    setup: Setup,
    /// The disk, unless it is waited for.
    disk: Option<GivenDisk>,
    key_url: String,
    /// Where the DEKs are kept.
    keys: Arc<KeptKeys>,
    /// Where it has things kept.
    keep: KeepSocket,
    keeping: Keeping,
}

struct GivenDisk {
    files: DiskFiles,
    deks: DekStack,
}

/// What serves the disk beside its data plane.
pub(crate) struct Beside {
    pub(crate) commands: Arc<Commands>,
    pub(crate) attached_disk: Arc<AttachedDisk>,
    pub(crate) control: Arc<ControlSocket>,
    pub(crate) event_hub: Arc<EventHub>,
    /// How the disk is taken.
    pub(crate) options: TakeOptions,
    /// Says that it is waited for.
    pub(crate) awaiting: Option<Awaiting>,
    /// The process that tells of the disk's events, unless it follows them already.
    pub(crate) events_to: Option<(UnixStream, Child)>,
}

/// What the guard asks the vault about.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) installation: Arc<Installation>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) options: GuardOptions,
    /// Where this program is, or was.
    pub(crate) program: PathBuf,
}

impl Served {
    fn run(
        self,
        opened: Opened,
        options: TakeOptions,
        signals: Signals,
        events_to: Option<(UnixStream, Child)>,
        span: &Span,
    ) -> Result<(), AttachError> {
        let entered = span.enter();
        let keys = Arc::new(KeptKeys::new());
        let mut now = Now {
            top: top_of(&opened.setup)?,
            size: opened.setup.size(),
            key: None,
            held: None,
            limits: opened.setup.limits,
            header: opened.header,
        };
        let runtime_path = runtime_map(&options.runtime_dir, now.header.disk);
        let top = now.header.top().ok_or(AttachError::NoLayer)?;
        let mut key_url = top.envelope.key_url();
        let (mut given, mut awaiting, mut claimed, mut recovered) = (None, None, None, false);
        match opened.disk {
            DiskOf::Another(waits) => awaiting = Some(waits),
            DiskOf::This(taken) => {
                let taken = *taken;
                let (runtime, claim) = (taken.begun.runtime, taken.claim);
                let held = Held::of(&self.disk, &now.header, runtime, claim);
                (now.key, now.held) = (Some(taken.begun.key), Some(held));
                (key_url, claimed, recovered) =
                    (taken.key_url, Some(taken.at), taken.begun.recovered);
                let files = taken.files;
                given = taken.deks.map(|deks| GivenDisk { files, deks });
            }
        }
        let commands = opened.commands;
        let (disk, told) = (self.disk.clone(), commands.clone());
        let attached_disk = AttachedDisk::new(disk, told, keys.clone(), runtime_path, now);
        let attached_disk = Arc::new(attached_disk);
        let give = Give {
            setup: opened.setup,
            disk: given,
            key_url,
            keys,
            keep: opened.keep,
            keeping: opened.keeping,
        };
        let process = (opened.data_plane, opened.socket);
        let guard = self.guard(&give);
        let hold = match give.disk {
            Some(_) => DiskHold::Held,
            None => DiskHold::Awaited,
        };
        let offered = offered(&give.setup, opened.id, hold, self.installation.id());
        let event_hub = Arc::new(EventHub::new(guard.status(), offered));
        if let Some(at) = claimed {
            event_hub.log_hold(&self.disk, EventKind::LockTaken, at, None);
        }
        let beside = Beside {
            commands,
            attached_disk: attached_disk.clone(),
            control: Arc::new(opened.control),
            event_hub: event_hub.clone(),
            options,
            awaiting,
            events_to,
        };
        let begun = self.begin(give, guard, process, signals, beside);
        let (supervision, watched) = begun.inspect_err(|_| {
            // What a process that died had not flushed is still to be had from its map.
            if !recovered && let Err(error) = attached_disk.detached() {
                log::warn!("the header says that the disk is attached: {error}");
            }
            self.let_go(&attached_disk, &event_hub);
        })?;
        drop(entered);
        span.end();
        self.live(supervision, watched, &attached_disk, recovered)
    }

    /// Gives up the claim of the disk, if this process has it.
    fn let_go(&self, attached_disk: &AttachedDisk, event_hub: &EventHub) {
        attached_disk.let_go(|| {
            let now = OffsetDateTime::now_utc();
            event_hub.log_hold(&self.disk, EventKind::LockReleased, now, None);
        });
    }

    /// The guard of the key, which waits with the attach for the disk.
    fn guard(&self, give: &Give) -> Guard {
        let (key_url, now) = (give.key_url.clone(), Moment::now());
        match give.disk {
            Some(_) => Guard::new(self.options, key_url, now),
            None => Guard::waiting(self.options, key_url, now),
        }
    }

    /// Supervises the data plane until its end, and puts everything away. `recovered` is whether the runtime map had
    /// something before.
    ///
    /// # Errors
    /// [`AttachError`]: the disk was not served, or not all of it is durable.
    pub(crate) fn live(
        &self,
        mut supervision: Supervision,
        watched: Watched,
        attached_disk: &AttachedDisk,
        recovered: bool,
    ) -> Result<(), AttachError> {
        let ended = supervision.run(watched);
        let control = supervision.control.clone();
        let event_hub = supervision.attached.event_hub.clone();
        // A change of layers, or a migration, that is under way has files to remove, or gives up.
        let _turn = attached_disk.turns().wait();
        let (served, failed) = (supervision.served, supervision.failed_sync);
        supervision.close();
        control.finish();
        let clean = matches!(ended, Ok(Ended::Flushed)) && failed.is_none();
        let never_served = matches!(ended, Ok(Ended::Refused(_))) && !served && !recovered;
        // Everything is in the durable map, or nothing was ever written.
        let noted = match clean || never_served {
            true => attached_disk.detached(),
            false => {
                attached_disk.note_lost_at_end();
                Ok(())
            }
        };
        self.let_go(attached_disk, &event_hub);
        // Threads that may outlive this one have the socket too.
        control.names().remove();
        noted?;
        if let Some(file) = failed {
            return Err(AttachError::SyncFailed {
                name: attached_disk.name().into(),
                file,
                map: attached_disk.runtime_path().into(),
            });
        }
        match ended? {
            Ended::Flushed => Ok(()),
            Ended::Refused(reason) if served => Err(AttachError::NotFlushed {
                reason,
                map: attached_disk.runtime_path().into(),
            }),
            Ended::Refused(reason) => Err(AttachError::Refused(reason)),
            Ended::Died(status) if !served => Err(AttachError::DiedEarly(status)),
            Ended::Died(status) => Err(AttachError::Died(status)),
        }
    }

    /// Starts all that serves the disk beside the data plane, and then gives that what it needs, once this
    /// is on record. When anything of it fails the data plane has ended and has served nobody.
    fn begin(
        &self,
        give: Give,
        guard: Guard,
        (data_plane, socket): (DataPlane, Socket),
        signals: Signals,
        mut beside: Beside,
    ) -> Result<(Supervision, Watched), AttachError> {
        if let Some(notifier) = beside.events_to.take() {
            let followed = event_targets::follow(notifier, &beside.event_hub);
            followed.map_err(data_plane::process("tell of events"))?;
        }
        let (commands, attached_disk) = (beside.commands.clone(), beside.attached_disk.clone());
        // Whoever has a command for the data plane waits until that has its setup.
        let opening = commands.open();
        let mut supervision = self.clone().supervision(
            (guard, give.keys.clone(), give.setup.clone()),
            (data_plane, socket, give.keeping),
            beside,
        )?;
        let mut watched = supervision.watch(signals)?;
        self.answer_others(&supervision, &attached_disk)?;
        let span = Span::begin("hand over to data plane");
        let _entered = span.enter();
        let given = watched
            .messages
            .greet(Instant::now() + GREETING_PATIENCE)
            .map_err(AttachError::from)
            .and_then(|version| {
                log::debug!("the data plane and this use protocol {version}");
                let Some(GivenDisk { files, deks }) = &give.disk else {
                    return Ok(opening.wait(give.setup)?);
                };
                let (installation, disk) = (&self.installation, &self.disk);
                record(installation, disk, Operation::HandOver, &give.key_url)
                    .map_err(AttachError::Audit)?;
                let layers = give.setup.stack.layers.iter().map(|layer| layer.id);
                give.keys.hold(layers.collect(), deks);
                Ok(opening.serve(give.setup, files, Some(deks))?)
            })
            .and_then(|()| {
                let listening = supervision.keeping.listen(give.keep);
                listening.map_err(data_plane::process("start the thread of what is kept"))
            });
        match span.came_to(given, |error| error.code()) {
            Ok(()) => Ok((supervision, watched)),
            Err(error) => Err(why_refused(
                error,
                &mut watched,
                &mut supervision.attached.data_plane,
            )),
        }
    }

    /// Has clients of the control socket answered, and alarms looked for.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn answer_others(
        &self,
        supervision: &Supervision,
        attached_disk: &Arc<AttachedDisk>,
    ) -> Result<(), AttachError> {
        let handles = Handles {
            event_hub: supervision.attached.event_hub.clone(),
            jobs: supervision.jobs.clone(),
            upgrades: supervision.upgrades.desk.clone(),
            installation: self.installation.clone(),
            disk: self.disk.clone(),
            attached_disk: attached_disk.clone(),
            counted: supervision.keeping.counted().clone(),
        };
        let watch = AlarmWatch {
            installation: self.installation.clone(),
            disk: self.disk.clone(),
            attached_disk: attached_disk.clone(),
            event_hub: supervision.attached.event_hub.clone(),
        };
        let watched = watch.spawn();
        watched.map_err(data_plane::process("look for alarms"))?;
        let watch = StallWatch {
            state_dir: self.installation.state_dir().into(),
            attached_disk: attached_disk.clone(),
            commands: supervision.attached.commands.clone(),
            event_hub: supervision.attached.event_hub.clone(),
            counted: supervision.keeping.counted().clone(),
        };
        let watched = watch.spawn();
        watched.map_err(data_plane::process("watch whether requests end"))?;
        let served = supervision.control.serve(Arc::new(handles));
        served.map_err(data_plane::process("serve the control socket"))
    }

    /// Starts the thread of the disk's jobs, and that of its migrations.
    fn helpers(
        &self,
        keys: &Arc<KeptKeys>,
        setup: &Setup,
        beside: Beside,
    ) -> Result<(Jobs, Migration), AttachError> {
        let jobs = Jobs::spawn(jobs::Work {
            installation: self.installation.clone(),
            disk: self.disk.clone(),
            attached_disk: beside.attached_disk.clone(),
            commands: beside.commands.clone(),
            event_hub: beside.event_hub.clone(),
            trouble: RefCell::default(),
        });
        let jobs = jobs.map_err(data_plane::process("start the thread of the disk's jobs"))?;
        let migration = Migration::spawn(migration::Work {
            installation: self.installation.clone(),
            disk: self.disk.clone(),
            attached_disk: beside.attached_disk,
            commands: beside.commands,
            keys: keys.clone(),
            event_hub: beside.event_hub,
            control: beside.control,
            jobs: jobs.clone(),
            options: TakeOptions {
                guest_goes_on: true,
                ..beside.options
            },
            setup: setup.clone(),
            on_revoke: self.options.on_revoke,
            has_begun: beside.awaiting.is_none().into(),
            awaiting: Mutex::new(beside.awaiting),
        });
        let fail = data_plane::process("start the thread of migrations");
        Ok((jobs, migration.map_err(fail)?))
    }

    /// Starts the threads that the guard works through.
    ///
    /// # Errors
    /// [`AttachError::Process`].
    pub(crate) fn supervision(
        self,
        (guard, keys, setup): (Guard, Arc<KeptKeys>, Setup),
        (data_plane, socket, keeping): (DataPlane, Socket, Keeping),
        beside: Beside,
    ) -> Result<Supervision, AttachError> {
        let fail = data_plane::process("start the guard of the disk's key");
        let (name, id) = (self.disk.name().to_owned(), self.disk.id());
        let attached_disk = beside.attached_disk.clone();
        let (marked, supervised) = (attached_disk.clone(), attached_disk.clone());
        let (commands, control) = (beside.commands.clone(), beside.control.clone());
        let event_hub = beside.event_hub.clone();
        let (jobs, migration) = self.helpers(&keys, &setup, beside)?;
        let place = self.installation.place().clone();
        let upgrades = Upgrades::new(self.program.clone(), data_plane.launcher());
        let upgrades = upgrades.map_err(&fail)?;
        let installation = self.installation.clone();
        let recorder = Recorder::spawn(move |record| records::append_done(&installation, record));
        let recorder = recorder.map_err(&fail)?;
        let counting = event_hub.clone();
        let checker = Checker::spawn(move |with_key| {
            let finding = self.check(attached_disk.top(), with_key);
            counting.count_check(&finding);
            finding
        });
        let checker = checker.map_err(&fail)?;
        let marker = Marker::spawn(marked).map_err(&fail)?;
        let attached = Attached {
            commands,
            keys,
            data_plane,
            checker,
            recorder,
            marker,
            event_hub,
            migration,
            disk: id,
            name,
        };
        Ok(Supervision {
            guard,
            attached,
            socket,
            served: false,
            failed_sync: None,
            told_not_shared: None,
            place,
            attached_disk: supervised,
            control,
            jobs,
            setup,
            keeping,
            keep: None,
            lives: Lives::new(Instant::now()),
            stage: Stage::Given,
            reason: None,
            serving: false,
            captured: false,
            restarts: 0,
            last_death: None,
            turn: None,
            upgrades,
            handed_over: false,
        })
    }

    /// Asks the vault. A DEK that is wanted is handed out only once that is recorded.
    fn check(&self, top: Uuid, with_key: bool) -> Finding {
        let span = Span::begin("check key");
        span.set("sealdisk.disk", self.disk.name().to_owned());
        let _entered = span.enter();
        let finding = checker::check(&self.installation, &self.disk, top, with_key);
        if let Finding::Refused(reason) | Finding::Unknown(reason) = &finding {
            span.failed(&reason.code);
        }
        let Finding::Granted {
            key_url,
            keys: Some(_),
        } = &finding
        else {
            return finding;
        };
        match record(&self.installation, &self.disk, Operation::Restore, key_url) {
            Ok(()) => finding,
            Err(error) => Finding::Withheld(Reason {
                code: "AuditLog".into(),
                message: error,
            }),
        }
    }
}

/// Why a data plane did not take its disk: it may have said why it ended.
fn why_refused(
    error: AttachError,
    watched: &mut Watched,
    data_plane: &mut DataPlane,
) -> AttachError {
    let AttachError::Protocol(error) = error else {
        return error;
    };
    match (watched.last_words(), error) {
        (Some(why), _) => AttachError::Refused(why),
        (None, ProtocolError::Ended(_)) => match data_plane.wait() {
            Ok(status) => AttachError::DiedEarly(status),
            Err(error) => error,
        },
        (None, error) => error.into(),
    }
}

/// The disk of that name, or whose directory that is.
fn find(installation: &Installation, disk: &str) -> Result<Disk, DiskError> {
    if !disk.contains('/') {
        return Disk::find(installation, disk);
    }
    let directory = std::fs::canonicalize(disk)
        .map_err(|e| DiskError::Argument(format!("no disk is in {disk}: {e}")))?;
    let disks = installation.catalog().disks()?;
    let here = |row: &&installation::catalog::Stored<installation::catalog::DiskRecord>| {
        std::fs::canonicalize(&row.record.directory).is_ok_and(|d| d == directory)
    };
    match disks.iter().find(here) {
        Some(row) => Disk::find(installation, &row.record.name),
        None => Err(DiskError::Argument(format!(
            "no disk is in {disk}; `disk list` names them"
        ))),
    }
}
