//! Holes of files, and what a file system knows of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::length::file_len;

/// The next range from `at` on, up to `len`, in which a file has data. A file system that does not
/// tell holes has data everywhere.
///
/// # Errors
/// What the kernel says.
pub fn next_extent(file: &File, at: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(at..len)),
        Err(error) => return Err(error.into()),
    };
    if start >= len {
        return Ok(None);
    }
    let end = seek(file, SeekFrom::Hole(start))?.min(len);
    Ok((start < end).then_some(start..end))
}

/// Whether what [`next_extent`] gives of a file has space: not where all of it is said to be data, and less
/// is allocated.
///
/// # Errors
/// What the kernel says.
pub fn tells_holes(file: &File) -> io::Result<bool> {
    const ST_BLOCKS_UNIT: u64 = 512; // stat(2)
    let metadata = match file.metadata() {
        // What is for another user alone tells nothing.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        found => found?,
    };
    let len = metadata.len();
    let all = next_extent(file, 0, len)? == Some(0..len);
    Ok(!all || metadata.blocks() * ST_BLOCKS_UNIT >= len)
}

/// Whether the file system of a file that may be written to can make holes in it. Nothing is changed.
pub fn can_punch(file: &File) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Behind the end there is nothing.
    let Ok(len) = file_len(file) else {
        return true;
    };
    !matches!(
        fallocate(file, mode, len, 4096),
        Err(Errno::OPNOTSUPP | Errno::NOSYS)
    )
}
