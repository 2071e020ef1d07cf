//! A data file that is memory itself (tmpfs, DAX), mapped: its ciphertext is read, and on tmpfs written, in
//! place, without a copy by the kernel and without a system call.
//!
//! Persistent memory takes 8 bytes as a whole, and gets what a processor stores when its caches give up a line, in
//! any order. So of a write into a mapping each line of 64 bytes could be old or new after a loss of power, until a
//! sync: a guest counts on whole sectors. The kernel copies past the caches and is done when its call
//! returns, so that only a write in flight can be torn. Such a file is written by the kernel therefore.

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

/// The mapping of a whole data file.
///
/// Only pages that the file has are touched: blocks that were written and not given back. Touching a
/// hole of a full file system, or what is behind the end, would kill the process.
#[derive(Debug)]
pub struct DataMapping {
    ptr: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: a DataMapping is an address range that stays mapped; it gives out raw pointers only.
unsafe impl Send for DataMapping {}
// SAFETY: as above.
unsafe impl Sync for DataMapping {}

impl DataMapping {
    /// Maps the first `len` bytes of the top layer's data file, if it is memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn of_top(file: &File, len: u64) -> Result<Option<Self>, StoreError> {
        match Memory::of(file).map_err(cannot_map)? {
            Some(Memory::Volatile) => Self::map(file, len, true).map(Some),
            Some(Memory::Persistent) => Self::map(file, len, false).map(Some),
            None => Ok(None),
        }
    }

    /// Maps the first `len` bytes of the data file of a layer beneath the top, if it is memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn of_lower(file: &File, len: u64) -> Result<Option<Self>, StoreError> {
        match Memory::of(file).map_err(cannot_map)? {
            Some(_) => Self::map(file, len, false).map(Some),
            None => Ok(None),
        }
    }

    fn map(file: &File, len: u64, writable: bool) -> Result<Self, StoreError> {
        let len = usize::try_from(len).map_err(|e| cannot_map(io::Error::other(e)))?;
        let access = match writable {
            false => ProtFlags::READ,
            true => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, 0) }
            .map_err(|e| cannot_map(e.into()))?;
        let ptr = NonNull::new(raw.cast())
            .ok_or_else(|| cannot_map(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        Ok(Self { ptr, len, writable })
    }

    /// Whether it may be written to.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
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

fn cannot_map(source: io::Error) -> StoreError {
    StoreError::Io {
        what: "map the data file",
        source,
    }
}

/// What a file is that is memory.
enum Memory {
    /// tmpfs: gone with the power.
    Volatile,
    /// DAX.
    Persistent,
}

impl Memory {
    fn of(file: &File) -> io::Result<Option<Self>> {
        if fstatfs(file)?.f_type as u64 == TMPFS_MAGIC {
            return Ok(Some(Self::Volatile));
        }
        let stat = match statx(
            file.as_fd(),
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::BASIC_STATS,
        ) {
            // What is for another user alone tells nothing.
            Err(Errno::ACCESS) => return Ok(None),
            stat => stat?,
        };
        let is_dax = stat.stx_attributes.contains(StatxAttributes::DAX);
        Ok(is_dax.then_some(Self::Persistent))
    }
}
