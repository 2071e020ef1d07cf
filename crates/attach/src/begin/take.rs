//! Taking a disk: claiming it, unwrapping its keys, opening its files, and beginning a session in its header.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::begin::map_lock::await_map;
use crate::begin::request::AttachRequest;
use crate::error::AttachError;
use crate::serve::kept_keys::KeptKeys;
use disks::{self, Disk, DiskError, Left, Unflushed};
use installation::envelope::{
    FailedSync, Header, HeaderKey, HeaderLock, HeaderPayload, LayerRecord, UnverifiedHeader,
};
use installation::{Installation, goes_at_logout, host_may_change, runtime_map};
use keys::{DekStack, with_wiped_call_stack};
use protocol::DiskFiles;
use volume::pipeline::PipelineError;
use volume::store::{LayerFile, StackFiles};
use volume::{CacheMode, Geometry, RuntimeMap, check_data_file};

/// How often it is tried to claim a disk that is in use.
const LOOK: Duration = Duration::from_millis(20);

/// How a disk is taken.
#[derive(Debug, Clone)]
pub(crate) struct TakeOptions {
    /// A directory on tmpfs.
    pub(crate) runtime_dir: PathBuf,
    /// What becomes of what was not flushed and is lost.
    pub(crate) unflushed: Unflushed,
    /// The cache mode with which the guest begins; else the one that was chosen last.
    pub(crate) cache: Option<CacheMode>,
    /// A guest goes on that has run elsewhere: what another attach left behind must not be lost to it.
    pub(crate) guest_goes_on: bool,
}

impl TakeOptions {
    /// For a disk that goes on as it was taken before.
    pub(crate) fn again(runtime_dir: &Path) -> Self {
        Self {
            runtime_dir: runtime_dir.into(),
            unflushed: Unflushed::Needed,
            cache: None,
            guest_goes_on: true,
        }
    }

    pub(crate) fn of(request: &AttachRequest) -> Self {
        Self {
            runtime_dir: request.runtime_dir.clone(),
            unflushed: request.unflushed,
            cache: request.cache,
            guest_goes_on: request.incoming,
        }
    }
}

/// What an attach that has had the disk before knows of its keys.
pub(crate) struct Known<'a> {
    pub(crate) top: Uuid,
    pub(crate) key: Arc<HeaderKey>,
    pub(crate) keys: &'a KeptKeys,
}

/// A disk that is claimed and open, and in whose header nothing is changed yet.
pub(crate) struct Claimed {
    at: OffsetDateTime,
    header: Header,
    top: LayerRecord,
    key: Arc<HeaderKey>,
    /// None while they are revoked.
    deks: Option<DekStack>,
    /// They were unwrapped by the vaults just now.
    unwrapped: bool,
    files: StackFiles,
    /// A second handle of the top layer's data, which keeps the disk claimed.
    claim: LayerFile,
}

/// A disk that is taken.
pub(crate) struct Taken {
    /// When it was claimed.
    pub(crate) at: OffsetDateTime,
    /// The header, which is stamped.
    pub(crate) header: HeaderPayload,
    pub(crate) deks: Option<DekStack>,
    pub(crate) unwrapped: bool,
    /// The key version that unwrapped the top layer's.
    pub(crate) key_url: String,
    pub(crate) files: DiskFiles,
    pub(crate) claim: LayerFile,
    pub(crate) begun: Begun,
}

/// What the header and the runtime directory have of an attach once it has begun.
pub(crate) struct Begun {
    /// Authenticates headers of the top layer.
    pub(crate) key: Arc<HeaderKey>,
    pub(crate) runtime: RuntimeMap,
    /// The runtime map has what a process that died had not flushed.
    pub(crate) recovered: bool,
}

/// Claims the disk, as its header names it, for which whoever has it is waited for until `goes_on` says no. A data
/// plane that was just killed keeps its files for some milliseconds, until the kernel has taken its last thread and its
/// rings apart.
///
/// # Errors
/// [`DiskError`].
pub(crate) fn claim(
    disk: &Disk,
    patience: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> Result<(LayerFile, UnverifiedHeader), DiskError> {
    let deadline = Instant::now() + patience;
    loop {
        match disk.claim_to_serve() {
            Ok(claim) => return Ok((claim, disk.header_file()?.read()?)),
            Err(DiskError::InUse { .. }) if Instant::now() < deadline && goes_on() => {
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(error),
        }
    }
}

fn top_of(header: &HeaderPayload) -> Option<Uuid> {
    header.top().map(|top| top.id)
}

impl Claimed {
    /// Unwraps the keys of a claimed disk, unless they are known, and opens its files.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub(crate) fn open(
        installation: &Installation,
        disk: &Disk,
        (claim, header): (LayerFile, UnverifiedHeader),
        known: Option<&Known<'_>>,
    ) -> Result<Self, AttachError> {
        let at = OffsetDateTime::now_utc();
        // Whoever has had the disk without a break has kept others from being granted anything.
        if known.is_none() {
            disk.refuse_granted(installation)?;
        }
        let known = known.filter(|known| top_of(header.claims()) == Some(known.top));
        let (header, key, deks) = match known {
            Some(known) => {
                let header = header.authenticate_by(&known.key);
                let header = header.map_err(DiskError::from)?;
                let deks = known.keys.granted(&layers_of(&header));
                (header, known.key.clone(), deks)
            }
            None => {
                let (header, deks) =
                    with_wiped_call_stack(|| disk.unlock_all(installation, header))?;
                let key = HeaderKey::of(deks.top()).map_err(DiskError::from)?;
                (header, Arc::new(key), Some(Some(deks)))
            }
        };
        let unwrapped = known.is_none() || deks.is_none();
        let deks = match deks {
            Some(deks) => deks,
            // The layers beneath the top are others now.
            None => {
                let found = disk.header_file()?.read().map_err(DiskError::from)?;
                let unlocked = with_wiped_call_stack(|| disk.unlock_all(installation, found));
                Some(unlocked?.1)
            }
        };
        let top = header.top().ok_or(AttachError::NoLayer)?.clone();
        let kept = claim.try_clone().map_err(PipelineError::from);
        let kept = kept.map_err(DiskError::from)?;
        let files = disks::open_files(claim, &header, |layer| disk.layer_paths(layer))?;
        await_map(&files)?;
        Ok(Self {
            at,
            header,
            top,
            key,
            deks,
            unwrapped,
            files,
            claim: kept,
        })
    }

    /// The disk as it was found.
    pub(crate) fn header(&self) -> &HeaderPayload {
        &self.header
    }

    /// Begins a session: stamps the runtime map and the header.
    ///
    /// # Errors
    /// [`AttachError`]; the disk is as before.
    pub(crate) fn begin(self, disk: &Disk, options: &TakeOptions) -> Result<Taken, AttachError> {
        // Only now, under its lock, the header of this moment: it may have been wrapped anew, or have
        // another size, meanwhile.
        let header_file = disk.header_file()?;
        let mut lock = header_file.lock().map_err(DiskError::from)?;
        let newest = lock
            .read()
            .and_then(|h| h.authenticate_by(&self.key))
            .map_err(DiskError::from)?;
        if !newest.gone.is_empty() {
            // A power cut must not bring back a header that names what is removed.
            lock.settle().map_err(DiskError::from)?;
            disk.sweep_gone(&newest);
        }
        let geometry = disks::geometry(&newest, &self.top)?;
        check_data_file(self.files.data.file(), &geometry).map_err(DiskError::from)?;
        let left = left(disk, &newest, options)?;
        let failed = disk.failed_sync(&newest, &left)?;
        let stamped = stamp(options, &newest, left.cache()?, failed)?;
        let lower_maps = disks::lower_maps(&stamped, |layer| disk.layer_paths(layer))?;
        let ids = [newest.attach, stamped.attach];
        let begun = begin_session(options, (&stamped, &geometry, ids), self.key, &mut lock)?;
        drop((lock, left));
        let runtime = begun.runtime.try_clone().map_err(DiskError::from)?;
        Ok(Taken {
            at: self.at,
            header: (*stamped).clone(),
            deks: self.deks,
            unwrapped: self.unwrapped,
            key_url: self.top.envelope.key_url(),
            files: disk_files(self.files, runtime, lower_maps),
            claim: self.claim,
            begun,
        })
    }
}

fn disk_files(files: StackFiles, runtime: RuntimeMap, lower_maps: Vec<File>) -> DiskFiles {
    DiskFiles {
        files,
        runtime,
        lower_maps,
    }
}

/// A header's layers, from the top down.
pub(crate) fn layers_of(header: &HeaderPayload) -> Vec<Uuid> {
    header.layers.iter().rev().map(|layer| layer.id).collect()
}

/// What the last user of the disk left.
fn left(disk: &Disk, newest: &Header, options: &TakeOptions) -> Result<Left, DiskError> {
    if goes_at_logout(&options.runtime_dir) {
        log::warn!(
            "{} goes when its user logs out, and with it what the guest has not flushed: use \
             `loginctl enable-linger`, or another --runtime-dir",
            options.runtime_dir.display()
        );
    }
    let left = disk.left(newest, &options.runtime_dir, options.unflushed)?;
    if let Left::OtherBoot(session) = &left {
        let given_up = [Unflushed::GivenUp, Unflushed::TakenFrom(newest.attach)];
        if options.guest_goes_on && !given_up.contains(&options.unflushed) {
            return Err(disk.not_let_go(session));
        }
        disks::log_other_boot(disk.name(), session);
    }
    if let Some(why) = host_may_change()
        && disks::may_be_shared(disk.directory())
    {
        log::warn!(
            "{why}: after a loss of power it may be refused the disk {} as another host's; give it a name that \
             stays (SEALDISK_HOST)",
            disk.name()
        );
    }
    Ok(left)
}

/// Stamps the runtime map and then the header. Where that fails there is no map that was not there before, unless
/// the header has got as far as to name it.
fn begin_session(
    options: &TakeOptions,
    (stamped, geometry, ids): (&Header, &Geometry, [Uuid; 2]),
    key: Arc<HeaderKey>,
    lock: &mut HeaderLock<'_>,
) -> Result<Begun, DiskError> {
    let runtime_path = runtime_map(&options.runtime_dir, stamped.disk);
    let cache = Some(cache_of(stamped));
    let (runtime, recovered) = RuntimeMap::open_with(&runtime_path, geometry, ids, cache)?;
    if recovered {
        log::warn!("the last data plane of this disk died; what it had completed is kept");
    }
    let mut write = || -> Result<(), DiskError> {
        if let Some(failed) = &stamped.failed_sync {
            runtime.note_failed_sync(disks::as_in_runtime_map(failed))?;
        }
        Ok(lock.write(stamped, &*key)?)
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
        recovered,
    })
}

/// The header as it is while the disk is attached. The guest goes on with the cache mode that was chosen
/// last: no frontend says it again to another process. A sync that failed stays failed.
fn stamp(
    options: &TakeOptions,
    newest: &Header,
    known: Option<CacheMode>,
    failed_sync: Option<FailedSync>,
) -> Result<Header, DiskError> {
    let cache = options.cache.or(known).unwrap_or_else(|| cache_of(newest));
    Ok(Header::new(HeaderPayload {
        attach: Uuid::new_v4(),
        session: Some(disks::begun(&options.runtime_dir, newest.disk)?),
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
