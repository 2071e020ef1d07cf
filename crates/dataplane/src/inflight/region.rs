//! The file of an in-flight region: one part for each queue.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::InflightError;

/// Entries of a queue at most. QEMU's virtio-mmio machines ask for this many, and so does its
/// `queue-size=1024`; vhost-user has no message that would have them ask for fewer.
pub(crate) const MAX_QUEUE_SIZE: u16 = 1024;

/// Bytes of a queue's part before its entries.
pub(super) const HEADER: usize = 16;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 16;

/// The parts of the queues begin at multiples of this, as those of other back-ends do: one of these
/// may have made the region, or get it next.
const ALIGNMENT: u64 = 64;

/// Memory that is shared with whoever starts the next back-end.
#[derive(Debug)]
pub(crate) struct InflightRegion {
    map: MmapRegion<()>,
    queues: u16,
    entries: u16,
}

impl InflightRegion {
    /// Bytes of a region.
    pub(crate) fn len_of(queues: u16, entries: u16) -> u64 {
        u64::from(queues) * part_len(entries)
    }

    /// Makes a region that nobody has used, for a frontend to keep. Nobody can make it shorter, which
    /// would kill whoever has it mapped.
    ///
    /// # Errors
    /// [`InflightError::Io`].
    pub(crate) fn create(queues: u16, entries: u16) -> Result<Self, InflightError> {
        let fail = |e: rustix::io::Errno| io_error("make an in-flight region", e.into());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("sealdisk-inflight", flags).map_err(fail)?;
        ftruncate(&file, Self::len_of(queues, entries)).map_err(fail)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(fail)?;
        Self::map(file.into(), 0, queues, entries)
    }

    /// Maps a region of `queues` queues with `entries` entries each, which begins at `offset` of the file.
    ///
    /// # Errors
    /// [`InflightError`]: the file is not one of that shape.
    pub(crate) fn map(
        file: File,
        offset: u64,
        queues: u16,
        entries: u16,
    ) -> Result<Self, InflightError> {
        let look = |e| io_error("look at an in-flight region", e);
        let needs = Self::len_of(queues, entries);
        let has = file.metadata().map_err(look)?.len().saturating_sub(offset);
        if has < needs || needs == 0 {
            return Err(InflightError::TooShort { has, needs });
        }
        let map = MmapRegion::from_file(FileOffset::new(file, offset), needs as usize)
            .map_err(|e| io_error("map an in-flight region", io::Error::other(e)))?;
        Ok(Self {
            map,
            queues,
            entries,
        })
    }

    /// Another handle of the file.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn file(&self) -> io::Result<File> {
        let mapped = self.map.file_offset();
        mapped.map_or(Err(io::ErrorKind::NotFound.into()), |at| {
            at.file().try_clone()
        })
    }

    /// Entries of each queue.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Whether there is a part for that queue.
    pub(super) fn has(&self, index: usize) -> bool {
        index < usize::from(self.queues)
    }

    /// The memory of a queue's part, which has a header and as many entries as were said.
    pub(super) fn part(&self, index: usize) -> VolatileSlice<'_> {
        let len = HEADER + ENTRY * usize::from(self.entries);
        let at = index * part_len(self.entries) as usize;
        match self.map.get_slice(at, len) {
            Ok(part) => part,
            // Every index is below `queues`, whose parts all lie in the mapping.
            Err(error) => volume::must_complete::lost(&error),
        }
    }
}

/// Bytes from the part of one queue to that of the next.
fn part_len(entries: u16) -> u64 {
    ((HEADER + ENTRY * usize::from(entries)) as u64).next_multiple_of(ALIGNMENT)
}

pub(super) fn io_error(what: &'static str, source: io::Error) -> InflightError {
    InflightError::Io { what, source }
}
