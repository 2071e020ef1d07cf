//! Attaching a disk: from a name to a data plane process that serves guests.
//!
//! This process unwraps the DEK, opens the files, hands both to the data plane over inherited
//! descriptors and a socket, and forgets the DEK. It stays for as long as the disk is attached: it
//! waits for a signal or for the end of the data plane, and puts things away afterwards.
//!
//! # Order
//!
//! The disk is claimed first, so that everything after happens once at a time. The socket is bound
//! before anything on disk changes, so a refused attach leaves nothing behind. The runtime map is
//! stamped with the new attach id before the header is: it counts for the old id as well as the new
//! one, so a crash between the two loses nothing.

mod control_socket;
mod data_plane;
mod error;
mod socket;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::control::disks::{self, Disk, DiskError};
use crate::control::{Installation, files, runtime_map};
use crate::envelope::{Header, HeaderFile};
use crate::frontend::{Limits, Setup, signal_pipe};
use crate::keys::{Dek, harden_process};
use crate::store::{LayerFile, LayerFiles};
use crate::volume::{RuntimeMap, check_data_file};

use control_socket::ControlSocket;
use data_plane::{DataPlane, Ended};

pub use control_socket::set_limits;
pub use error::AttachError;
pub use socket::{Socket, SocketSource};

/// How long a disk that is in use is waited for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

/// What is to be attached, and how.
pub struct AttachRequest {
    /// The disk's name, or its directory.
    pub disk: String,
    /// Where the frontend connects.
    pub socket: SocketSource,
    /// Refuse the guest's writes.
    pub read_only: bool,
    /// Queues offered.
    pub num_queues: u16,
    /// Entries of a queue at most.
    pub queue_size: u16,
    /// Microseconds that a queue looks busily for work at most.
    pub poll_us: u32,
    /// What the disk may do at most.
    pub limits: Limits,
    /// The serial number that the guest sees; else one made of the disk's id.
    pub serial: Option<String>,
    /// A directory on tmpfs.
    pub runtime_dir: PathBuf,
}

/// Everything that the data plane is given.
struct Opened {
    setup: Setup,
    dek: Dek,
    files: LayerFiles,
    runtime: RuntimeMap,
    runtime_path: PathBuf,
    /// The runtime map has what a process that died had not flushed.
    recovered: bool,
}

/// Serves a disk until a signal, or until the connection ends that it was given.
///
/// # Errors
/// [`AttachError`]: the disk was not served, or is not any more.
pub fn attach(installation: &Installation, request: AttachRequest) -> Result<(), AttachError> {
    harden_process().map_err(DiskError::Key)?;
    // Before anything can take long: a signal during the attach is then not lost.
    let signals = signal_pipe().map_err(|source| AttachError::Process {
        what: "handle signals",
        source,
    })?;
    let disk = find(installation, &request.disk)?;
    let header_file = disk.header_file()?;
    let claim = claim(&disk, &header_file)?;
    let (header, dek) = disk.unlock(installation, header_file.read().map_err(DiskError::from)?)?;
    let top = header.top().ok_or(AttachError::NoLayer)?.clone();
    let geometry = disks::geometry(&header, &top)?;
    let files = disks::open_files(claim, &disk.layer_paths(&top))?;
    check_data_file(files.data.file(), &geometry).map_err(DiskError::from)?;
    let socket = Socket::open(&request.socket)?;

    files::private_dir(&request.runtime_dir).map_err(DiskError::from)?;
    let runtime_path = runtime_map(&request.runtime_dir, header.disk);
    let next = Uuid::new_v4();
    let (runtime, recovered) =
        RuntimeMap::open(&runtime_path, &geometry, header.attach, next).map_err(DiskError::from)?;
    if recovered {
        log::warn!("the last data plane of this disk died; what it had completed is kept");
    }
    // Only now, under its lock, the header of this moment: it may have been wrapped anew meanwhile.
    let mut lock = header_file.lock().map_err(DiskError::from)?;
    let newest = lock
        .read()
        .and_then(|h| h.authenticate(&dek))
        .map_err(DiskError::from)?;
    let stamped = Header::new(crate::envelope::HeaderPayload {
        attach: next,
        ..(*newest).clone()
    });
    lock.write(&stamped, &dek).map_err(DiskError::from)?;
    drop(lock);

    let setup = setup(
        &request,
        &stamped,
        geometry.data_unit.bytes(),
        socket.is_listening(),
    )?;
    let control = ControlSocket::bind(&request.runtime_dir, setup.disk)?;
    let opened = Opened {
        setup,
        dek,
        files,
        runtime,
        runtime_path,
        recovered,
    };
    run(opened, &socket, &control, &signals)
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

fn run(
    opened: Opened,
    socket: &Socket,
    control: &ControlSocket,
    signals: &std::os::unix::net::UnixStream,
) -> Result<(), AttachError> {
    let Opened {
        setup,
        dek,
        files,
        runtime,
        runtime_path,
        recovered,
    } = opened;
    let mut data_plane = DataPlane::spawn(socket, files, runtime)?;
    data_plane.send(&setup, &dek)?;
    drop(dek);
    let ended = data_plane.supervise(signals, control, || {
        log::info!("disk {} is attached", setup.disk);
        // Without systemd there is nobody to notify.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    });
    let clean = matches!(ended, Ok(Ended::Flushed));
    let never_served = matches!(ended, Ok(Ended::Refused(_))) && !recovered;
    if clean || never_served {
        // Everything is in the durable map, or nothing was ever written.
        if let Err(error) = std::fs::remove_file(&runtime_path) {
            log::warn!("cannot remove {}: {error}", runtime_path.display());
        }
    }
    match ended? {
        Ended::Flushed => Ok(()),
        Ended::Refused(reason) => Err(AttachError::Refused(reason)),
        Ended::Died(status) => Err(AttachError::Died(status)),
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
    let here = |row: &&crate::catalog::Stored<crate::catalog::DiskRecord>| {
        std::fs::canonicalize(&row.record.directory).is_ok_and(|d| d == directory)
    };
    match disks.iter().find(here) {
        Some(row) => Disk::find(installation, &row.record.name),
        None => Err(DiskError::Argument(format!(
            "no disk is in {disk}; `disk list` names them"
        ))),
    }
}

fn setup(
    request: &AttachRequest,
    header: &Header,
    data_unit: u64,
    listening: bool,
) -> Result<Setup, AttachError> {
    let top = header.top().ok_or(AttachError::NoLayer)?;
    let serial = request.serial.clone().unwrap_or_else(|| {
        let id = header.disk.simple().to_string();
        id[..20].to_owned()
    });
    Ok(Setup {
        disk: header.disk,
        layer: top.id,
        size: header.size,
        data_unit,
        read_only: request.read_only,
        num_queues: request.num_queues,
        queue_size: request.queue_size,
        poll_us: request.poll_us,
        limits: request.limits,
        serial,
        listening,
    })
}
