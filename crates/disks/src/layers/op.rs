//! Every change of a disk's layers, and the one place that applies it.
//!
//! Where nobody has the disk attached, the command that asks for the change claims the disk and applies it.
//! Otherwise the process that has the disk attached applies it, since its data plane takes part. Both call
//! [`LayerOp::apply`]; what differs between them is behind [`SwapVolume`]. A new operation is a variant of
//! [`LayerOp`] and its arm of `apply`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::layers::clone::{CloneRequest, DeepCopyRequest, Wanted};
use crate::layers::clone_disk::clone_disk;
use crate::layers::drop_layers::drop_layers;
use crate::layers::grow::grow;
use crate::layers::job::{JobChange, begin_flatten, begin_merge, begin_rotation, change_job};
use crate::layers::revert::revert;
use crate::layers::snapshot::{SnapshotRequest, create_snapshot};
use crate::layers::swap_volume::SwapVolume;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::refuse_locked;
use installation::Installation;
use installation::envelope::{JobKind, ResourceKind};
use traces::Span;

/// A change of a disk's layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerOp {
    /// Makes a snapshot or an image of what the disk holds; the disk gets a new, empty top layer.
    CreateSnapshot(SnapshotRequest),
    /// Makes another disk of what the disk holds; both get a new, empty top layer.
    CloneDisk(CloneRequest),
    /// Makes a disk or a snapshot of what the disk holds, whose own job copies all of that into its top layer.
    DeepCopy(DeepCopyRequest),
    /// Gives the disk a new top layer under a new DEK, and begins the job that copies everything into it.
    RotateDek {
        /// Bytes per second to copy at most.
        rate: Option<u64>,
    },
    /// Begins the job that copies everything beneath the top layer into it.
    Flatten {
        /// Bytes per second to copy at most.
        rate: Option<u64>,
    },
    /// Begins the job that copies the layer right beneath the top layer into it.
    Merge {
        /// The layer that goes.
        layer: Uuid,
    },
    /// Drops layers whose content is in those above them.
    DropLayers {
        /// The layers; those that the disk does not have are skipped.
        layers: Vec<Uuid>,
    },
    /// Makes the disk hold what one of its snapshots holds. Nobody may have it attached.
    Revert {
        /// The snapshot's name.
        snapshot: String,
    },
    /// Grows the disk.
    Grow {
        /// Its new size in bytes.
        size: u64,
    },
    /// Pauses, resumes or aborts the job of the disk.
    Job {
        /// What the job must be, if it is given.
        kind: Option<JobKind>,
        /// What becomes of it.
        change: JobChange,
    },
}

/// Applies an operation to a disk, which may be attached.
pub type ChangeLayers<'a> = dyn FnMut(&Disk, &LayerOp) -> Result<Applied, DiskError> + 'a;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Applied {
    /// All that was asked for.
    Done,
    /// The header names a job, which copies what remains: in the background while the disk is attached, else
    /// when somebody calls [`run_unattached`](super::run_unattached).
    JobBegun,
    /// Nothing, since there was nothing to change.
    Nothing,
}

impl Applied {
    fn job_begun(begun: bool) -> Self {
        match begun {
            true => Self::JobBegun,
            false => Self::Nothing,
        }
    }
}

impl LayerOp {
    /// Applies the operation to a disk whose user is `volume`.
    ///
    /// # Errors
    /// [`DiskError`]. Unless it is [`DiskError::Attached`], [`DiskError::SizeNotServed`] or about the catalog,
    /// the disk has the layers and the size that it had.
    pub fn apply(
        &self,
        installation: &Installation,
        disk: &Disk,
        volume: &mut dyn SwapVolume,
    ) -> Result<Applied, DiskError> {
        let span = Span::begin(self.name());
        span.set("sealdisk.disk", disk.name().to_owned());
        let _entered = span.enter();
        let applied = self.apply_traced(installation, disk, volume);
        span.came_to(applied, |error| error.code())
    }

    /// As traces call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateSnapshot(_) => "create snapshot",
            Self::CloneDisk(_) => "clone disk",
            Self::DeepCopy(_) => "deep copy",
            Self::RotateDek { .. } => "rotate DEK",
            Self::Flatten { .. } => "flatten",
            Self::Merge { .. } => "merge",
            Self::DropLayers { .. } => "drop layers",
            Self::Revert { .. } => "revert",
            Self::Grow { .. } => "grow",
            Self::Job { .. } => "change job",
        }
    }

    /// Refuses what a management lock on the disk, or on what would be made of it, forbids. What has begun is gone on
    /// with: jobs, and what a deleted snapshot leaves to be merged.
    ///
    /// # Errors
    /// [`CatalogError::Locked`](installation::catalog::CatalogError::Locked).
    pub fn refuse_locked(&self, installation: &Installation, disk: &Disk) -> Result<(), DiskError> {
        match self {
            Self::CreateSnapshot(new) => refuse_locked(installation, new.kind, &new.name)?,
            Self::CloneDisk(new) => refuse_locked(installation, ResourceKind::Disk, &new.name)?,
            Self::DeepCopy(new) => refuse_locked(installation, new.kind, &new.request.name)?,
            Self::RotateDek { .. }
            | Self::Flatten { .. }
            | Self::Revert { .. }
            | Self::Grow { .. } => {
                refuse_locked(installation, ResourceKind::Disk, disk.name())?;
            }
            Self::Merge { .. } | Self::DropLayers { .. } | Self::Job { .. } => {}
        }
        Ok(())
    }

    fn apply_traced(
        &self,
        installation: &Installation,
        disk: &Disk,
        volume: &mut dyn SwapVolume,
    ) -> Result<Applied, DiskError> {
        match self {
            Self::CreateSnapshot(request) => {
                create_snapshot(installation, request, disk, volume).map(|()| Applied::Done)
            }
            Self::CloneDisk(request) => {
                let wanted = Wanted::Clone(request);
                clone_disk(installation, wanted, disk, volume).map(|()| Applied::Done)
            }
            Self::DeepCopy(request) => {
                let wanted = Wanted::DeepCopy(request);
                clone_disk(installation, wanted, disk, volume).map(|()| Applied::Done)
            }
            Self::RotateDek { rate } => {
                begin_rotation(installation, disk, volume, *rate).map(|()| Applied::JobBegun)
            }
            Self::Flatten { rate } => {
                begin_flatten(installation, disk, volume, *rate).map(Applied::job_begun)
            }
            Self::Merge { layer } => {
                begin_merge(installation, disk, volume, *layer).map(Applied::job_begun)
            }
            Self::DropLayers { layers } => {
                drop_layers(installation, disk, volume, layers).map(|()| Applied::Done)
            }
            Self::Revert { snapshot } => {
                let volume = volume.unattached().ok_or_else(|| disk.in_use())?;
                revert(installation, disk, volume, snapshot).map(|()| Applied::Done)
            }
            Self::Grow { size } => grow(installation, disk, volume, *size).map(|()| Applied::Done),
            Self::Job { kind, change } => change_job(installation, disk, volume, *kind, *change)
                .map(|()| match change {
                    JobChange::Resume(_) => Applied::JobBegun,
                    JobChange::Pause | JobChange::Abort => Applied::Done,
                }),
        }
    }

    /// Whether it takes the lock of the header alone, so that it is applied to a disk that another command has
    /// claimed: whoever does a job reads from time to time what the header says of it.
    pub fn needs_no_claim(&self) -> bool {
        matches!(self, Self::Job { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::swap_volume::{NewLayers, Unattached};
    use crate::resource::session::tests::attached;
    use installation::envelope::HeaderPayload;

    /// An attach that the disk was taken from.
    struct TakenFrom<'a>(&'a Disk, Uuid);

    impl SwapVolume for TakenFrom<'_> {
        fn still_has(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
            self.0.refuse_taken_over(header, self.1)
        }

        fn quiesce(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
            self.still_has(header)
        }

        fn swap(&mut self, _: NewLayers<'_>) -> Result<(), DiskError> {
            Ok(())
        }

        fn resume(&mut self) {}

        fn end(&mut self) {}

        fn grow(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
            Ok(())
        }

        fn unattached(&mut self) -> Option<&mut Unattached> {
            None
        }
    }

    #[test]
    fn an_attach_from_which_the_disk_was_taken_over_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let said = || {
            let found = disk.header_file().unwrap().read().unwrap();
            let header = found.claims();
            (
                header.attach,
                header.size,
                header.layers.len(),
                header.job.is_some(),
            )
        };
        let before = said();
        let snapshot = SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: "s".into(),
            incremental: false,
            data_dir: None,
        };
        let kind = None;
        let change = JobChange::Abort;
        for op in [
            LayerOp::CreateSnapshot(snapshot),
            LayerOp::RotateDek { rate: None },
            LayerOp::Flatten { rate: None },
            LayerOp::Merge {
                layer: Uuid::new_v4(),
            },
            LayerOp::Grow { size: 2 << 20 },
            LayerOp::Job { kind, change },
        ] {
            let mut volume = TakenFrom(&disk, Uuid::new_v4());
            let refused = op.apply(&installation, &disk, &mut volume);
            let name = op.name();
            assert!(matches!(refused, Err(DiskError::Attached { .. })), "{name}");
        }
        assert_eq!(said(), before);
    }
}
