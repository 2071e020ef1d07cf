//! What `disk list` and `disk show` print.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::layers::layers_to_drop;
use crate::resource::awaited::{Waiter, waiter_for};
use crate::resource::directory::{layer_paths, unverified_header};
use crate::resource::error::DiskError;
use crate::resource::failed_sync::synced_file;
use crate::resource::lookup::lookup;
use crate::resource::reconcile::{described_as_found, reconcile_by};
use crate::resource::session::is_of_this_boot;
use crate::resource::shared::may_be_shared;
use crate::resource::staging::sweep;
use crate::resource::{extents, open};
use installation::Installation;
use installation::catalog::{
    CatalogError, DiskRecord, DiskState, EncryptionType, LayerUse, Stored,
};
use installation::envelope::{
    CloneSource, Envelope, EnvelopeError, FailedSync, HeaderBuffer, HeaderPayload, Job,
    LayerRecord, ResourceKind, Session, UnverifiedHeader,
};
use keys::units::BLOCK_SIZE;
use volume::{CacheMode, RuntimeMap, Volume};

/// A disk, a snapshot or an image, with Azure's field names where it has them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskView {
    /// What it is.
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// Its id.
    pub unique_id: Uuid,
    /// `Unattached`, `Attached` (in use by some process), `Dirty` (its daemon died), `ActiveSAS` (its data may be read
    /// over the network), `ReadyToUpload`, `ActiveUpload` (they may be written), `SyncFailed`, `Creating`, `Deleting`, or
    /// `Damaged`.
    pub disk_state: &'static str,
    /// Provisioned size.
    pub disk_size_bytes: u64,
    /// The logical block size that guests see; nothing when the header cannot be read.
    pub logical_sector_size: Option<u32>,
    /// Space that its files take, those that it shares included.
    pub used_bytes: u64,
    /// How much of that is in layers that others have too.
    pub shared_bytes: u64,
    /// Bytes of the blocks that hold data, in all layers, as of the last flush; nothing when a map
    /// cannot be read.
    pub data_bytes: Option<u64>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub time_created: OffsetDateTime,
    /// Whose key protects it.
    pub encryption: EncryptionView,
    /// How many DEKs it was rotated through, from 1 on.
    pub generation: Option<u32>,
    /// Whether a snapshot is of what changed since the one before.
    pub incremental: bool,
    /// What it is a clone of and still shares layers with.
    pub source: Option<CloneSource>,
    /// What is being done to its layers.
    pub job: Option<JobView>,
    /// `writeback`, or `writethrough`, which the guest asked for and the next one finds; of a disk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<&'static str>,
    /// The attach that has not ended in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionView>,
    /// The attach that waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awaited_by: Option<Waiter>,
    /// A sync of its files that failed; `disk check --repair` ends that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_sync: Option<FailedSync>,
    /// Until when access over the network to its data is granted.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub access_until: Option<OffsetDateTime>,
    /// The directory of its files.
    pub directory: PathBuf,
    /// Its layers, bottom to top.
    pub layers: Vec<LayerView>,
    /// Why the header cannot be read, when it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether one of the two copies of the header cannot be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lost_header_copy: bool,
    /// All keys that wrap a layer of it, by any copy of its header or by the catalog's row.
    #[serde(skip)]
    pub(crate) key_uses: Vec<LayerUse>,
}

impl DiskView {
    /// All that [`DiskView::disk_state`] may be.
    pub const STATES: [&'static str; 10] = [
        "Unattached",
        "Attached",
        "Dirty",
        "ActiveSAS",
        "ReadyToUpload",
        "ActiveUpload",
        "SyncFailed",
        "Creating",
        "Deleting",
        "Damaged",
    ];

    /// Whether some process has it in use, also when a sync has failed since.
    pub fn is_attached(&self) -> bool {
        let session = self.session.as_ref().map(|session| session.state);
        [Some(self.disk_state), session].contains(&Some("Attached"))
    }
}

/// The states of a session of which something is left that was completed and not flushed.
pub(super) const DIRTY: [&str; 3] = ["Dirty", "RuntimeMapMissing", "OtherHost"];

/// An attach of a disk that has not ended in order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// `Attached`; `Dirty`: the daemon died, and the next attach goes on with the runtime map;
    /// `RuntimeMapMissing`: it died, and the map is lost; `OtherBoot`: the power went since, or it was moved here; `OtherHost`: it died on
    /// another host, and no map is here.
    pub state: &'static str,
    /// As the header has it.
    #[serde(flatten, serialize_with = "shown")]
    pub session: Session,
}

/// A session with the name of its host, as people call that, apart from its id.
fn shown<S: Serializer>(session: &Session, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown<'a> {
        boot: Uuid,
        host: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        host_id: Option<&'a str>,
        runtime_map: &'a str,
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    }
    let shown = Shown {
        boot: session.boot,
        host: session.host_name(),
        host_id: session.host_id(),
        runtime_map: &session.runtime_map,
        since: session.since,
    };
    shown.serialize(to)
}

/// Azure's name for whose keys protect a disk. Twice encrypted is what is so in all of its layers.
pub(super) fn kind_of_key(record: &DiskRecord, header: Option<&HeaderPayload>) -> &'static str {
    let is_double = |header: &HeaderPayload| header.layers.iter().all(LayerRecord::is_double);
    match record.disk_encryption_set {
        None => "EncryptionAtRestWithPlatformKey",
        Some(_) if header.is_some_and(is_double) => {
            EncryptionType::PlatformAndCustomerKeys.as_str()
        }
        Some(_) => EncryptionType::CustomerKey.as_str(),
    }
}

/// What is being done to a disk's layers, and how much of it is done.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// As the header has it.
    #[serde(flatten)]
    pub job: Job,
    /// Bytes that the top layer has of what is to be in it, as of the last flush, or, of an attached
    /// disk, now; nothing when a map cannot be read.
    pub bytes_done: Option<u64>,
    /// Bytes that the layers have which are to go.
    pub bytes_total: Option<u64>,
}

/// Whose key protects a disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionView {
    /// Azure's name of the kind of key.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The disk encryption set.
    pub disk_encryption_set_id: Option<String>,
    /// The key version that wraps the disk's DEK now.
    pub key_url: String,
}

/// A layer of a disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerView {
    /// The layer.
    pub id: Uuid,
    /// Bytes of the disk that it covers.
    pub size_bytes: u64,
    /// Bytes of the blocks that hold data in it, as of the last flush; nothing when its map cannot
    /// be read.
    pub data_bytes: Option<u64>,
    /// Whether another disk, snapshot or image has it too.
    pub shared: bool,
    /// Bytes that are encrypted under one tweak.
    pub sector_size: u32,
    /// The set whose identity unwraps its DEK.
    pub disk_encryption_set_id: Option<String>,
    /// The key version that wraps its DEK.
    pub key_url: String,
    /// With double encryption: that of the platform-managed key, which wraps its outer DEK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_key_url: Option<String>,
    /// Its ciphertext.
    pub data: PathBuf,
    /// Its block map.
    pub map: PathBuf,
}

impl LayerView {
    /// All key versions that it takes to read it, each with the set in whose name, `None` being the platform.
    pub fn keys(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        let own = (self.disk_encryption_set_id.as_deref(), &*self.key_url);
        let platform = self.platform_key_url.as_deref();
        std::iter::once(own).chain(platform.map(|url| (None, url)))
    }
}

/// All of a kind, by name, after what interrupted commands left was cleaned up.
///
/// # Errors
/// [`DiskError`].
pub fn list(installation: &Installation, kind: ResourceKind) -> Result<Vec<DiskView>, DiskError> {
    sweep(installation)?;
    let granted = Granted::read(installation, None)?;
    let rows = installation.catalog().resources()?;
    let mut buffer = HeaderBuffer::default();
    rows.into_iter()
        .filter(|row| row.record.kind == kind)
        .map(|row| Ok(view(installation, row, &granted, &mut buffer)?))
        .collect()
}

/// All disks, snapshots and images, by kind and name, as they are: what interrupted commands left stays, and no row is
/// brought up to date.
///
/// # Errors
/// [`CatalogError`].
pub fn look(installation: &Installation) -> Result<Vec<DiskView>, CatalogError> {
    let granted = Granted::read(installation, None)?;
    let rows = installation.catalog().resources()?.into_iter();
    let mut buffer = HeaderBuffer::default();
    let look = |row: Stored<DiskRecord>| {
        let header = unverified_header(&row.record.directory, &mut buffer);
        match &header {
            Ok(found) if found.claims().disk == row.record.id => {
                let record = described_as_found(&row.record, found);
                view_by(&record, header, &granted)
            }
            _ => view_by(&row.record, header, &granted),
        }
    };
    Ok(rows.map(look).collect())
}

/// The one of that kind and name.
///
/// # Errors
/// [`DiskError`].
pub fn show(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<DiskView, DiskError> {
    let row = lookup(installation, kind, name)?;
    let granted = Granted::read(installation, Some(row.record.id))?;
    Ok(view(
        installation,
        row,
        &granted,
        &mut HeaderBuffer::default(),
    )?)
}

/// Until when access is granted, and to what.
pub(super) struct Granted(HashMap<Uuid, OffsetDateTime>);

impl Granted {
    /// Of a resource, or of all.
    pub(super) fn read(
        installation: &Installation,
        resource: Option<Uuid>,
    ) -> Result<Self, CatalogError> {
        let now = OffsetDateTime::now_utc();
        let mut until = HashMap::new();
        for access in installation.catalog().accesses(resource)? {
            if access.is_live(now) {
                let last = until.entry(access.resource).or_insert(access.expires);
                *last = access.expires.max(*last);
            }
        }
        Ok(Self(until))
    }

    /// Until when access to this one is granted.
    pub(super) fn until(&self, resource: Uuid) -> Option<OffsetDateTime> {
        self.0.get(&resource).copied()
    }
}

/// Of a row, which is brought up to date with its header.
fn view(
    installation: &Installation,
    row: Stored<DiskRecord>,
    granted: &Granted,
    buffer: &mut HeaderBuffer,
) -> Result<DiskView, CatalogError> {
    let header = unverified_header(&row.record.directory, buffer);
    let record = reconcile_by(installation, row, header.as_ref().ok())?;
    Ok(view_by(&record, header, granted))
}

fn view_by(
    record: &DiskRecord,
    header: Result<UnverifiedHeader, EnvelopeError>,
    granted: &Granted,
) -> DiskView {
    let access_until = granted.until(record.id);
    let lost_header_copy = header.as_ref().is_ok_and(UnverifiedHeader::is_alone);
    let header = header.map(UnverifiedHeader::into_claims);
    let directory = &record.directory;
    let layers = header.as_ref().map(|header| layer_views(directory, header));
    let (layers, problem) = match layers {
        Ok(layers) => (layers, None),
        Err(_) if record.state != DiskState::Ready => (Vec::new(), None),
        Err(problem) => (Vec::new(), Some(problem.to_string())),
    };
    let data_bytes = match layers.is_empty() {
        true => None,
        false => layers.iter().map(|layer| layer.data_bytes).sum(),
    };
    let (used_bytes, shared_bytes) = used_bytes(directory);
    let header = header.ok();
    // Only the top layer of a disk is claimed.
    let is_attached = header.as_ref().is_some_and(|h| h.session.is_some());
    let in_use = |top: &LayerView| in_use(&top.data, is_attached);
    // Whoever serves it over the network has claimed it too.
    let is_served = access_until.is_some() || is_upload(header.as_ref());
    let may_be = record.kind == ResourceKind::Disk && !is_served;
    let is_used = |top: &LayerView| may_be && in_use(top);
    let is_used = layers.last().is_some_and(is_used);
    let session = header
        .as_ref()
        .and_then(|h| session_view(directory, h, is_used));
    let failed_sync = header.as_ref().and_then(failed_sync_view);
    let is_dirty = |session: &SessionView| DIRTY.contains(&session.state);
    let disk_state = match (record.state, &problem) {
        (DiskState::Creating, _) => "Creating",
        (DiskState::Deleting | DiskState::Erased, _) => "Deleting",
        (DiskState::Ready, Some(_)) => "Damaged",
        (DiskState::Ready, None) if failed_sync.is_some() => "SyncFailed",
        (DiskState::Ready, None) if is_upload(header.as_ref()) => match access_until {
            Some(_) => "ActiveUpload",
            None => "ReadyToUpload",
        },
        (DiskState::Ready, None) if access_until.is_some() => "ActiveSAS",
        (DiskState::Ready, None) if is_used => "Attached",
        (DiskState::Ready, None) if session.as_ref().is_some_and(is_dirty) => "Dirty",
        (DiskState::Ready, None) => "Unattached",
    };
    DiskView {
        kind: record.kind,
        name: record.name.clone(),
        unique_id: record.id,
        disk_state,
        disk_size_bytes: record.size,
        logical_sector_size: header.as_ref().map(|header| header.logical_sector_size),
        used_bytes,
        shared_bytes,
        data_bytes,
        time_created: record.created,
        encryption: EncryptionView {
            kind: kind_of_key(record, header.as_ref()),
            disk_encryption_set_id: record.disk_encryption_set.clone(),
            key_url: record.key_url.clone(),
        },
        generation: header.as_ref().map(|header| header.generation),
        incremental: header.as_ref().is_some_and(|header| header.incremental),
        source: header.as_ref().and_then(|header| header.source.clone()),
        cache: header.as_ref().and_then(cache_view),
        session,
        awaited_by: waiter_for(directory),
        failed_sync,
        access_until,
        job: header.and_then(|header| job_view(directory, &header)),
        directory: directory.clone(),
        layers,
        problem,
        lost_header_copy,
        key_uses: record.layers.clone(),
    }
}

pub(super) fn is_upload(header: Option<&HeaderPayload>) -> bool {
    header.is_some_and(|header| header.upload.is_some())
}

pub(super) fn session_view(
    directory: &Path,
    header: &HeaderPayload,
    is_used: bool,
) -> Option<SessionView> {
    let session = header.session.clone()?;
    let top = header.top()?;
    let is_elsewhere = session.is_of_this_host() == Some(false);
    let map_is_here = || RuntimeMap::peek(session.runtime_map(), top.id).is_some();
    let state = match is_of_this_boot(&session) {
        _ if is_used => "Attached",
        // Whatever this host was called then.
        Ok(true) | Err(_) if map_is_here() => "Dirty",
        Ok(false) if !is_elsewhere || !may_be_shared(directory) => "OtherBoot",
        _ if is_elsewhere => "OtherHost",
        _ => "RuntimeMapMissing",
    };
    Some(SessionView { state, session })
}

/// The runtime map of a disk's attach under this boot.
fn runtime_map_of(header: &HeaderPayload) -> Option<RuntimeMap> {
    let (session, top) = header.session.as_ref().zip(header.top())?;
    let is_now = is_of_this_boot(session).unwrap_or(false);
    RuntimeMap::peek(session.runtime_map(), top.id).filter(|_| is_now)
}

/// A failed sync: a runtime map knows of it before the header does.
pub(super) fn failed_sync_view(header: &HeaderPayload) -> Option<FailedSync> {
    let of_map = || {
        let file = runtime_map_of(header)?.failed_sync().ok().flatten()?;
        let why = "the header does not tell yet";
        Some(FailedSync::new(
            header.top()?.id,
            Some(synced_file(file)),
            why,
        ))
    };
    header.failed_sync.clone().or_else(of_map)
}

/// What the guest chose last: a runtime map knows it before the header does.
fn cache_view(header: &HeaderPayload) -> Option<&'static str> {
    if header.kind != ResourceKind::Disk {
        return None;
    }
    let known = runtime_map_of(header).and_then(|map| map.cache().ok().flatten());
    let is_write_through = match known {
        Some(cache) => cache == CacheMode::WriteThrough,
        None => header.write_through,
    };
    Some(if is_write_through {
        "writethrough"
    } else {
        "writeback"
    })
}

/// The share that is done is what the maps say, for which no key is needed.
fn job_view(directory: &Path, header: &HeaderPayload) -> Option<JobView> {
    let job = header.job.clone()?;
    let share = || -> Option<(u64, u64)> {
        let drop = layers_to_drop(header, &job).ok()?;
        let paths = |layer: &LayerRecord| layer_paths(directory, layer);
        let top = header.top()?;
        let map = open::layer_map(header, top, &paths(top)).ok()?;
        let lower = open::lower_layers(header, paths).ok()?;
        let volume = Volume::open_private(map, lower).ok()?;
        volume.copy_up_progress(usize::from(drop), &|| true).ok()
    };
    let share = share();
    let bytes = |blocks: u64| blocks * BLOCK_SIZE;
    Some(JobView {
        bytes_done: share.map(|(done, _)| bytes(done)),
        bytes_total: share.map(|(_, total)| bytes(total)),
        job,
    })
}

/// Whether somebody has claimed the data. Asking takes a shared lock for a moment. Of a disk that nobody
/// has attached a claim counts when it lasts: the kernel keeps that of a command for some milliseconds,
/// until it has taken the command's rings apart.
pub(super) fn in_use(data: &Path, is_attached: bool) -> bool {
    const TRIES: u32 = 20;
    let tries = if is_attached { 1 } else { TRIES };
    std::fs::File::open(data).is_ok_and(|file| {
        (0..tries).all(|number| {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            let shared = flock(&file, FlockOperation::NonBlockingLockShared);
            matches!(shared, Err(rustix::io::Errno::WOULDBLOCK))
        })
    })
}

/// What the files of a directory take, and how much of that those do that are elsewhere too; files that
/// vanish meanwhile take nothing.
fn used_bytes(directory: &Path) -> (u64, u64) {
    const ST_BLOCKS_UNIT: u64 = 512; // stat(2)
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let (mut used, mut shared) = (0, 0);
    for file in entries.filter_map(|entry| entry.metadata().ok()) {
        let bytes = file.blocks() * ST_BLOCKS_UNIT;
        used += bytes;
        if file.is_file() && file.nlink() > 1 {
            shared += bytes;
        }
    }
    (used, shared)
}

fn layer_views(directory: &Path, header: &HeaderPayload) -> Vec<LayerView> {
    let view = |layer: &LayerRecord| {
        let paths = layer_paths(directory, layer);
        let geometry = open::geometry(header, layer).ok();
        LayerView {
            id: layer.id,
            size_bytes: layer.size,
            data_bytes: geometry.and_then(|geometry| extents::data_bytes(&paths.map, &geometry)),
            shared: paths
                .data
                .symlink_metadata()
                .is_ok_and(|data| data.nlink() > 1),
            sector_size: layer.data_unit,
            disk_encryption_set_id: layer.disk_encryption_set.clone(),
            key_url: layer.envelope.key_url(),
            platform_key_url: layer.platform_envelope.as_ref().map(Envelope::key_url),
            data: paths.data,
            map: paths.map,
        }
    };
    header.layers.iter().map(view).collect()
}
