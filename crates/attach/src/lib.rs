//! Attaching a disk: from a name to a data plane process that serves guests.
//!
//! This process unwraps the DEK, opens the files, hands both to the data plane over inherited
//! descriptors and a socket, and forgets the DEK. It stays for as long as the disk is attached: it
//! guards the disk's key (`guard.rs`), waits for a signal or for the end of the data plane, and puts
//! things away afterwards.
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

mod attached_disk;
mod checker;
mod control_socket;
mod data_plane;
mod error;
mod event_hub;
mod guard;
#[cfg(test)]
mod guard_tests;
mod host_memory;
mod jobs;
mod layer_changes;
mod marker;
mod records;
mod socket;
mod status;
mod supervise;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use disks::{self, Disk, DiskError, Left, Unflushed};
use installation::envelope::{
    FailedSync, Header, HeaderFile, HeaderKey, HeaderLock, HeaderPayload,
};
use installation::{Installation, files, goes_at_logout, runtime_map};
use keys::{DekStack, harden_process, with_wiped_call_stack};
use protocol::{
    Commands, Discard, DiskFiles, Limits, OnFull, ProtocolError, Setup, Stack, StackLayer,
    signal_pipe,
};
use volume::pipeline::PipelineError;
use volume::store::LayerFile;
use volume::{CacheMode, Geometry, RuntimeMap, check_data_file};

use attached_disk::{AttachedDisk, Now};
use checker::Checker;
use control_socket::{ControlSocket, Handles};
use data_plane::DataPlane;
use event_hub::EventHub;
use guard::{Finding, Guard, Moment};
use jobs::{Jobs, Work};
use marker::Marker;
use records::{Operation, Record, Recorder};
use supervise::{Attached, Ended, Supervision, Watched};

pub use control_socket::{events, key_status, send_layer_op, set_limits};
pub use error::{AttachError, Refusal};
pub use layer_changes::LayerChanges;
pub use socket::{Socket, SocketAccess, SocketSource};
pub use status::{
    DekState, Event, EventKind, GuardOptions, JobStatus, KeyState, KeyStatus, Offered, Reason,
};

/// How long a disk that is in use is waited for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a data plane may take to start and to say which protocol it speaks, on a busy host.
const GREETING_PATIENCE: Duration = Duration::from_secs(60);

/// What is to be attached, and how.
pub struct AttachRequest {
    /// The disk's name, or its directory.
    pub disk: String,
    /// Where the frontend connects.
    pub socket: SocketSource,
    /// Refuse the guest's writes.
    pub read_only: bool,
    /// What becomes of blocks that the guest discards.
    pub discard: Discard,
    /// What becomes of requests that find the host's storage full.
    pub on_full: OnFull,
    /// Queues offered.
    pub num_queues: u16,
    /// Entries of a queue that a request may fill.
    pub queue_size: u16,
    /// Bytes that requests under way may take, over all queues; at least `dataplane::least_memory`.
    pub memory: u64,
    /// Take buffers from the huge pages that the host has set aside.
    pub huge_pages: bool,
    /// Busy-poll time of a queue in microseconds; 0 disables it.
    pub poll_us: u32,
    /// What the disk may do at most.
    pub limits: Limits,
    /// How its key is guarded.
    pub guard: GuardOptions,
    /// The serial number that the guest sees; else one made of the disk's id.
    pub serial: Option<String>,
    /// A directory on tmpfs.
    pub runtime_dir: PathBuf,
    /// What becomes of the attach when the runtime map of the last one is needed and lost.
    pub unflushed: Unflushed,
    /// The cache mode with which the guest begins; else the one that the last guest chose.
    pub cache: Option<CacheMode>,
}

/// Everything that the data plane is given.
struct Opened {
    setup: Setup,
    deks: DekStack,
    /// The key version that unwrapped the top layer's.
    key_url: String,
    files: DiskFiles,
    /// A second handle of the top layer's data, which keeps the disk claimed.
    claim: LayerFile,
    socket: Socket,
    /// Where others ask and tell this attach something.
    control: ControlSocket,
    /// The process, which waits for all this.
    data_plane: DataPlane,
    commands: Arc<Commands>,
    begun: Begun,
}

/// What the header and the runtime directory have of an attach once it has begun.
struct Begun {
    /// Authenticates headers of the top layer.
    key: HeaderKey,
    runtime: RuntimeMap,
    runtime_path: PathBuf,
    /// The runtime map has what a process that died had not flushed.
    recovered: bool,
}

/// Serves a disk until a signal, or until the connection ends that it was given.
///
/// # Errors
/// [`AttachError`]: the disk was not served, or is not any more.
pub fn attach(installation: Installation, request: AttachRequest) -> Result<(), AttachError> {
    harden_process().map_err(DiskError::Key)?;
    // Before anything can take long: a signal during the attach is then not lost.
    let signals = signal_pipe().map_err(data_plane::process("handle signals"))?;
    host_memory::check(request.memory)?;
    let disk = find(&installation, &request.disk)?;
    let opened = with_wiped_call_stack(|| open(&installation, &disk, &request))?;
    let served = Served {
        installation: Arc::new(installation),
        disk: Arc::new(disk),
        options: request.guard,
    };
    served.run(opened, &signals)
}

/// Unwraps the DEK, opens the files and the socket, and stamps the header.
fn open(
    installation: &Installation,
    disk: &Disk,
    request: &AttachRequest,
) -> Result<Opened, AttachError> {
    let header_file = disk.header_file()?;
    let claim = claim(disk, &header_file)?;
    let header = header_file.read().map_err(DiskError::from)?;
    let (header, deks) = disk.unlock_all(installation, header)?;
    let top = header.top().ok_or(AttachError::NoLayer)?.clone();
    let kept = claim.try_clone().map_err(PipelineError::from);
    let kept = kept.map_err(DiskError::from)?;
    let files = disks::open_files(claim, &header, |layer| disk.layer_paths(layer))?;
    // The socket may be in it.
    files::passable_dir(
        &request.runtime_dir,
        request.socket.is_for_others_in(&request.runtime_dir),
    )
    .map_err(DiskError::from)?;
    let socket = Socket::open(&request.socket)?;

    let control = ControlSocket::bind(&request.runtime_dir, header.disk)?;
    let data_plane = DataPlane::spawn(&socket)?;
    let commands = Arc::new(data_plane.commands()?);
    // Only now, under its lock, the header of this moment: it may have been wrapped anew, or have
    // another size, meanwhile.
    let mut lock = header_file.lock().map_err(DiskError::from)?;
    let newest = lock
        .read()
        .and_then(|h| h.authenticate(deks.top()))
        .map_err(DiskError::from)?;
    disk.sweep_gone(&newest);
    let geometry = disks::geometry(&newest, &top)?;
    check_data_file(files.data.file(), &geometry).map_err(DiskError::from)?;
    if goes_at_logout(&request.runtime_dir) {
        log::warn!(
            "{} goes when its user logs out, and with it what the guest has not flushed: use \
             `loginctl enable-linger`, or another --runtime-dir",
            request.runtime_dir.display()
        );
    }
    let left = disk.left(&newest, &request.runtime_dir, request.unflushed)?;
    if let Left::OtherBoot(session) = &left {
        disks::log_other_boot(disk.name(), session);
    }
    let failed = disk.failed_sync(&newest, &left)?;
    let stamped = stamp(request, &newest, left.cache()?, failed)?;
    let setup = setup(request, &stamped, socket.is_listening())?;
    let lower_maps = disks::lower_maps(&stamped, |layer| disk.layer_paths(layer))?;
    let key = HeaderKey::of(deks.top()).map_err(DiskError::from)?;
    let ids = [newest.attach, stamped.attach];
    let begun = begin_session(request, (&stamped, &geometry, ids), key, &mut lock)?;
    drop((lock, left));

    let runtime = begun.runtime.try_clone().map_err(DiskError::from)?;
    Ok(Opened {
        setup,
        deks,
        key_url: top.envelope.key_url(),
        files: DiskFiles {
            files,
            runtime,
            lower_maps,
        },
        claim: kept,
        socket,
        control,
        data_plane,
        commands,
        begun,
    })
}

/// Stamps the runtime map and then the header. Where that fails there is no map that was not there before, unless
/// the header has got as far as to name it.
fn begin_session(
    request: &AttachRequest,
    (stamped, geometry, ids): (&Header, &Geometry, [Uuid; 2]),
    key: HeaderKey,
    lock: &mut HeaderLock<'_>,
) -> Result<Begun, DiskError> {
    let runtime_path = runtime_map(&request.runtime_dir, stamped.disk);
    let cache = Some(cache_of(stamped));
    let (runtime, recovered) = RuntimeMap::open_with(&runtime_path, geometry, ids, cache)?;
    if recovered {
        log::warn!("the last data plane of this disk died; what it had completed is kept");
    }
    let mut write = || -> Result<(), DiskError> {
        if let Some(failed) = &stamped.failed_sync {
            runtime.note_failed_sync(disks::as_in_runtime_map(failed))?;
        }
        Ok(lock.write(stamped, &key)?)
    };
    if let Err(error) = write() {
        // What was written may be on storage though its sync failed. The map counts for both ids.
        let [before, _] = ids;
        let is_unnamed = lock.read().is_ok_and(|now| now.claims().attach == before);
        if !recovered
            && is_unnamed
            && let Err(error) = std::fs::remove_file(&runtime_path)
        {
            log::warn!("cannot remove {}: {error}", runtime_path.display());
        }
        return Err(error);
    }
    Ok(Begun {
        key,
        runtime,
        runtime_path,
        recovered,
    })
}

/// The header as it is while the disk is attached. The guest goes on with the cache mode that was chosen
/// last: no frontend says it again to another process. A sync that failed stays failed.
fn stamp(
    request: &AttachRequest,
    newest: &Header,
    known: Option<CacheMode>,
    failed_sync: Option<FailedSync>,
) -> Result<Header, DiskError> {
    let cache = request.cache.or(known).unwrap_or_else(|| cache_of(newest));
    Ok(Header::new(HeaderPayload {
        attach: Uuid::new_v4(),
        session: Some(disks::begun(&request.runtime_dir, newest.disk)?),
        write_through: cache == CacheMode::WriteThrough,
        failed_sync,
        ..(**newest).clone()
    }))
}

fn cache_of(header: &HeaderPayload) -> CacheMode {
    match header.write_through {
        true => CacheMode::WriteThrough,
        false => CacheMode::WriteBack,
    }
}

/// Claims the disk. A data plane that was just killed keeps its files for some milliseconds, until
/// the kernel has taken its last thread and its rings apart; that is waited for.
fn claim(disk: &Disk, header_file: &HeaderFile) -> Result<LayerFile, DiskError> {
    let deadline = Instant::now() + CLAIM_PATIENCE;
    loop {
        match disk.claim(header_file.read()?.claims()) {
            Err(DiskError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// What the data plane is given.
struct Give {
    setup: Setup,
    files: DiskFiles,
    deks: DekStack,
    key_url: String,
}

/// What the guard asks the vault about.
struct Served {
    installation: Arc<Installation>,
    disk: Arc<Disk>,
    options: GuardOptions,
}

impl Served {
    fn run(self, opened: Opened, signals: &UnixStream) -> Result<(), AttachError> {
        let Begun {
            key,
            runtime,
            runtime_path,
            recovered,
        } = opened.begun;
        let now = Now {
            top: top_of(&opened.setup)?,
            size: opened.setup.size(),
            runtime,
            key,
            claim: opened.claim,
        };
        let commands = opened.commands;
        let attached_disk =
            AttachedDisk::new(self.disk.clone(), commands.clone(), runtime_path, now);
        let attached_disk = Arc::new(attached_disk);
        let control = opened.control;
        let give = Give {
            setup: opened.setup,
            files: opened.files,
            deks: opened.deks,
            key_url: opened.key_url,
        };
        let process = (opened.data_plane, opened.socket);
        let begun = self.begin(
            give,
            process,
            (&control, signals),
            (&commands, &attached_disk),
        );
        let (mut supervision, watched) = begun.inspect_err(|_| {
            // What a process that died had not flushed is still to be had from its map.
            if !recovered && let Err(error) = attached_disk.detached() {
                log::warn!("the header says that the disk is attached: {error}");
            }
        })?;
        let ended = supervision.run(watched);
        // A change of layers that is under way has files to remove, or gives up.
        let _turn = attached_disk.changing();
        let (served, failed) = (supervision.served, supervision.failed_sync);
        supervision.close();
        control.finish();
        let clean = matches!(ended, Ok(Ended::Flushed)) && failed.is_none();
        let never_served = matches!(ended, Ok(Ended::Refused(_))) && !served && !recovered;
        // Everything is in the durable map, or nothing was ever written.
        let noted = match clean || never_served {
            true => attached_disk.detached(),
            false => Ok(()),
        };
        attached_disk.let_go();
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
        self,
        give: Give,
        (data_plane, socket): (DataPlane, Socket),
        (control, signals): (&ControlSocket, &UnixStream),
        (commands, attached_disk): (&Arc<Commands>, &Arc<AttachedDisk>),
    ) -> Result<(Supervision, Watched), AttachError> {
        let (installation, disk) = (self.installation.clone(), self.disk.clone());
        let offered = Offered {
            queues: give.setup.num_queues,
            memory_bytes: give.setup.memory,
        };
        // Whoever has a command for the data plane waits until that has its setup.
        let opening = commands.open();
        let guard = Guard::new(self.options, give.key_url.clone(), Moment::now());
        let mut supervision = self.supervision(
            guard,
            (data_plane, socket, offered),
            commands,
            attached_disk,
        )?;
        let mut watched = supervision.watch(signals)?;
        let event_hub = supervision.hands.event_hub.clone();
        let jobs = Jobs::spawn(Work {
            installation: installation.clone(),
            disk: disk.clone(),
            attached_disk: attached_disk.clone(),
            commands: commands.clone(),
            event_hub: event_hub.clone(),
        })
        .map_err(data_plane::process("start the thread of the disk's jobs"))?;
        let handles = Handles {
            event_hub,
            jobs,
            installation: installation.clone(),
            disk: disk.clone(),
            attached_disk: attached_disk.clone(),
            commands: commands.clone(),
        };
        control
            .serve(Arc::new(handles))
            .map_err(data_plane::process("serve the control socket"))?;
        let greeted = watched.messages.greet(Instant::now() + GREETING_PATIENCE);
        let version = match greeted {
            Err(ProtocolError::Ended(_)) => {
                let status = supervision.hands.data_plane.wait()?;
                return Err(AttachError::DiedEarly(status));
            }
            greeted => greeted?,
        };
        log::debug!("the data plane and this use protocol {version}");
        record(&installation, &disk, Operation::HandOver, &give.key_url)
            .map_err(AttachError::Audit)?;
        let given = opening.serve(give.setup, &give.files, &give.deks);
        given.map_err(|error| {
            // It may have said why it ended.
            match watched.last_words() {
                Some(why) => AttachError::Refused(why),
                None => error.into(),
            }
        })?;
        Ok((supervision, watched))
    }

    /// Starts the threads that the guard works through.
    fn supervision(
        self,
        guard: Guard,
        (data_plane, socket, offered): (DataPlane, Socket, Offered),
        commands: &Arc<Commands>,
        attached_disk: &Arc<AttachedDisk>,
    ) -> Result<Supervision, AttachError> {
        let fail = data_plane::process("start the guard of the disk's key");
        let (name, id) = (self.disk.name().to_owned(), self.disk.id());
        let marked = attached_disk.clone();
        let attached_disk = attached_disk.clone();
        let state_dir = self.installation.state_dir().to_owned();
        let installation = self.installation.clone();
        let recorder =
            Recorder::spawn(move |record| records::append(&installation, record)).map_err(&fail)?;
        let checker = Checker::spawn(move |with_key| self.check(attached_disk.top(), with_key))
            .map_err(&fail)?;
        let marker = Marker::spawn(marked).map_err(&fail)?;
        let hands = Attached {
            commands: commands.clone(),
            data_plane,
            checker,
            recorder,
            marker,
            event_hub: Arc::new(EventHub::new(guard.status(), offered)),
            disk: id,
            name,
        };
        Ok(Supervision {
            guard,
            hands,
            socket,
            served: false,
            failed_sync: None,
            told_not_shared: None,
            state_dir,
        })
    }

    /// Asks the vault. A DEK that is wanted is handed out only once that is recorded.
    fn check(&self, top: Uuid, with_key: bool) -> Finding {
        let finding = checker::check(&self.installation, &self.disk, top, with_key);
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

fn record(
    installation: &Installation,
    disk: &Disk,
    operation: Operation,
    key_url: &str,
) -> Result<(), String> {
    let record = Record {
        time: OffsetDateTime::now_utc(),
        operation,
        disk: disk.id(),
        name: disk.name().into(),
        key_url: key_url.into(),
        reason: None,
    };
    records::append(installation, &record)
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

/// The layer that is written to.
fn top_of(setup: &Setup) -> Result<Uuid, AttachError> {
    let top = setup.stack.layers.first().ok_or(AttachError::NoLayer)?;
    Ok(top.id)
}

/// The disk's layers as the data plane knows them.
fn stack_of(header: &HeaderPayload) -> Result<Stack, DiskError> {
    let layer = |layer| {
        let geometry = disks::geometry(header, layer)?;
        Ok(StackLayer {
            id: geometry.layer,
            origin: geometry.disk,
            size: geometry.size,
            data_unit: geometry.data_unit.bytes(),
        })
    };
    Ok(Stack {
        disk: header.disk,
        layers: header
            .layers
            .iter()
            .rev()
            .map(layer)
            .collect::<Result<_, DiskError>>()?,
    })
}

fn setup(request: &AttachRequest, header: &Header, listening: bool) -> Result<Setup, AttachError> {
    let serial = request.serial.clone().unwrap_or_else(|| {
        let id = header.disk.simple().to_string();
        id[..20].to_owned()
    });
    Ok(Setup {
        stack: stack_of(header)?,
        read_only: request.read_only,
        discard: request.discard,
        on_full: request.on_full,
        logical_sector_size: header.logical_sector_size,
        num_queues: request.num_queues,
        queue_size: request.queue_size,
        memory: request.memory,
        huge_pages: request.huge_pages,
        poll_us: request.poll_us,
        limits: request.limits,
        write_through: header.write_through,
        serial,
        listening,
    })
}
