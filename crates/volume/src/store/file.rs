//! The opened files of a layer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, statx};

use super::length::file_len;
use super::{DataMapping, StoreError};
use keys::units::{BLOCK_SIZE, LayerIndex, SECTOR_SIZE};

/// An opened file together with the alignment that its I/O needs.
#[derive(Debug)]
pub struct LayerFile {
    file: File,
    alignment: u64,
    direct: bool,
}

impl LayerFile {
    /// Opens an existing file past the page cache (`O_DIRECT`) where the file system can do that.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_for(path, true)
    }

    /// As [`LayerFile::open`], for reading only: a layer beneath the top.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        Self::open_for(path, false)
    }

    fn open_for(path: &Path, write: bool) -> Result<Self, StoreError> {
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(write)
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
        let direct = flags.contains(OFlags::DIRECT);
        let alignment = if direct {
            direct_alignment(&file)
        } else {
            SECTOR_SIZE
        };
        Ok(Self {
            file,
            alignment,
            direct,
        })
    }

    /// What offsets and lengths must be multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Whether it is read and written past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
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
            direct: self.direct,
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

/// The files of a disk's layers.
#[derive(Debug)]
pub struct StackFiles {
    /// The ciphertext of the layer that is written to.
    pub data: LayerFile,
    /// Its block map, through the page cache: it is small and synced explicitly.
    pub map: LayerFile,
    /// The ciphertext of the layers beneath it, downwards.
    pub lower: Vec<LayerFile>,
    /// The ciphertext of all of them once more, the top layer's first, where it is memory.
    mappings: Vec<Option<Arc<DataMapping>>>,
}

impl StackFiles {
    /// The files of a disk, reached by system calls only.
    pub fn new(data: LayerFile, map: LayerFile, lower: Vec<LayerFile>) -> Self {
        Self {
            data,
            map,
            lower,
            mappings: Vec::new(),
        }
    }

    /// Maps the data files, the top layer's of which must have `len` bytes, if their file system is
    /// memory.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn map_memory(&mut self, len: u64) -> Result<(), StoreError> {
        let top = DataMapping::of_top(self.data.file(), len)?;
        self.mappings = vec![top.map(Arc::new)];
        for lower in &self.lower {
            let len = file_len(lower.file()).map_err(|source| StoreError::Io {
                what: "read the length of a data file",
                source,
            })?;
            let mapping = DataMapping::of_lower(lower.file(), len)?;
            self.mappings.push(mapping.map(Arc::new));
        }
        Ok(())
    }

    /// Maps the top layer's data file again, which has grown to `len` bytes, if it was mapped.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the old mapping stays.
    pub fn map_grown(&mut self, len: u64) -> Result<(), StoreError> {
        if let Some(mapping @ Some(_)) = self.mappings.first_mut() {
            *mapping = DataMapping::of_top(self.data.file(), len)?.map(Arc::new);
        }
        Ok(())
    }

    /// The data file of a layer.
    pub fn layer(&self, layer: LayerIndex) -> Option<&LayerFile> {
        match layer.get().checked_sub(1) {
            None => Some(&self.data),
            Some(beneath) => self.lower.get(beneath),
        }
    }

    /// How many layers there are.
    pub fn layers(&self) -> usize {
        1 + self.lower.len()
    }

    /// What offsets and lengths must be multiples of in all data files.
    pub(super) fn alignment(&self) -> u64 {
        let lower = self.lower.iter().map(LayerFile::alignment);
        lower.fold(self.data.alignment(), u64::max)
    }

    /// The address of a range of a layer's data file, where it is mapped.
    pub(super) fn mapped(&self, layer: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        let mapping = self.mappings.get(layer.get())?;
        mapping.as_ref()?.range(at, len)
    }

    /// The address of a range of the top layer's data file, where it is mapped and may be written to in this way.
    pub(super) fn mapped_to_write(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        let mapping = self.mappings.first()?.as_ref()?;
        mapping.is_writable().then(|| mapping.range(at, len))?
    }

    /// Second handles of all, for another thread.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn try_clone(&self) -> Result<Self, StoreError> {
        Ok(Self {
            data: self.data.try_clone()?,
            map: self.map.try_clone()?,
            lower: self
                .lower
                .iter()
                .map(LayerFile::try_clone)
                .collect::<Result<_, _>>()?,
            mappings: self.mappings.clone(),
        })
    }
}
