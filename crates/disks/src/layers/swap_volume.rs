//! Whoever uses a disk while its layers change.
//!
//! A new or a dropped layer changes what a disk's header says, and with it what the disk's user reads and
//! writes. The steps are the same for a disk that a guest has and for one that nobody has attached; what
//! differs is behind [`SwapVolume`].
//!
//! # Order of steps
//!
//! Under the header's exclusive lock:
//!
//! 1. for a new layer, its files are made and synced, and its data file is claimed;
//! 2. [`SwapVolume::quiesce`]: what the disk's user has completed is durable, and no request is under way on
//!    the layers that the header names;
//! 3. the header names the new layers: this alone decides;
//! 4. [`SwapVolume::swap`]: the disk's user uses the new layers;
//! 5. after a drop, the files of the dropped layers are removed.
//!
//! When something fails before 3, [`SwapVolume::resume`] lets the user work with the old layers. After 3 nobody
//! may: a user that cannot swap is ended, and whoever comes next reads the header. A crash anywhere leaves the
//! old layers or the new ones, whole: what was completed under the old ones is in their durable maps by 2.

use std::path::Path;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use installation::Installation;
use installation::envelope::HeaderPayload;
use keys::DekStack;
use volume::store::LayerFile;

/// The layers that the header of a disk names from now on.
pub struct NewLayers<'a> {
    /// The header.
    pub header: &'a HeaderPayload,
    /// The DEKs of all its layers; for a command the top layer's may be all.
    pub deks: &'a DekStack,
    /// The data file of the top layer, when that is a new one. It was claimed before the header named
    /// it, so that nobody else could claim the disk in between.
    pub claim: Option<LayerFile>,
}

/// Whoever uses a disk's data, or keeps it from being used.
pub trait SwapVolume {
    /// Refuses a header, which was read under the lock, of a disk that was taken over from this user: whatever it is
    /// about to change is another's.
    ///
    /// # Errors
    /// [`DiskError::Attached`].
    fn still_has(&mut self, _header: &HeaderPayload) -> Result<(), DiskError> {
        Ok(())
    }

    /// Makes all that was completed durable, and holds back every further request. `header` is the one that was
    /// read under the lock, which names the layers that are used now.
    ///
    /// # Errors
    /// Why it is not quiesced; requests go on.
    fn quiesce(&mut self, header: &HeaderPayload) -> Result<(), DiskError>;

    /// Uses other layers, after [`SwapVolume::quiesce`], and resumes.
    ///
    /// # Errors
    /// Why it could not, for which it has ended: the layers are changed all the same, and the disk can
    /// be attached again.
    fn swap(&mut self, layers: NewLayers<'_>) -> Result<(), DiskError>;

    /// Resumes with the layers that it has, after [`SwapVolume::quiesce`], since the header could not be
    /// changed, or need not be. One that cannot resume has ended.
    fn resume(&mut self);

    /// Ends, after [`SwapVolume::quiesce`], since nobody can tell which layers the header names.
    fn end(&mut self);

    /// Serves the size that `header` says, to which the files have grown already. It takes no quiesce.
    ///
    /// # Errors
    /// [`DiskError::SizeNotServed`].
    fn grow(&mut self, header: &HeaderPayload) -> Result<(), DiskError>;

    /// The disk's user, if that is a command and no guest.
    fn unattached(&mut self) -> Option<&mut Unattached>;
}

/// A disk that nobody has attached: the command that changes it holds its claim.
pub struct Unattached {
    disk: Disk,
    claim: LayerFile,
}

impl Unattached {
    /// A disk whose claim that is. What an attach that died had completed is made durable first, so that
    /// from then on the durable map is all that there is.
    ///
    /// # Errors
    /// As [`Disk::settle`]; [`DiskError::SyncFailed`].
    pub fn settled(
        installation: &Installation,
        disk: &Disk,
        claim: LayerFile,
        runtime_dir: &Path,
    ) -> Result<Self, DiskError> {
        disk.settle(installation, &claim, runtime_dir)?;
        disk.refuse_failed_sync(disk.header_file()?.read()?.claims())?;
        let record = disk.record.clone();
        Ok(Self {
            disk: Disk { record },
            claim,
        })
    }

    /// Claims another top layer from now on.
    pub(super) fn take_claim(&mut self, claim: LayerFile) {
        self.claim = claim;
    }

    /// A second handle of the data file that is claimed: the top layer's.
    ///
    /// # Errors
    /// [`DiskError::Pipeline`].
    pub fn claimed(&self) -> Result<LayerFile, DiskError> {
        Ok(self
            .claim
            .try_clone()
            .map_err(volume::pipeline::PipelineError::from)?)
    }
}

impl SwapVolume for Unattached {
    /// All that was completed is durable since the disk was settled.
    fn quiesce(&mut self, header: &HeaderPayload) -> Result<(), DiskError> {
        self.disk.check_claim(header, &self.claim)
    }

    fn swap(&mut self, layers: NewLayers<'_>) -> Result<(), DiskError> {
        if let Some(claim) = layers.claim {
            self.take_claim(claim);
        }
        Ok(())
    }

    fn resume(&mut self) {}

    fn end(&mut self) {}

    fn grow(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
        Ok(())
    }

    fn unattached(&mut self) -> Option<&mut Unattached> {
        Some(self)
    }
}

/// A disk that another command has claimed.
pub struct ClaimedElsewhere<'a>(pub &'a Disk);

impl SwapVolume for ClaimedElsewhere<'_> {
    fn quiesce(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
        Err(self.0.in_use())
    }

    fn swap(&mut self, _: NewLayers<'_>) -> Result<(), DiskError> {
        Err(self.0.in_use())
    }

    fn resume(&mut self) {}

    fn end(&mut self) {}

    fn grow(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
        Err(self.0.in_use())
    }

    fn unattached(&mut self) -> Option<&mut Unattached> {
        None
    }
}
