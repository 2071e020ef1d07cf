//! A map file without checksums, with sectors of one word: in place of `volume::format`.

use std::ops::Range;

use crate::VolumeError;

pub(crate) const SECTOR_LEN: usize = 8;
pub(crate) const STATES_LEN: usize = SECTOR_LEN;
pub(crate) const BLOCKS_PER_SECTOR: u64 = STATES_LEN as u64 * 4;
pub(crate) const SECTORS_PER_CHUNK: u64 = 64;
pub(crate) const BLOCKS_PER_CHUNK: u64 = BLOCKS_PER_SECTOR * SECTORS_PER_CHUNK;

pub(crate) fn sectors(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_SECTOR)
}

pub(crate) fn chunks(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_CHUNK)
}

pub(crate) fn sectors_of_chunk(chunk: u64, blocks: u64) -> Range<u64> {
    let first = chunk * SECTORS_PER_CHUNK;
    first..(first + SECTORS_PER_CHUNK).min(sectors(blocks))
}

pub(crate) fn sector_offset(sector: u64) -> u64 {
    sector * SECTOR_LEN as u64
}

pub(crate) fn decode_sector(
    _: u64,
    sector: &[u8; SECTOR_LEN],
) -> Result<Option<&[u8; STATES_LEN]>, VolumeError> {
    let is_empty = sector.iter().all(|byte| *byte == 0);
    Ok((!is_empty).then_some(sector))
}
