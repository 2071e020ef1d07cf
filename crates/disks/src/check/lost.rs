//! Data that were completed, not flushed, and are not in the data file.
//!
//! A runtime map calls blocks data as soon as they were written. Whether the storage has them only a flush
//! tells: when the kernel cannot write what it took, or the file system goes back to what its journal has, there
//! may be a hole in their place, which would be decrypted into garbage, or something that cannot be read. The
//! durable map never speaks of data before they are synced, so what it says of these blocks is still true: they
//! read as they did before they were written, once the runtime map has that too.
//!
//! A hole stays a hole, so any repair gives these blocks up. What cannot be read may be back with the next path
//! to the storage; only a repair that is told to go on without it gives it up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

use crate::check::report::{ByteRange, in_words};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::extents::next_extent;
use crate::resource::open::layer_map;
use installation::envelope::HeaderPayload;
use keys::units::BLOCK_SIZE;
use volume::{Content, RuntimeMap, Volume, VolumeError};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// Which lost blocks a check gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GiveUp {
    /// None: it only looks.
    Nothing,
    /// Those that are holes of the data file.
    Holes,
    /// Also those that cannot be read at the moment.
    Unreadable,
}

/// Blocks that the data file has not.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// It has holes there.
    pub(crate) holes: Vec<ByteRange>,
    /// Reading them fails, now.
    pub(crate) unreadable: Vec<ByteRange>,
}

/// What has data by the current map and not by the durable one.
pub(crate) fn unflushed(durable: &Volume, current: &Volume) -> Result<Vec<ByteRange>, VolumeError> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(chunk) = current.map().next_loaded(at) {
        at = chunk.start;
        while at < chunk.end {
            let now = current.map().run(at, chunk.end - at);
            let before = durable.map().run_anywhere(at, now.blocks)?;
            if now.what == Content::Data && before.what != Content::Data {
                append(&mut ranges, at * BLOCK_SIZE, before.blocks * BLOCK_SIZE);
            }
            at += before.blocks;
        }
    }
    Ok(ranges)
}

/// Which blocks of some ranges the data file has not.
pub(crate) fn lost(data: &File, ranges: &[ByteRange]) -> io::Result<Lost> {
    // What the page cache has proves nothing of what is stored.
    fadvise(data, 0, None, Advice::DontNeed)?;
    let mut lost = Lost::default();
    for range in ranges {
        let (mut at, end) = (range.offset, range.offset + range.length);
        while at < end {
            let extent = next_extent(data, at, end)?.unwrap_or(end..end);
            let whole = extent.end / BLOCK_SIZE * BLOCK_SIZE;
            if extent.start == at && whole > at {
                read(data, at, whole, &mut lost.unreadable)?;
                at = whole;
                continue;
            }
            // A block of which a part is a hole is lost as a whole.
            let next = extent.start.max(at + 1).next_multiple_of(BLOCK_SIZE);
            append(&mut lost.holes, at, next - at);
            at = next;
        }
    }
    Ok(lost)
}

/// Reads blocks that are no holes.
fn read(data: &File, mut at: u64, end: u64, unreadable: &mut Vec<ByteRange>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let block = BLOCK_SIZE as usize;
    while at < end {
        let most = usize::try_from(end - at).map_or(CHUNK, |rest| rest.min(CHUNK));
        let step = match data.read_exact_at(&mut buffer[..most], at) {
            Ok(()) => most,
            Err(_) => match data.read_exact_at(&mut buffer[..block], at) {
                Ok(()) => block,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    append(unreadable, at, BLOCK_SIZE);
                    block
                }
                Err(error) => return Err(error),
            },
        };
        at += step as u64;
    }
    Ok(())
}

/// Has blocks that are lost read as before they were written.
pub(crate) fn give_up(
    lost: &[ByteRange],
    durable: &Volume,
    current: &Volume,
) -> Result<(), VolumeError> {
    for range in lost {
        let first = range.offset / BLOCK_SIZE;
        let blocks = first..first + range.length / BLOCK_SIZE;
        current.map().give_up(blocks, durable.map())?;
    }
    Ok(())
}

/// How many bytes some ranges have.
pub(crate) fn bytes_of(ranges: &[ByteRange]) -> u64 {
    ranges.iter().map(|range| range.length).sum()
}

fn append(ranges: &mut Vec<ByteRange>, offset: u64, length: u64) {
    match ranges.last_mut() {
        Some(last) if last.offset + last.length == offset => last.length += length,
        _ => ranges.push(ByteRange { offset, length }),
    }
}

impl Disk {
    /// Refuses a claimed disk whose last user left what is not in its data file: it would read as
    /// garbage.
    ///
    /// # Errors
    /// [`DiskError::UnflushedLost`], [`DiskError::UnflushedUnreadable`].
    pub(crate) fn refuse_lost(
        &self,
        header: &HeaderPayload,
        runtime: &RuntimeMap,
    ) -> Result<(), DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let paths = self.layer_paths(top);
        let map = layer_map(header, top, &paths)?;
        let current = Volume::open_runtime(map.clone(), Vec::new(), runtime)?;
        let durable = Volume::open_private(map, Vec::new())?;
        let data = File::open(&paths.data).map_err(DiskError::file("open", &paths.data))?;
        let lost = lost(&data, &unflushed(&durable, &current)?);
        let lost = lost.map_err(DiskError::file("look for holes in", &paths.data))?;
        let unreadable = !lost.unreadable.is_empty();
        let lost = match unreadable {
            true => lost.unreadable,
            false => lost.holes,
        };
        if lost.is_empty() {
            return Ok(());
        }
        let name = self.name().into();
        let (bytes, ranges) = (bytes_of(&lost), in_words(&lost));
        Err(match unreadable {
            true => DiskError::UnflushedUnreadable {
                name,
                bytes,
                ranges,
            },
            false => DiskError::UnflushedLost {
                name,
                bytes,
                ranges,
            },
        })
    }
}
