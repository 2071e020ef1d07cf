//! The tables of an image: read in parts, and each only once.

use super::super::raw::{self, RawImage};
use super::super::references::{big, little};
use super::super::{Cancel, ImportError, SourceImage};

/// Bytes of a first-level table; QEMU's limit for qcow2, the others' are smaller.
pub(super) const MAX_FIRST: u64 = 32 << 20;

/// Bytes of a table that are read at a time.
pub(super) const CHUNK: u64 = 1 << 20;

/// Tables and extents of most formats are measured in these.
pub(super) const SECTOR: u64 = 512;

/// Why the end was not found.
pub(super) enum Stop {
    /// The header says that the rest is in a footer, and there is none.
    NoFooter,
    /// A first-level table is too large.
    TooLarge,
    /// Tables of the second level overlap: read each, they were as much as their number times the file.
    Overlapping,
    Import(ImportError),
}

impl From<ImportError> for Stop {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

/// How the numbers of a table are written.
#[derive(Clone, Copy)]
pub(super) enum Order {
    Big,
    Little,
}

/// A table of numbers in an image.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// Its place in the file.
    pub(super) at: u64,
    /// Its entries.
    pub(super) count: u64,
    /// Bytes of an entry, of which at most the first eight are its number.
    pub(super) width: usize,
    pub(super) order: Order,
}

impl Table {
    pub(super) fn len(&self) -> u64 {
        self.count.saturating_mul(self.width as u64)
    }

    pub(super) fn number(&self, entry: &[u8]) -> u64 {
        let width = self.width.min(8);
        match self.order {
            Order::Big => big(entry, 0, width),
            Order::Little => little(entry, 0, width),
        }
        .unwrap_or(0)
    }
}

/// The end of what was found to be in an image.
pub(super) struct Extent<'a> {
    pub(super) file: &'a mut RawImage,
    pub(super) cancel: &'a Cancel,
    pub(super) end: u64,
}

impl Extent<'_> {
    /// Notes that `len` bytes from `offset` on are in the image.
    pub(super) fn has(&mut self, offset: u64, len: u64) {
        self.end = self.end.max(offset.saturating_add(len));
    }

    /// The first bytes, which are in every image of the format.
    pub(super) fn head(&mut self, len: usize) -> Result<Vec<u8>, ImportError> {
        self.has(0, len as u64);
        raw::read(self.file, 0, len)
    }

    /// Calls `each` with the place in the table and the bytes of each entry, as far as the file goes. Of
    /// the entries in a hole, which are zeros, it sees the first.
    pub(super) fn walk(
        &mut self,
        table: Table,
        mut each: impl FnMut(&mut Self, u64, &[u8]),
    ) -> Result<(), ImportError> {
        self.has(table.at, table.len());
        let width = table.width as u64;
        let there = self.file.size().saturating_sub(table.at).min(table.len()) / width * width;
        let end = table.at.saturating_add(there);
        let mut at = table.at;
        while at < end {
            self.cancel.check()?;
            let data = self
                .file
                .next_data(at)?
                .map_or(end..end, |data| data.start.min(end)..data.end.min(end));
            if data.start > at {
                each(self, (at - table.at) / width, &[0; 16][..table.width]);
            }
            // Whole entries, although data begins or ends within one.
            let skipped = (data.start - table.at) / width * width;
            at = at.max(table.at + skipped);
            let stop = data.end.min(at + CHUNK).max(at);
            let len = (stop - at).next_multiple_of(width).min(end - at);
            for entry in raw::read(self.file, at, len as usize)?.chunks_exact(table.width) {
                each(self, (at - table.at) / width, entry);
                at += width;
            }
        }
        Ok(())
    }

    /// As [`Extent::walk`], for tables in tables. `below` makes one of the second level out of an entry of
    /// the first; they differ in their places only. The entries' places are counted through all of the second level.
    pub(super) fn walk_two_levels(
        &mut self,
        first: Table,
        below: impl Fn(u64) -> Option<Table>,
        mut each: impl FnMut(&mut Self, u64, &[u8]),
    ) -> Result<(), Stop> {
        if first.len() > MAX_FIRST {
            return Err(Stop::TooLarge);
        }
        let (mut places, mut of_all) = (Vec::new(), None);
        self.walk(first, |_, index, entry| {
            if let Some(table) = below(first.number(entry)) {
                places.push((table.at, index));
                of_all = Some(table);
            }
        })?;
        let Some(of_all) = of_all else {
            return Ok(());
        };
        // In the order of the file. Of two entries for one table, the first has more of the disk behind it.
        places.sort_unstable();
        places.dedup_by_key(|(at, _)| *at);
        let mut end = 0;
        for (at, index) in places {
            let table = Table { at, ..of_all };
            if at < end {
                return Err(Stop::Overlapping);
            }
            end = at.saturating_add(table.len());
            let before = index.saturating_mul(table.count);
            self.walk(table, |this, n, entry| {
                each(this, before.saturating_add(n), entry);
            })?;
        }
        Ok(())
    }
}

/// How much of unit `index`, of `unit` bytes, a disk of `size` bytes has.
pub(super) fn part_of_disk(index: u64, unit: u64, size: u64) -> u64 {
    size.saturating_sub(index.saturating_mul(unit)).min(unit)
}
