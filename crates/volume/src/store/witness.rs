//! What the kernel has lost of a file, asked by somebody who has not synced it.
//!
//! The kernel tells of a write that it could not write back once for each open file: to the sync that finds out, and to
//! no file that is opened after that. When the process that it told is killed before it has noted it, nobody knows. So
//! another open file, which was there before, is kept for the question alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::StoreError;

/// A place that no file reaches, in bytes: where nothing is written back, and so nothing is waited for.
const NOWHERE: i64 = 1 << 62;

/// A second open file of a layer's data.
#[derive(Debug)]
pub struct Witness(File);

impl Witness {
    /// Knows of what is lost from now on.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = File::open(path).map(Self);
        opened.map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })
    }

    /// Why a write to the file was lost since it was opened, or asked last, if one was. Nothing is written and nothing
    /// waited for. What a device has lost that had told it to be written, the kernel does not keep in mind.
    pub fn lost_write(&self) -> Option<io::Error> {
        // SAFETY: the descriptor is open for as long as `self` is, and the call has nothing to do with memory.
        let asked = unsafe {
            libc::sync_file_range(
                self.0.as_raw_fd(),
                NOWHERE,
                1,
                libc::SYNC_FILE_RANGE_WAIT_BEFORE,
            )
        };
        if asked == 0 {
            return None;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // It cannot be asked here.
            Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE | libc::EBADF | libc::EPERM) => None,
            _ => Some(error),
        }
    }
}

impl From<OwnedFd> for Witness {
    fn from(file: OwnedFd) -> Self {
        Self(file.into())
    }
}

impl AsFd for Witness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_of_a_file_that_is_written_in_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let witness = Witness::open(file.path()).unwrap();
        std::fs::write(file.path(), [1; 4096]).unwrap();
        assert!(witness.lost_write().is_none());
        let passed = Witness::from(witness.as_fd().try_clone_to_owned().unwrap());
        assert!(passed.lost_write().is_none());
        assert!(Witness::open(Path::new("/nowhere")).is_err());
    }
}
