//! Opening all that an attach needs, and stamping the header.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::begin::data_plane::{DataPlane, START_PATIENCE, process};
use crate::begin::map_lock::await_map;
use crate::begin::request::AttachRequest;
use crate::begin::setup::setup;
use crate::begin::socket::Socket;
use crate::error::AttachError;
use crate::serve::control_socket::ControlSocket;
use crate::serve::keeping::Keeping;
use disks::{self, Disk, DiskError, Left};
use installation::envelope::{
    FailedSync, Header, HeaderFile, HeaderKey, HeaderLock, HeaderPayload,
};
use installation::{Installation, goes_at_logout, runtime_map};
use keys::DekStack;
use protocol::{Commands, DiskFiles, KeepSocket, Setup};
use sandbox::Launcher;
use volume::pipeline::PipelineError;
use volume::store::LayerFile;
use volume::{CacheMode, Geometry, RuntimeMap, check_data_file};

/// How long a disk that is in use is waited for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that the data plane is given.
pub(crate) struct Opened {
    pub(crate) setup: Setup,
    /// The header, which is stamped.
    pub(crate) header: HeaderPayload,
    pub(crate) deks: DekStack,
    /// The key version that unwrapped the top layer's.
    pub(crate) key_url: String,
    pub(crate) files: DiskFiles,
    /// A second handle of the top layer's data, which keeps the disk claimed.
    pub(crate) claim: LayerFile,
    pub(crate) socket: Socket,
    /// Where others ask and tell this attach something.
    pub(crate) control: ControlSocket,
    /// The process, which waits for all this.
    pub(crate) data_plane: DataPlane,
    /// Through which it has things kept, and where they are.
    pub(crate) keep: KeepSocket,
    pub(crate) keeping: Keeping,
    pub(crate) commands: Arc<Commands>,
    pub(crate) begun: Begun,
}

/// What the header and the runtime directory have of an attach once it has begun.
pub(crate) struct Begun {
    /// Authenticates headers of the top layer.
    pub(crate) key: HeaderKey,
    pub(crate) runtime: RuntimeMap,
    pub(crate) runtime_path: PathBuf,
    /// The runtime map has what a process that died had not flushed.
    pub(crate) recovered: bool,
}

/// Unwraps the DEK, opens the files and the socket, and stamps the header.
pub(crate) fn open(
    installation: &Installation,
    disk: &Disk,
    request: &AttachRequest,
    launcher: Arc<Launcher>,
) -> Result<Opened, AttachError> {
    let header_file = disk.header_file()?;
    let claim = claim(disk, &header_file)?;
    let header = header_file.read().map_err(DiskError::from)?;
    let (header, deks) = disk.unlock_all(installation, header)?;
    let top = header.top().ok_or(AttachError::NoLayer)?.clone();
    let kept = claim.try_clone().map_err(PipelineError::from);
    let kept = kept.map_err(DiskError::from)?;
    let files = disks::open_files(claim, &header, |layer| disk.layer_paths(layer))?;
    await_map(&files)?;
    let socket = Socket::open(&request.socket)?;

    let control = ControlSocket::bind(&request.runtime_dir, header.disk)?;
    let keeping = Keeping::new(request.num_queues);
    let keeping = keeping.map_err(process("make the memory that outlives the data plane"))?;
    let region = keeping.region().as_fd().try_clone_to_owned();
    let region = region.map_err(process("start the data plane"))?;
    let (data_plane, keep) =
        DataPlane::spawn(launcher, socket.duplicate()?, region, START_PATIENCE)?;
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
        header: (*stamped).clone(),
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
        keep,
        keeping,
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
