//! Running the job of a disk that nobody has attached, and that of a snapshot which is a deep copy.
//!
//! Of a sync that fails the header of a disk tells, that of a snapshot does not: as in a merge (`merge_frozen.rs`) nothing
//! is at stake of what it holds, and the next run copies again what may be lost.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::import::Cancel;
use crate::layers::drop_layers::drop_layers;
use crate::layers::job::layers_to_drop;
use crate::layers::swap_volume::Unattached;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::open::{layer_map, lower_layers, open_files};
use installation::Installation;
use installation::envelope::{Header, Job, ResourceKind};
use keys::units::BLOCK_SIZE;
use keys::{DekStack, with_wiped_call_stack};
use volume::Volume;
use volume::pipeline::DiskIo;

/// Bytes of the disk that are gone through at a time.
const STEP: u64 = 4 << 20;
/// How often what was copied is made durable, so that a kill costs no more, and the header is looked
/// at for somebody else's wish to stop.
const LOOK: Duration = Duration::from_secs(2);
/// How long it rests at a time for its limit: somebody may want it to stop.
const PAUSE: Duration = Duration::from_millis(100);

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobProgress {
    /// Bytes that the top layer has of what it is to have.
    pub done: u64,
    /// Bytes that it is to have.
    pub total: u64,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All is copied.
    Copied,
    /// Somebody paused or aborted it.
    Stopped,
}

/// Does the job of a disk to its end, if it has one that is not paused; whether it is at its end.
/// What is interrupted can be gone on with, also when a vault refuses a key meanwhile.
///
/// # Errors
/// [`DiskError`].
pub fn run_unattached(
    installation: &Installation,
    disk: &Disk,
    volume: &mut Unattached,
    cancel: &Cancel,
    progress: &mut dyn FnMut(JobProgress),
) -> Result<bool, DiskError> {
    let (header, deks) = disk.unlock_all(installation, disk.header_file()?.read()?)?;
    let Some(job) = header.job.clone().filter(|job| !job.paused) else {
        return Ok(header.job.is_none());
    };
    let keys = KeyWatch::of(installation, disk)?;
    let cancel = keys.stopping(cancel);
    // The ciphers leave parts of keys there.
    let copied = with_wiped_call_stack(|| {
        let io = open(disk, volume, &header, deks)?;
        copy(disk, io, &header, &job, &cancel, progress)
    });
    let judged = keys.judged(copied);
    let ended = match disk.kind() {
        ResourceKind::Disk => disk.keeping_failed_sync(installation, judged)?,
        ResourceKind::Snapshot | ResourceKind::Image => judged?,
    };
    match ended {
        End::Stopped => Ok(false),
        // Not for a job that was aborted since the last look.
        End::Copied if !goes_on(disk, &job)? => Ok(false),
        End::Copied => {
            drop_layers(installation, disk, volume, &job.drop)?;
            Ok(true)
        }
    }
}

/// Opens the disk to be copied; it has the only keys then.
fn open(
    disk: &Disk,
    unattached: &Unattached,
    header: &Header,
    deks: DekStack,
) -> Result<DiskIo, DiskError> {
    let paths = |layer: &_| disk.layer_paths(layer);
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let claim = unattached.claimed()?;
    disk.check_claim(header, &claim)?;
    let files = open_files(claim, header, paths)?;
    let map = layer_map(header, top, &paths(top))?;
    let volume = Arc::new(Volume::open_private(map, lower_layers(header, paths)?)?);
    // A run before this one may have failed, and its header may not have taken the word of it.
    volume.write_map_anew()?;
    Ok(DiskIo::open(volume, files, &deks)?)
}

/// The disk is closed when it returns, and its keys are gone.
fn copy(
    disk: &Disk,
    mut io: DiskIo,
    header: &Header,
    job: &Job,
    cancel: &Cancel,
    progress: &mut dyn FnMut(JobProgress),
) -> Result<End, DiskError> {
    let drop = layers_to_drop(header, job)?;
    let share = |volume: &Volume| -> Result<JobProgress, DiskError> {
        let share = volume.copy_up_progress(usize::from(drop), &|| cancel.check().is_ok());
        cancel.check()?;
        let (done, total) = share?;
        Ok(JobProgress {
            done: done * BLOCK_SIZE,
            total: total * BLOCK_SIZE,
        })
    };
    let mut now = share(io.volume())?;
    progress(now);
    let (mut at, mut looked) = (0, Instant::now());
    while at < header.size {
        cancel.check()?;
        let (len, begun) = (STEP.min(header.size - at), Instant::now());
        let copied = io.copy_up_behind(at, len, drop)?;
        at += len;
        now.done = (now.done + copied).min(now.total);
        progress(now);
        if let Some(rate) = job.rate {
            let least = Duration::from_secs_f64(copied as f64 / rate as f64);
            wait(begun + least, cancel)?;
        }
        if looked.elapsed() > LOOK {
            io.flush()?;
            if !goes_on(disk, job)? {
                return Ok(End::Stopped);
            }
            looked = Instant::now();
        }
    }
    io.flush()?;
    Ok(End::Copied)
}

/// Waits for a moment, or until it is to stop.
fn wait(until: Instant, cancel: &Cancel) -> Result<(), DiskError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(PAUSE));
        cancel.check()?;
    }
}

/// Whether the header still says that the job is to be done.
fn goes_on(disk: &Disk, job: &Job) -> Result<bool, DiskError> {
    let header = disk.header_file()?.read()?;
    let still = |now: &Job| now.kind == job.kind && now.drop == job.drop && !now.paused;
    Ok(header.claims().job.as_ref().is_some_and(still))
}
