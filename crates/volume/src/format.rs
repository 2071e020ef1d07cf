//! The layout of the `map` file, format version 1. All integers are little-endian.
//!
//! ```text
//! byte 0      signature "SDBLKMAP"                        8 bytes
//!      8      format version (1)                          u32
//!      12     zero                                        u32
//!      16     disk id                                     UUID, 16 bytes
//!      32     layer id                                    UUID, 16 bytes
//!      48     disk size in bytes when the map was made    u64
//!      56     zero up to byte 4092
//!      4092   CRC32C of bytes 0..4092                     u32
//!      4096   map sector 0
//!      4608   map sector 1, and so on
//! ```
//!
//! A map sector is 512 bytes, which a disk writes wholly or not at all:
//!
//! ```text
//! byte 0      states of 2016 blocks, two bits each: block b of the sector is bits
//!             2(b mod 4) and 2(b mod 4)+1 of byte b/4    504 bytes
//!      504    number of this map sector                   u32
//!      508    CRC32C of bytes 0..508                      u32
//! ```
//!
//! A sector of 512 zero bytes is one that was never written: all blocks are `Inherit`. Each sector
//! is true by itself (see the order of writes in [`super`]), so a flush that is cut off, and leaves
//! some sectors new and some old, leaves a valid map. The header is written once, before the layer
//! is used, and not when the disk grows: that only makes the file longer, by sectors never written.

use std::ops::Range;

use uuid::Uuid;

use super::{Geometry, VolumeError};

/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a map sector.
pub const SECTOR_LEN: usize = 512;
/// Bytes of states in a map sector.
pub const STATES_LEN: usize = 504;
/// Blocks that a map sector speaks of.
pub const BLOCKS_PER_SECTOR: u64 = STATES_LEN as u64 * 4;

const SIGNATURE: &[u8; 8] = b"SDBLKMAP";
const VERSION: u32 = 1;

/// Map sectors that are loaded together.
pub const SECTORS_PER_CHUNK: u64 = 128;
/// Blocks that a chunk speaks of: a little more than 1 GiB.
pub const BLOCKS_PER_CHUNK: u64 = BLOCKS_PER_SECTOR * SECTORS_PER_CHUNK;

/// Map sectors of a disk with `blocks` blocks.
pub fn sectors(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_SECTOR)
}

/// Chunks of a disk with `blocks` blocks.
pub fn chunks(blocks: u64) -> u64 {
    blocks.div_ceil(BLOCKS_PER_CHUNK)
}

/// The map sectors of a chunk of a disk with `blocks` blocks.
pub fn sectors_of_chunk(chunk: u64, blocks: u64) -> Range<u64> {
    let first = chunk * SECTORS_PER_CHUNK;
    first..(first + SECTORS_PER_CHUNK).min(sectors(blocks))
}

/// Bytes of the map file of a disk with `blocks` blocks.
pub fn file_len(blocks: u64) -> u64 {
    HEADER_LEN as u64 + sectors(blocks) * SECTOR_LEN as u64
}

/// Where a map sector lies in the file.
pub fn sector_offset(sector: u64) -> u64 {
    HEADER_LEN as u64 + sector * SECTOR_LEN as u64
}

/// The header of a new map.
pub fn encode_header(geometry: &Geometry) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(SIGNATURE);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..32].copy_from_slice(geometry.disk.as_bytes());
    header[32..48].copy_from_slice(geometry.layer.as_bytes());
    header[48..56].copy_from_slice(&geometry.size.to_le_bytes());
    seal(&mut header);
    header
}

/// Checks that `header` is that of the layer of `geometry`, made for that size or a smaller one.
///
/// # Errors
/// Which part is not as it should be.
pub fn check_header(header: &[u8; HEADER_LEN], geometry: &Geometry) -> Result<(), VolumeError> {
    if &header[..8] != SIGNATURE {
        return Err(VolumeError::MapForeign);
    }
    let version = u32_at(header, 8);
    if version != VERSION {
        return Err(VolumeError::MapVersion(version));
    }
    let expected = encode_header(geometry);
    if header[16..48] != expected[16..48] {
        let mut found = [0; 16];
        found.copy_from_slice(&header[32..48]);
        let found = Uuid::from_bytes(found);
        return Err(VolumeError::MapOfOther {
            expected: geometry.layer,
            found,
        });
    }
    let mut size = [0; 8];
    size.copy_from_slice(&header[48..56]);
    let made_for = Geometry {
        size: u64::from_le_bytes(size),
        ..geometry.clone()
    };
    if header != &encode_header(&made_for) {
        return Err(VolumeError::MapForeign);
    }
    // Disks grow and never shrink.
    if made_for.size > geometry.size {
        return Err(VolumeError::MapOfLarger {
            made_for: made_for.size,
            size: geometry.size,
        });
    }
    Ok(())
}

/// Makes a map sector of its number and states.
pub fn encode_sector(number: u64, states: &[u8; STATES_LEN]) -> [u8; SECTOR_LEN] {
    let mut sector = [0; SECTOR_LEN];
    sector[..STATES_LEN].copy_from_slice(states);
    // A disk has at most 2^34 blocks (64 TiB), so the number fits.
    sector[504..508].copy_from_slice(&(number as u32).to_le_bytes());
    seal(&mut sector);
    sector
}

/// The states in a map sector; `None` for one that was never written.
///
/// # Errors
/// [`VolumeError::MapDamaged`] when the sector is neither empty nor whole, or is in another's place.
pub fn decode_sector(
    number: u64,
    sector: &[u8; SECTOR_LEN],
) -> Result<Option<&[u8; STATES_LEN]>, VolumeError> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let damaged = VolumeError::MapDamaged { sector: number };
    let sum = crc32c::crc32c(&sector[..508]);
    if sum != u32_at(sector, 508) || u64::from(u32_at(sector, 504)) != number {
        return Err(damaged);
    }
    sector.first_chunk().map(Some).ok_or(damaged)
}

/// Puts the checksum of all bytes before it into the last four.
fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let sum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use xts::DataUnit;

    fn geometry(size: u64) -> Geometry {
        Geometry {
            disk: Uuid::from_u128(1),
            layer: Uuid::from_u128(2),
            size,
            data_unit: DataUnit::B4096,
        }
    }

    #[test]
    fn a_header_is_only_taken_for_its_own_layer() {
        let header = encode_header(&geometry(1 << 30));
        assert!(check_header(&header, &geometry(1 << 30)).is_ok());
        assert!(check_header(&header, &geometry(1 << 31)).is_ok(), "it grew");
        assert!(matches!(
            check_header(&header, &geometry(1 << 29)),
            Err(VolumeError::MapOfLarger { .. })
        ));
        let other = Geometry {
            layer: Uuid::from_u128(3),
            ..geometry(1 << 30)
        };
        let error = check_header(&header, &other).unwrap_err();
        assert!(matches!(error, VolumeError::MapOfOther { .. }), "{error}");
        let mut newer = header;
        newer[8] = 2;
        assert!(matches!(
            check_header(&newer, &geometry(1 << 30)),
            Err(VolumeError::MapVersion(2))
        ));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_sector_is_found(
            states in prop::collection::vec(any::<u8>(), STATES_LEN),
            number in 0u64..1 << 23,
            bit in 0usize..SECTOR_LEN * 8,
        ) {
            let states: [u8; STATES_LEN] = states.try_into().unwrap();
            let mut sector = encode_sector(number, &states);
            prop_assert_eq!(decode_sector(number, &sector).unwrap(), Some(&states));
            prop_assert!(decode_sector(number + 1, &sector).is_err());
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_sector(number, &sector).is_err());
        }
    }
}
