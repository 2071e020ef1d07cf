//! Exchanging the stack of layers of a disk, whoever uses the disk meanwhile.
//!
//! Pushing a layer and dropping layers change what a disk's header says, and with it what whoever
//! uses the disk reads and writes. The steps are the same for a disk that a guest has and for one
//! that nobody has; what differs is behind [`Running`].
//!
//! # Order of steps
//!
//! Under the header's exclusive lock:
//!
//! 1. for a push, the files of the new layer are made and synced, and its data file is claimed;
//! 2. [`Running::freeze`]: what the disk's user has completed is durable, and nothing more happens
//!    to the layers that the header names;
//! 3. the header names the new stack: this alone decides;
//! 4. [`Running::restack`]: the disk's user goes on with the new stack;
//! 5. after a drop, the files of the dropped layers go.
//!
//! When something fails before 3, [`Running::thaw`] lets the user go on with the old stack. After 3
//! nobody may: a user that cannot take the new stack is ended, and whoever comes next reads the
//! header. A crash anywhere leaves the old stack or the new one, whole: what was completed under the
//! old one is in its durable map by 2.

use std::path::Path;

use super::{Disk, DiskError};
use crate::control::Installation;
use crate::envelope::HeaderPayload;
use keys::DekStack;
use volume::store::LayerFile;

/// A stack that the header names already.
pub struct NewStack<'a> {
    /// The header.
    pub header: &'a HeaderPayload,
    /// The DEKs of all its layers.
    pub deks: &'a DekStack,
    /// The data file of the top layer, when that is a new one. It was claimed before the header named
    /// it, so that nobody else could claim the disk in between.
    pub claim: Option<LayerFile>,
}

/// Whoever uses a disk's data, or keeps it from being used.
pub trait Running {
    /// Makes all that was completed durable and stands still. `header` is the one that was read
    /// under the lock, which names the stack that is used now.
    ///
    /// # Errors
    /// Why it goes on as before instead.
    fn freeze(&mut self, header: &HeaderPayload) -> Result<(), DiskError>;

    /// Goes on with a new stack, after [`Running::freeze`].
    ///
    /// # Errors
    /// Why it could not, for which it has ended: the stack is changed all the same, and the disk can
    /// be attached again.
    fn restack(&mut self, stack: NewStack<'_>) -> Result<(), DiskError>;

    /// Goes on as before [`Running::freeze`], since the header could not be changed. One that cannot
    /// go on has ended.
    fn thaw(&mut self);

    /// Ends, after [`Running::freeze`], since nobody can tell which stack the header names.
    fn end(&mut self);
}

/// A disk that nobody uses: the command that changes it holds its claim.
pub struct Unattached {
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
        Ok(Self { claim })
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

impl Running for Unattached {
    /// All that was completed is durable since the disk was settled.
    fn freeze(&mut self, _: &HeaderPayload) -> Result<(), DiskError> {
        Ok(())
    }

    fn restack(&mut self, stack: NewStack<'_>) -> Result<(), DiskError> {
        if let Some(claim) = stack.claim {
            self.take_claim(claim);
        }
        Ok(())
    }

    fn thaw(&mut self) {}

    fn end(&mut self) {}
}
