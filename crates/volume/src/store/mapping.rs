//! A data file that is memory itself (tmpfs, DAX), mapped: its ciphertext is read and written in
//! place, without a copy by the kernel and without a system call.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, fstatfs, statx};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::StoreError;

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// A layer beneath the top.
    Read,
    /// The top layer.
    ReadWrite,
}

/// The mapping of a whole data file.
///
/// Only pages that the file has are touched: blocks that were written and not given back. Touching a
/// hole of a full file system, or what is behind the end, would kill the process.
#[derive(Debug)]
pub struct DataMapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a DataMapping is an address range that stays mapped; it gives out raw pointers only.
unsafe impl Send for DataMapping {}
// SAFETY: as above.
unsafe impl Sync for DataMapping {}

impl DataMapping {
    /// Maps the first `len` bytes of `file`, if it is memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn of(file: &File, len: u64, access: Access) -> Result<Option<Self>, StoreError> {
        let fail = |source| StoreError::Io {
            what: "map the data file",
            source,
        };
        match is_memory(file).map_err(fail)? {
            true => Self::map(file, len, access).map(Some),
            false => Ok(None),
        }
    }

    /// Maps the first `len` bytes of `file`, which is memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn map(file: &File, len: u64, access: Access) -> Result<Self, StoreError> {
        let fail = |source| StoreError::Io {
            what: "map the data file",
            source,
        };
        let len = usize::try_from(len).map_err(|e| fail(io::Error::other(e)))?;
        let access = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }
            .map_err(|e| fail(e.into()))?;
        let ptr = NonNull::new(raw.cast())
            .ok_or_else(|| fail(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        Ok(Self { ptr, len })
    }

    /// The address of byte `at`, if `len` bytes from there on are mapped.
    pub(super) fn range(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        let at = usize::try_from(at).ok()?;
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `at` is at most the length of the mapping (just checked).
        Some(unsafe { self.ptr.add(at) })
    }
}

impl Drop for DataMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of` with this length. Whoever has an address of it has
        // the store too, which has this.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

fn is_memory(file: &File) -> io::Result<bool> {
    if fstatfs(file)?.f_type as u64 == TMPFS_MAGIC {
        return Ok(true);
    }
    let stat = match statx(
        file.as_fd(),
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    ) {
        // What is for another user alone tells nothing.
        Err(Errno::ACCESS) => return Ok(false),
        stat => stat?,
    };
    Ok(stat.stx_attributes.contains(StatxAttributes::DAX))
}
