//! Changes of an attached disk's layers, asked for by another process and made in the one that
//! attached it: that one has the data plane, which has to take part.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::disks::{self, DiskError, FreezeRequest, JobChange};
use crate::envelope::JobKind;
use keys::with_wiped_stack;

use super::AttachError;
use super::control_socket::{Handles, change_layers};

/// A change of layers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Change {
    /// A snapshot or an image of the disk.
    Freeze(FreezeRequest),
    /// A new DEK; with this many bytes a second at most.
    Rotate { rate: Option<u64> },
    /// Everything beneath the top copied into it.
    Flatten { rate: Option<u64> },
    /// The layer right beneath the top copied into it.
    Merge { layer: Uuid },
    /// Layers without which all content is there.
    Shed { layers: Vec<Uuid> },
    /// Something else of the job, which has to be of that kind, if one is given.
    Job {
        kind: Option<JobKind>,
        change: JobChange,
    },
}

impl Change {
    /// Makes it; whether there was anything to change.
    pub(super) fn make(self, attached: &Handles) -> Result<bool, String> {
        let turn = attached.serving.changing();
        let made = with_wiped_stack(|| self.make_with(attached));
        if let Ok(header) = attached
            .disk
            .header_file()
            .and_then(|file| Ok(file.read()?))
            && let Some(job) = &header.claims().job
        {
            // Whoever asked for it sees it at once, until it is done.
            attached.board.announce_job(job.kind, job.paused);
        }
        drop(turn);
        attached.jobs.look();
        made.map_err(|error| error.to_string().replace('\n', " "))
    }

    fn make_with(self, attached: &Handles) -> Result<bool, DiskError> {
        let (installation, disk) = (&*attached.installation, &*attached.disk);
        let mut running = &*attached.serving;
        match self {
            Self::Freeze(request) => {
                disks::freeze_into(installation, &request, disk, &mut running)?;
            }
            Self::Rotate { rate } => {
                disks::begin_rotation(installation, disk, &mut running, rate)?;
            }
            Self::Flatten { rate } => return disks::begin_flatten(installation, disk, rate),
            Self::Merge { layer } => return disks::begin_merge(installation, disk, layer),
            Self::Shed { layers } => disks::shed(installation, disk, &mut running, &layers)?,
            Self::Job { kind, change } => disks::change_job(installation, disk, kind, change)?,
        }
        Ok(true)
    }
}

/// As [`disks::freeze_into`] for a disk that is attached.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn freeze_into(
    runtime_dir: &Path,
    disk: Uuid,
    request: &FreezeRequest,
) -> Result<(), AttachError> {
    change_layers(runtime_dir, disk, Change::Freeze(request.clone())).map(drop)
}

/// As [`disks::begin_rotation`] for a disk that is attached.
///
/// # Errors
/// As [`freeze_into`].
pub fn begin_rotation(
    runtime_dir: &Path,
    disk: Uuid,
    rate: Option<u64>,
) -> Result<(), AttachError> {
    change_layers(runtime_dir, disk, Change::Rotate { rate }).map(drop)
}

/// As [`disks::begin_flatten`] for a disk that is attached.
///
/// # Errors
/// As [`freeze_into`].
pub fn begin_flatten(
    runtime_dir: &Path,
    disk: Uuid,
    rate: Option<u64>,
) -> Result<bool, AttachError> {
    change_layers(runtime_dir, disk, Change::Flatten { rate })
}

/// As [`disks::begin_merge`] for a disk that is attached.
///
/// # Errors
/// As [`freeze_into`].
pub fn begin_merge(runtime_dir: &Path, disk: Uuid, layer: Uuid) -> Result<bool, AttachError> {
    change_layers(runtime_dir, disk, Change::Merge { layer })
}

/// As [`disks::shed`] for a disk that is attached.
///
/// # Errors
/// As [`freeze_into`].
pub fn shed(runtime_dir: &Path, disk: Uuid, layers: &[Uuid]) -> Result<(), AttachError> {
    let layers = layers.to_vec();
    change_layers(runtime_dir, disk, Change::Shed { layers }).map(drop)
}

/// As [`disks::change_job`] for a disk that is attached.
///
/// # Errors
/// As [`freeze_into`].
pub fn change_job(
    runtime_dir: &Path,
    disk: Uuid,
    kind: Option<JobKind>,
    change: JobChange,
) -> Result<(), AttachError> {
    change_layers(runtime_dir, disk, Change::Job { kind, change }).map(drop)
}
