//! Asking for a change of a disk's layers: the one function for it, whoever has the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::AttachError;
use crate::serve::control_client::{key_status, send_layer_op};
use disks::import::Cancel;
use disks::{self, Applied, ClaimedElsewhere, Disk, DiskError, JobProgress, LayerOp, Unattached};
use installation::Installation;
use volume::store::LayerFile;

/// How long an attach that has begun is waited for until it can be asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it is that one on this host is waited for where another host has the disk by its header.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Somebody who changes the layers of disks.
pub struct LayerChanges<'a> {
    /// Where the disks are known.
    pub installation: &'a Installation,
    /// Where attached disks are reached.
    pub runtime_dir: &'a Path,
    /// A wish to stop.
    pub cancel: &'a Cancel,
    /// Run a job that an operation begins to its end, where nobody has the disk attached. Else the next attach
    /// goes on with it, or whoever resumes it.
    pub wait: bool,
}

/// Who has a disk.
enum Holder {
    /// This command, since nobody else has it.
    Us(LayerFile),
    /// A process that has it attached, and answers.
    Attach,
    /// Another command.
    Command,
}

impl LayerChanges<'_> {
    /// Applies an operation to a disk: here when nobody has the disk attached, else in the process that has.
    /// `progress` is told of a job that runs here.
    ///
    /// # Errors
    /// [`AttachError::Disk`] and [`AttachError::NotApplied`], of which [`LayerOp::apply`] says what they leave;
    /// [`AttachError::OtherVersion`], and others of asking, after which nothing has changed.
    pub fn change_layers(
        &self,
        disk: &Disk,
        op: &LayerOp,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<Applied, AttachError> {
        op.refuse_locked(self.installation, disk)?;
        loop {
            match self.holder(disk, op)? {
                Holder::Us(claim) => return Ok(self.apply_here(disk, op, claim, progress)?),
                Holder::Attach => match send_layer_op(self.runtime_dir, disk.id(), op) {
                    // It was detached meanwhile, and nothing was sent.
                    Err(error) if error.nobody_listens() => {}
                    answer => return answer,
                },
                Holder::Command => {
                    return Ok(op.apply(self.installation, disk, &mut ClaimedElsewhere(disk))?);
                }
            }
        }
    }

    /// Goes on with the job of a disk that nobody has, or of a snapshot that is a deep copy, as its header has it: one that
    /// is paused stays paused, and what has become of it is in the header. `progress` is told of it.
    ///
    /// # Errors
    /// [`DiskError::InUse`] and [`DiskError::Awaited`]: whoever has the disk goes on with it. Others, after which it can
    /// be gone on with.
    pub fn go_on(
        &self,
        disk: &Disk,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<(), DiskError> {
        let claim = disk.claim()?;
        disk.refuse_granted(self.installation)?;
        let mut volume = Unattached::settled(self.installation, disk, claim, self.runtime_dir)?;
        let (installation, cancel) = (self.installation, self.cancel);
        disks::run_unattached(installation, disk, &mut volume, cancel, progress).map(drop)
    }

    /// Merges the layers that were noted for it, of all disks.
    ///
    /// # Errors
    /// As [`disks::merge_all`].
    pub fn merge_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), DiskError> {
        let mut change = |disk: &Disk, op: &LayerOp| {
            let applied = self.change_layers(disk, op, &mut |_| {});
            applied.map_err(|error| match error {
                AttachError::Disk(error) => error,
                error => DiskError::Attached {
                    name: disk.name().into(),
                    why: error.to_string(),
                },
            })
        };
        disks::merge_all(self.installation, &mut change, self.cancel, progress)
    }

    fn apply_here(
        &self,
        disk: &Disk,
        op: &LayerOp,
        claim: LayerFile,
        progress: &mut dyn FnMut(JobProgress),
    ) -> Result<Applied, DiskError> {
        let installation = self.installation;
        let mut volume = Unattached::settled(installation, disk, claim, self.runtime_dir)?;
        let applied = op.apply(installation, disk, &mut volume)?;
        if applied == Applied::JobBegun && self.wait {
            disks::run_unattached(installation, disk, &mut volume, self.cancel, progress)?;
        }
        Ok(applied)
    }

    /// Claims the disk, or finds out who has. An attach that has just begun is waited for.
    fn holder(&self, disk: &Disk, op: &LayerOp) -> Result<Holder, DiskError> {
        let (begun, mut is_asked) = (Instant::now(), false);
        loop {
            let claimed = disk.claim();
            disk.refuse_granted(self.installation)?;
            let in_use = match claimed {
                Ok(claim) => return Ok(Holder::Us(claim)),
                Err(error @ DiskError::InUse { .. }) => error,
                Err(error) => return Err(error),
            };
            match key_status(self.runtime_dir, disk.id()) {
                Ok(_) => return Ok(Holder::Attach),
                Err(error) if op.needs_no_claim() && error.nobody_listens() => {
                    return Ok(Holder::Command);
                }
                // Whoever has it is no attach of this runtime directory.
                Err(_) if begun.elapsed() > PATIENCE => return Err(in_use),
                Err(_) if !is_asked && begun.elapsed() > ELSEWHERE => {
                    is_asked = true;
                    let where_it_is = disk.in_use_where(self.installation, in_use);
                    if matches!(where_it_is, DiskError::AttachedElsewhere { .. }) {
                        return Err(where_it_is);
                    }
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}
