//! Raw images: regular files and block devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, SeekFrom as Whence, fadvise, seek};
use rustix::io::Errno;

use super::{ImportError, SourceImage, locks, parallels};

/// The bytes of a file or block device.
pub(super) struct RawImage {
    file: File,
    path: PathBuf,
    size: u64,
    /// Whether the kernel can tell data from holes here.
    sparse: bool,
}

impl RawImage {
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        // O_NONBLOCK: opening a pipe must not wait for a writer before it is refused.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(error("open", path))?;
        Self::of(file, path)
    }

    /// A file that was opened with `O_NONBLOCK`, which is called so.
    pub(super) fn of(mut file: File, path: &Path) -> Result<Self, ImportError> {
        let kind = file.metadata().map_err(error("inspect", path))?.file_type();
        if kind.is_dir() && path.join(parallels::DESCRIPTION).exists() {
            return Err(parallels::is_directory(path));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImportError::NotAnImage { path: path.into() });
        }
        // A block device's metadata has no length.
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(error("measure", path))?;
        Ok(Self {
            file,
            path: path.into(),
            size,
            sparse: kind.is_file(),
        })
    }

    /// Bytes of storage that the image takes, however long it says it is.
    ///
    /// # Errors
    /// [`ImportError::Io`].
    pub(super) fn allocated(&self) -> Result<u64, ImportError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(error("inspect", &self.path))?;
        Ok(match metadata.is_file() {
            true => metadata.blocks() * 512,
            false => self.size,
        })
    }

    /// Has QEMU's processes know that the image is being read.
    ///
    /// # Errors
    /// [`ImportError::Locked`] when one of them writes to it.
    pub(super) fn lock(&self) -> Result<(), ImportError> {
        locks::hold(&self.file, &self.path)
    }

    /// Where it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The first `size` bytes, which are there.
    pub(super) fn start(self, size: u64) -> Self {
        Self {
            size: size.min(self.size),
            ..self
        }
    }

    /// The same once more.
    pub(super) fn try_clone(&self) -> Result<Self, ImportError> {
        Ok(Self {
            file: self.duplicate()?,
            path: self.path.clone(),
            ..*self
        })
    }

    /// The file, for reading by another thread; its locks are kept as long as either is open.
    pub(super) fn duplicate(&self) -> Result<File, ImportError> {
        self.file
            .try_clone()
            .map_err(error("duplicate the descriptor of", &self.path))
    }
}

impl SourceImage for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(error("read", &self.path))
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError> {
        if offset >= self.size {
            return Ok(None);
        }
        if !self.sparse {
            return Ok(Some(offset..self.size));
        }
        let start = match seek(&self.file, Whence::Data(offset)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL) => {
                self.sparse = false;
                return Ok(Some(offset..self.size));
            }
            Err(e) => return Err(error("find data in", &self.path)(e.into())),
        };
        let end = seek(&self.file, Whence::Hole(start))
            .map_err(|e| error("find holes in", &self.path)(e.into()))?;
        // The file may have grown since; the size it was opened with counts.
        Ok((start < self.size).then(|| start..end.min(self.size)))
    }

    fn will_read(&mut self, range: Range<u64>) {
        let len = NonZeroU64::new(range.end.saturating_sub(range.start));
        // Where it does nothing, the read does it all.
        let _ = len.map(|len| fadvise(&self.file, range.start, Some(len), Advice::WillNeed));
    }
}

pub(super) fn error(call: &'static str, path: &Path) -> impl Fn(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Io {
        call,
        path: path.clone(),
        source,
    }
}

/// Up to `length` bytes at `offset`, fewer at the end of the image.
pub(super) fn read(
    file: &mut RawImage,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, ImportError> {
    let rest = file.size().saturating_sub(offset);
    let length = usize::try_from(rest).map_or(length, |rest| rest.min(length));
    let mut bytes = vec![0; length];
    file.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
