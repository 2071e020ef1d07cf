//! The opened files of a layer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, statx};

use super::{DataMapping, StoreError};
use crate::units::{BLOCK_SIZE, SECTOR_SIZE};

/// An opened file together with the alignment that its I/O needs.
#[derive(Debug)]
pub struct LayerFile {
    file: File,
    alignment: u64,
}

impl LayerFile {
    /// Opens an existing file past the page cache (`O_DIRECT`) where the file system can do that.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits() as i32)
                .open(path)
        };
        let file = open(OFlags::DIRECT)
            .or_else(|e| match e.kind() {
                io::ErrorKind::InvalidInput => open(OFlags::empty()),
                _ => Err(e),
            })
            .map_err(|source| StoreError::Open {
                path: path.to_owned(),
                source,
            })?;
        Self::from_file(file)
    }

    /// Takes over a file that another process opened.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the kernel does not tell its flags.
    pub fn from_file(file: File) -> Result<Self, StoreError> {
        let flags = fcntl_getfl(&file).map_err(|e| StoreError::Io {
            what: "read the flags of a file",
            source: e.into(),
        })?;
        let alignment = if flags.contains(OFlags::DIRECT) {
            direct_alignment(&file)
        } else {
            SECTOR_SIZE
        };
        Ok(Self { file, alignment })
    }

    /// What offsets and lengths must be multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, to be given to another process.
    pub fn into_file(self) -> File {
        self.file
    }

    /// A second handle of the same open file, for another thread.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_clone(&self) -> Result<Self, StoreError> {
        let file = self.file.try_clone().map_err(|source| StoreError::Io {
            what: "duplicate a file descriptor",
            source,
        })?;
        Ok(Self {
            file,
            alignment: self.alignment,
        })
    }
}

/// The alignment of direct I/O that the file system tells; a block where it does not tell.
fn direct_alignment(file: &File) -> u64 {
    let Ok(stat) = statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return BLOCK_SIZE;
    };
    match u64::from(stat.stx_dio_offset_align) {
        told if told.is_power_of_two() && told <= BLOCK_SIZE => told.max(SECTOR_SIZE),
        _ => BLOCK_SIZE,
    }
}

/// The two files of a layer.
#[derive(Debug)]
pub struct LayerFiles {
    /// The ciphertext.
    pub data: LayerFile,
    /// The block map, through the page cache: it is small and synced explicitly.
    pub map: LayerFile,
    /// The ciphertext once more, where it is memory.
    mapping: Option<Arc<DataMapping>>,
}

impl LayerFiles {
    /// Both files, reached by system calls only.
    pub fn new(data: LayerFile, map: LayerFile) -> Self {
        Self {
            data,
            map,
            mapping: None,
        }
    }

    /// Maps the data file, which must have `len` bytes, if its file system is memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn map_memory(&mut self, len: u64) -> Result<(), StoreError> {
        self.mapping = DataMapping::of(self.data.file(), len)?.map(Arc::new);
        Ok(())
    }

    /// Maps the data file anew, which has grown to `len` bytes, if it was mapped.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the old mapping stays.
    pub fn map_grown(&mut self, len: u64) -> Result<(), StoreError> {
        if self.mapping.is_some() {
            self.mapping = Some(Arc::new(DataMapping::map(self.data.file(), len)?));
        }
        Ok(())
    }

    /// Takes over the mapping that other handles of the same files have.
    pub(super) fn share_mapping(&mut self, other: &Self) {
        self.mapping.clone_from(&other.mapping);
    }

    /// The address of a range of the data file, where it is mapped.
    pub(super) fn mapped(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        self.mapping.as_ref()?.range(at, len)
    }

    /// Second handles of both, for another thread.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_clone(&self) -> Result<Self, StoreError> {
        let (data, map) = (self.data.try_clone()?, self.map.try_clone()?);
        Ok(Self {
            data,
            map,
            mapping: self.mapping.clone(),
        })
    }
}
