//! The file of an in-flight region: one part for each queue.

use std::fs::File;
use std::io;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use protocol::{
    INFLIGHT_AT, INFLIGHT_ENTRY, INFLIGHT_HEADER, MAX_QUEUE_SIZE, inflight_len, inflight_part_len,
    sealed_memory,
};

use super::InflightError;

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
        inflight_len(queues, entries)
    }

    /// Makes a region that nobody has used, for a frontend to keep. Nobody can make it shorter, which
    /// would kill whoever has it mapped.
    ///
    /// # Errors
    /// [`InflightError::Io`].
    pub(crate) fn create(queues: u16, entries: u16) -> Result<Self, InflightError> {
        let file = sealed_memory("sealdisk-inflight", Self::len_of(queues, entries))
            .map_err(|e| io_error("make an in-flight region", e))?;
        Self::map(file, 0, queues, entries)
    }

    /// Maps the region that the attach process keeps for frontends that keep none.
    ///
    /// # Errors
    /// As [`InflightRegion::map`].
    pub(crate) fn kept(file: File, queues: u16) -> Result<Self, InflightError> {
        Self::map(file, INFLIGHT_AT, queues, MAX_QUEUE_SIZE)
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
        let len = INFLIGHT_HEADER + INFLIGHT_ENTRY * usize::from(self.entries);
        let at = index * inflight_part_len(self.entries) as usize;
        match self.map.get_slice(at, len) {
            Ok(part) => part,
            // Every index is below `queues`, whose parts all lie in the mapping.
            Err(error) => volume::must_complete::lost(&error),
        }
    }
}

pub(super) fn io_error(what: &'static str, source: io::Error) -> InflightError {
    InflightError::Io { what, source }
}
