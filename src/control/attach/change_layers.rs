//! Changing the layers of a disk, whether it is attached or not: the process that has it attached is
//! asked to, or, when nobody has it, this one does it.

use std::path::Path;

use uuid::Uuid;

use crate::control::Installation;
use crate::control::disks::{
    self, Disk, DiskError, FreezeRequest, JobChange, JobProgress, Reach, Unattached,
};
use crate::control::import::Cancel;
use crate::envelope::JobKind;
use volume::store::LayerFile;

use super::AttachError;
use super::exchange;
use super::resize::claim_or_reach;

/// Somebody who changes the layers of disks.
pub struct LayerChanges<'a> {
    /// Where the disks are known.
    pub installation: &'a Installation,
    /// Where attached disks are reached.
    pub runtime_dir: &'a Path,
    /// A wish to stop.
    pub cancel: &'a Cancel,
}

impl LayerChanges<'_> {
    /// Makes a snapshot or an image of a disk.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn freeze(&self, disk: &str, request: FreezeRequest) -> Result<(), AttachError> {
        let disk = Disk::find(self.installation, disk)?;
        match claim_or_reach(&disk, self.runtime_dir)? {
            Some(claim) => {
                let mut running = self.unattached(&disk, claim)?;
                Ok(disks::freeze_into(
                    self.installation,
                    &request,
                    &disk,
                    &mut running,
                )?)
            }
            None => exchange::freeze_into(self.runtime_dir, disk.id(), &request),
        }
    }

    /// Gives a disk what a snapshot of it holds. It must not be attached.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn revert(&self, disk: &str, snapshot: &str) -> Result<(), AttachError> {
        let disk = Disk::find(self.installation, disk)?;
        let claim = disk.claim(
            disk.header_file()?
                .read()
                .map_err(DiskError::from)?
                .claims(),
        )?;
        let mut running = self.unattached(&disk, claim)?;
        Ok(disks::revert(
            self.installation,
            &disk,
            &mut running,
            snapshot,
        )?)
    }

    /// Begins the rotation of a disk's DEK. Of a disk that nobody uses it is done when this returns,
    /// unless `wait` is false: then the next attach, or [`LayerChanges::change_job`], goes on.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn rotate_dek(
        &self,
        disk: &str,
        rate: Option<u64>,
        wait: bool,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<(), AttachError> {
        let disk = Disk::find(self.installation, disk)?;
        match claim_or_reach(&disk, self.runtime_dir)? {
            Some(claim) => {
                let mut running = self.unattached(&disk, claim)?;
                disks::begin_rotation(self.installation, &disk, &mut running, rate)?;
                self.run(&disk, &mut running, wait, progress)
            }
            None => exchange::begin_rotation(self.runtime_dir, disk.id(), rate),
        }
    }

    /// Begins to make a disk independent of what is beneath its top layer; whether there is anything.
    /// Otherwise as [`LayerChanges::rotate_dek`].
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn flatten(
        &self,
        disk: &str,
        rate: Option<u64>,
        wait: bool,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<bool, AttachError> {
        let disk = Disk::find(self.installation, disk)?;
        match claim_or_reach(&disk, self.runtime_dir)? {
            Some(claim) => {
                let mut running = self.unattached(&disk, claim)?;
                let begun = disks::begin_flatten(self.installation, &disk, rate)?;
                self.run(&disk, &mut running, wait, progress)?;
                Ok(begun)
            }
            None => exchange::begin_flatten(self.runtime_dir, disk.id(), rate),
        }
    }

    /// Pauses, resumes or aborts the job of a disk. Of a disk that nobody uses, a job that is resumed
    /// is done when this returns, unless `wait` is false.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn change_job(
        &self,
        disk: &str,
        kind: JobKind,
        change: JobChange,
        wait: bool,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<(), AttachError> {
        let disk = Disk::find(self.installation, disk)?;
        let header = disk.header_file()?.read().map_err(DiskError::from)?;
        let claim = match disk.claim(header.claims()) {
            Ok(claim) => claim,
            Err(DiskError::InUse { .. }) => {
                let kind = Some(kind);
                let asked = exchange::change_job(self.runtime_dir, disk.id(), kind, change);
                return match asked {
                    // A command that does the job by itself looks at the header.
                    Err(AttachError::NotAttached { .. }) => {
                        Ok(disks::change_job(self.installation, &disk, kind, change)?)
                    }
                    asked => asked,
                };
            }
            Err(error) => return Err(error.into()),
        };
        let mut running = self.unattached(&disk, claim)?;
        disks::change_job(self.installation, &disk, Some(kind), change)?;
        match change {
            JobChange::Resume(_) => self.run(&disk, &mut running, wait, progress),
            JobChange::Pause | JobChange::Abort => Ok(()),
        }
    }

    fn unattached(&self, disk: &Disk, claim: LayerFile) -> Result<Unattached, DiskError> {
        Unattached::settled(self.installation, disk, claim, self.runtime_dir)
    }

    fn run(
        &self,
        disk: &Disk,
        running: &mut Unattached,
        wait: bool,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<(), AttachError> {
        if wait {
            disks::run_unattached(self.installation, disk, running, self.cancel, progress)?;
        }
        Ok(())
    }
}

/// As an error of disks.
fn refused(disk: &Disk, error: AttachError) -> DiskError {
    match error {
        AttachError::Disk(error) => error,
        error => DiskError::Attached {
            name: disk.name().into(),
            why: error.to_string(),
        },
    }
}

impl Reach for LayerChanges<'_> {
    fn shed(&self, disk: &Disk, layers: &[Uuid]) -> Result<(), DiskError> {
        match claim_or_reach(disk, self.runtime_dir)? {
            Some(claim) => {
                let mut running = self.unattached(disk, claim)?;
                disks::shed(self.installation, disk, &mut running, layers)
            }
            None => exchange::shed(self.runtime_dir, disk.id(), layers)
                .map_err(|error| refused(disk, error)),
        }
    }

    fn merge_into_top(&self, disk: &Disk, layer: Uuid) -> Result<(), DiskError> {
        match claim_or_reach(disk, self.runtime_dir)? {
            Some(claim) => {
                let mut running = self.unattached(disk, claim)?;
                if disks::begin_merge(self.installation, disk, layer)? {
                    disks::run_unattached(
                        self.installation,
                        disk,
                        &mut running,
                        self.cancel,
                        &mut |_| {},
                    )?;
                }
                Ok(())
            }
            None => exchange::begin_merge(self.runtime_dir, disk.id(), layer)
                .map(drop)
                .map_err(|error| refused(disk, error)),
        }
    }
}
