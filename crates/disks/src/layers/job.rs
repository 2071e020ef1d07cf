//! What is being done to a disk's layers, as its header has it: so that it goes on, or stays paused,
//! whatever dies.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::layers::push::{push, refuse_job};
use crate::layers::swap_volume::SwapVolume;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use installation::Installation;
use installation::envelope::{Header, HeaderPayload, Job, JobKind};

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobChange {
    /// It is paused until it is resumed, also when the disk is attached anew.
    Pause,
    /// It goes on, with this limit in bytes per second.
    Resume(Option<u64>),
    /// It is over: the disk keeps all the layers that it has.
    Abort,
}

/// Gives a disk a new DEK: a layer with it is pushed, into which everything beneath is to be copied.
///
/// # Errors
/// As [`create_snapshot`](super::snapshot::create_snapshot).
pub(super) fn begin_rotation(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    rate: Option<u64>,
) -> Result<(), DiskError> {
    push(
        installation,
        disk,
        volume,
        |_, _| Ok(()),
        |header| {
            header.generation = header.generation.saturating_add(1);
            header.job = Some(Job {
                kind: JobKind::Rotate,
                drop: beneath(header),
                paused: false,
                rate,
            });
        },
    )
}

/// Has everything beneath the top layer of a disk copied into it, so that it depends on nothing.
/// Whether there is anything beneath.
///
/// # Errors
/// [`DiskError::JobUnderWay`], and others, after which nothing has changed.
pub(super) fn begin_flatten(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    rate: Option<u64>,
) -> Result<bool, DiskError> {
    set_job(installation, disk, volume, |header| {
        refuse_job(disk, header)?;
        let drop = beneath(header);
        if drop.is_empty() {
            return Ok(false);
        }
        header.job = Some(Job {
            kind: JobKind::Flatten,
            drop,
            paused: false,
            rate,
        });
        Ok(true)
    })
}

/// Has the layer right beneath the top of a disk copied into it. Whether it is there.
///
/// # Errors
/// As [`begin_flatten`].
pub(super) fn begin_merge(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    layer: Uuid,
) -> Result<bool, DiskError> {
    set_job(installation, disk, volume, |header| {
        refuse_job(disk, header)?;
        if beneath(header).last() != Some(&layer) {
            return Ok(false);
        }
        header.job = Some(Job {
            kind: JobKind::Merge,
            drop: vec![layer],
            paused: false,
            rate: None,
        });
        Ok(true)
    })
}

/// Changes the job of a disk, which `kind` must be if it is given.
///
/// # Errors
/// [`DiskError::NoJob`], and others, after which nothing has changed.
pub(super) fn change_job(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    kind: Option<JobKind>,
    change: JobChange,
) -> Result<(), DiskError> {
    set_job(installation, disk, volume, |header| {
        let wanted = |job: &&mut Job| kind.is_none_or(|kind| job.kind == kind);
        let Some(job) = header.job.as_mut().filter(wanted) else {
            return Err(DiskError::NoJob {
                name: disk.name().into(),
            });
        };
        match change {
            JobChange::Pause => job.paused = true,
            JobChange::Resume(rate) => (job.paused, job.rate) = (false, rate),
            JobChange::Abort => header.job = None,
        }
        Ok(true)
    })
    .map(drop)
}

/// How many layers beneath the top a job is about: they are the ones right beneath it.
///
/// # Errors
/// [`DiskError::Argument`] when they are not.
pub fn layers_to_drop(header: &HeaderPayload, job: &Job) -> Result<u8, DiskError> {
    let next = beneath(header);
    let count = job.drop.len();
    let meant = next.iter().rev().take(count);
    if count <= next.len() && meant.clone().all(|id| job.drop.contains(id)) {
        // A header has no more than 32 layers.
        return Ok(count as u8);
    }
    Err(DiskError::Argument(format!(
        "the job of the disk {} is about other layers than those beneath its top",
        header.name
    )))
}

fn beneath(header: &HeaderPayload) -> Vec<Uuid> {
    let all = header.layers.len().saturating_sub(1);
    header.layers[..all].iter().map(|layer| layer.id).collect()
}

/// Writes the header, in both copies, if `change` says so.
fn set_job(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    change: impl FnOnce(&mut Header) -> Result<bool, DiskError>,
) -> Result<bool, DiskError> {
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let (mut header, dek) = disk.unlock(installation, lock.read()?)?;
    volume.still_has(&header)?;
    let changed = change(&mut header)?;
    if changed {
        lock.write(&header, &dek)?;
        lock.write(&header, &dek)?;
    }
    Ok(changed)
}
