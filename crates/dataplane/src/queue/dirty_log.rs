//! Telling the frontend which pages of guest memory were written, while it migrates the guest.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, GuestAddress, MmapRegion, VolatileMemory};

/// Bytes of guest memory that a bit stands for (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// The bitmap that the frontend shares with `SET_LOG_BASE`: bit `n` is set when the guest's page
/// `n` was written.
pub(crate) struct DirtyLog {
    region: MmapRegion<()>,
}

impl DirtyLog {
    /// Maps `len` bytes of `file` from `offset` on.
    pub(crate) fn new(file: File, offset: u64, len: u64) -> io::Result<Self> {
        let file_len = file.metadata()?.len();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > file_len)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let region = MmapRegion::from_file(FileOffset::new(file, offset), len);
        Ok(Self {
            region: region.map_err(io::Error::other)?,
        })
    }

    /// Notes that `len` bytes at `at` were written. Pages that the bitmap does not cover are not
    /// the guest's.
    pub(crate) fn mark(&self, at: GuestAddress, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|rest| at.0.checked_add(rest)) else {
            return;
        };
        for page in at.0 / PAGE..=last / PAGE {
            let Ok(byte) = self.region.get_atomic_ref::<AtomicU8>((page / 8) as usize) else {
                return;
            };
            byte.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }
}
