//! Where files have data, and what maps say of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use keys::units::{BLOCK_SIZE, is_zero};
use volume::format::{self, HEADER_LEN, SECTOR_LEN, STATES_LEN};
pub(crate) use volume::store::next_extent;
use volume::{BlockMap, BlockState, Content, Geometry, VolumeError};

use crate::resource::error::DiskError;

/// Whether anything but zeros is in a file between `at` and `len`.
pub(crate) fn has_content(file: &File, mut at: u64, len: u64) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    while let Some(extent) = next_extent(file, at, len)? {
        at = extent.start;
        while at < extent.end {
            let rest = extent.end - at;
            let most = usize::try_from(rest).map_or(buffer.len(), |n| n.min(buffer.len()));
            let chunk = &mut buffer[..most];
            file.read_exact_at(chunk, at)?;
            if !is_zero(chunk) {
                return Ok(true);
            }
            at += most as u64;
        }
    }
    Ok(false)
}

/// What is not as the map says: ranges of the data file, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Mismatch {
    /// The map says data, and there is a hole.
    pub(crate) missing: Vec<Range<u64>>,
    /// There is space in use, and no map says data.
    pub(crate) leaked: Vec<Range<u64>>,
    /// The same, of blocks that the newest map notes to be given back.
    pub(crate) held: Vec<Range<u64>>,
    /// Bytes in use under zeros, which a guest keeps, or of which no hole could be made.
    pub(crate) kept: u64,
}

impl Mismatch {
    /// Tells space that is noted to be given back, and what a guest keeps under zeros that it wrote
    /// without giving the space back (virtio 1.2 §5.2.6: without `unmap`), from space that nothing knows of.
    fn in_use(&mut self, extent: Range<u64>, newest: &BlockMap) -> Result<(), VolumeError> {
        let mut at = extent.start;
        newest.load(at / BLOCK_SIZE..extent.end.div_ceil(BLOCK_SIZE))?;
        while at < extent.end {
            let (first, last) = (at / BLOCK_SIZE, extent.end.div_ceil(BLOCK_SIZE));
            let state = newest.get(first);
            let next = (first..last).find(|block| newest.get(*block) != state);
            let end = next.map_or(extent.end, |block| block * BLOCK_SIZE);
            match state {
                BlockState::ZeroHeld => self.held.push(at..end),
                BlockState::Zero => self.kept += end - at,
                BlockState::Inherit | BlockState::Data => self.leaked.push(at..end),
            }
            at = end;
        }
        Ok(())
    }
}

/// Compares a data file with the maps of its layer, the newest one last: a block is needed when any of
/// them says so. What no map file says anything of is passed over as a whole.
pub(crate) fn compare(
    data: &File,
    path: &Path,
    geometry: &Geometry,
    maps: &[&BlockMap],
) -> Result<Mismatch, DiskError> {
    let fail = DiskError::file("look for holes in", path);
    let mut mismatch = Mismatch::default();
    let blocks = geometry.blocks();
    let mut block = 0;
    while block < blocks {
        let (mut needed, mut count) = (false, blocks - block);
        for map in maps {
            let run = map.run_anywhere(block, blocks - block)?;
            needed |= run.what == Content::Data;
            count = count.min(run.blocks);
        }
        let (mut at, end) = (block * BLOCK_SIZE, (block + count) * BLOCK_SIZE);
        while at < end {
            let extent = next_extent(data, at, end).map_err(&fail)?;
            let extent = extent.unwrap_or(end..end);
            match needed {
                true if at < extent.start => mismatch.missing.push(at..extent.start),
                false if extent.start < extent.end => match maps.last() {
                    Some(newest) => mismatch.in_use(extent.clone(), newest)?,
                    None => mismatch.leaked.push(extent.clone()),
                },
                _ => {}
            }
            at = extent.end;
        }
        block += count;
    }
    Ok(mismatch)
}

/// Bytes of the blocks that a layer's durable map calls data, read without what of the file is a hole;
/// `None` when it cannot be read or is damaged.
pub(crate) fn data_bytes(map: &Path, geometry: &Geometry) -> Option<u64> {
    let file = File::open(map).ok()?;
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).ok()?;
    format::check_header(&header, geometry).ok()?;
    let len = format::file_len(geometry.blocks());
    let (mut at, mut blocks) = (HEADER_LEN as u64, 0);
    let mut buffer = Vec::new();
    while let Some(extent) = next_extent(&file, at, len).ok()? {
        let whole = SECTOR_LEN as u64;
        at = extent.start / whole * whole;
        while at < extent.end {
            let rest = extent.end.next_multiple_of(whole).min(len) - at;
            buffer.resize(rest.min(MAX_AT_ONCE) as usize, 0);
            file.read_exact_at(&mut buffer, at).ok()?;
            let first = (at - HEADER_LEN as u64) / whole;
            for (number, sector) in (first..).zip(buffer.as_chunks().0) {
                if let Some(states) = format::decode_sector(number, sector).ok()? {
                    blocks += data_in(states);
                }
            }
            at += buffer.len() as u64;
        }
    }
    Some(blocks * BLOCK_SIZE)
}

/// Bytes of a map that are read at a time, whole sectors of it.
const MAX_AT_ONCE: u64 = 256 << 10;

/// How many of the states of a sector are data, 01.
fn data_in(states: &[u8; STATES_LEN]) -> u64 {
    const LOW: u64 = 0x5555_5555_5555_5555;
    let words = states.as_chunks::<8>().0.iter();
    let words = words.map(|bytes| u64::from_le_bytes(*bytes));
    words
        .map(|word| u64::from((word & !(word >> 1) & LOW).count_ones()))
        .sum()
}
