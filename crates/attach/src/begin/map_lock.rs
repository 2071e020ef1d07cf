//! The lock that shows whether anything of a data plane is still under way on its disk.
//!
//! A process that was killed is gone before its I/O is: the kernel takes its rings apart later, and what they had
//! submitted may still reach the storage, after a newer write of whoever comes next. Each ring of a data plane
//! holds the map of the top layer open until its last operation is done. So the map is locked through the very
//! open file that the data plane gets, and nobody else gets the lock before.

use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::begin::data_plane::process;
use crate::error::AttachError;
use volume::store::StackFiles;

/// How long a data plane of an attach that has ended is waited for, whose disk was claimed already.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// Locks the map of the top layer for the data plane that gets these files; `false` while that of another one is
/// still locked.
///
/// # Errors
/// What the kernel says.
pub(crate) fn lock_map(files: &StackFiles) -> io::Result<bool> {
    match flock(files.map.file(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The same, for which a data plane that has just ended is waited for.
///
/// # Errors
/// [`AttachError::Process`].
pub(crate) fn await_map(files: &StackFiles) -> Result<(), AttachError> {
    let fail = process("lock the map of the top layer");
    let deadline = Instant::now() + PATIENCE;
    while !lock_map(files).map_err(&fail)? {
        if Instant::now() >= deadline {
            return Err(fail(io::ErrorKind::ResourceBusy.into()));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
