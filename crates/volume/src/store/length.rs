//! The length of a file.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};

/// How many bytes a file has. A FUSE file system that is for the user alone who mounted it tells nobody else
/// anything of a file, whatever is open: but where it ends.
///
/// # Errors
/// What the kernel says.
pub fn file_len(file: &File) -> io::Result<u64> {
    match file.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(seek(file, SeekFrom::End(0))?)
        }
        Err(error) => Err(error),
    }
}
