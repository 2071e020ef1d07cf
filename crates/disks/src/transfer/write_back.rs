//! Files that are written in order, and are on the disk soon after they are complete.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes after which the kernel is to begin to write them to the disk.
const WINDOW: u64 = 8 << 20;

/// A new file. The kernel would keep what is written in its page cache and do nothing until it is synced,
/// or has a tenth of the memory.
pub(super) struct WriteBack {
    file: File,
    /// Where what the kernel writes back ends.
    begun: u64,
}

impl WriteBack {
    pub(super) fn new(file: File) -> Self {
        Self { file, begun: 0 }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes `bytes` at `offset`, which is seldom before where the last call ended.
    pub(super) fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        if end >= self.begun.saturating_add(WINDOW) {
            self.begin(end);
        }
        Ok(())
    }

    /// Has the kernel begin to write up to `end`. Where it cannot, or fails to write, the sync of the
    /// whole file does or says so.
    fn begin(&mut self, end: u64) {
        let len = (end - self.begun) as i64;
        // SAFETY: the call gets numbers only, and a descriptor that is open.
        unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                self.begun as i64,
                len,
                libc::SYNC_FILE_RANGE_WRITE,
            )
        };
        self.begun = end;
    }
}
