//! Reading a file by position, holes included.

use std::io;

use super::length::file_len;

/// Positioned reads of a whole file, for loading a map.
pub trait ReadAt {
    /// Bytes in the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// What the operating system says; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Where, from `offset` on, the next bytes are that are not known to be a hole, which reads as zeros;
    /// `None` when there are none to the end of the file. A file system without holes says `offset`.
    ///
    /// # Errors
    /// What the operating system says.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// The file by itself, if its pages may be used where they lie.
    fn to_map(&self) -> Option<&std::fs::File> {
        None
    }
}

impl ReadAt for std::fs::File {
    fn size(&self) -> io::Result<u64> {
        file_len(self)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            // No data to the end, or an offset behind it.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system that does not know holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e.into()),
        }
    }

    fn to_map(&self) -> Option<&std::fs::File> {
        Some(self)
    }
}
