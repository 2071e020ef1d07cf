//! The footer of a fixed VHD.
//!
//! From Microsoft's *Virtual Hard Disk Image Format Specification*, version 1.0; numbers are big-endian:
//!
//! | at | | |
//! |---|---|---|
//! | 0 | 8 | `conectix` |
//! | 8 | 4 | features: 2, which is always set |
//! | 12 | 4 | version of the format: 1.0 |
//! | 16 | 8 | where a dynamic disk's header is: all ones |
//! | 24 | 4 | seconds since the year 2000 |
//! | 28 | 4 | the creator: `win ` is Hyper-V, for which readers believe the size and not the geometry |
//! | 32 | 8 | its version, and its operating system |
//! | 40 | 16 | original and current size: bytes of the disk |
//! | 56 | 4 | cylinders, heads and sectors per track |
//! | 60 | 4 | type: 2 fixed |
//! | 64 | 4 | checksum: the ones' complement of the sum of all other bytes |
//! | 68 | 16 | an id |

use time::OffsetDateTime;
use uuid::Uuid;

/// Bytes of a footer.
pub const FOOTER_LEN: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const FIXED: u32 = 2;
const CHECKSUM: std::ops::Range<usize> = 64..68;
/// Seconds of the Unix epoch at the beginning of the year 2000.
const YEAR_2000: i64 = 946_684_800;
const SECTOR: u64 = 512;

/// The footer of a disk.
pub(super) fn footer(size: u64, id: Uuid, created: OffsetDateTime) -> [u8; FOOTER_LEN] {
    let mut bytes = [0; FOOTER_LEN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let since = u32::try_from(created.unix_timestamp() - YEAR_2000).unwrap_or_default();
    put(0, COOKIE);
    put(8, &2u32.to_be_bytes());
    put(12, &0x0001_0000u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    put(24, &since.to_be_bytes());
    put(28, b"win ");
    put(32, &0x000a_0000u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &size.to_be_bytes());
    put(48, &size.to_be_bytes());
    put(56, &geometry(size / SECTOR));
    put(60, &FIXED.to_be_bytes());
    put(68, id.as_bytes());
    let sum = checksum(&bytes);
    bytes[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// What keeps bytes from being the footer of a fixed VHD of that size, as the end of a sentence.
pub(super) fn check(bytes: &[u8], size: u64) -> Result<(), &'static str> {
    let Ok(footer): Result<&[u8; FOOTER_LEN], _> = bytes.try_into() else {
        return Err("has another length than 512 bytes");
    };
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| footer[at + n]));
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    if !footer.starts_with(COOKIE) {
        Err("does not begin with the cookie 'conectix'")
    } else if word(CHECKSUM.start) != checksum(footer) {
        Err("has a wrong checksum")
    } else if word(60) != FIXED {
        Err("is not that of a fixed disk")
    } else if long(48) != size {
        Err("is that of a disk of another size")
    } else {
        Ok(())
    }
}

fn checksum(footer: &[u8; FOOTER_LEN]) -> u32 {
    let others = footer[..CHECKSUM.start]
        .iter()
        .chain(&footer[CHECKSUM.end..]);
    !others.map(|byte| u32::from(*byte)).sum::<u32>()
}

/// Cylinders (2 bytes), heads and sectors per track, as the specification's appendix computes them.
fn geometry(sectors: u64) -> [u8; 4] {
    const MOST: u64 = 65535 * 16 * 255;
    let total = sectors.min(MOST);
    let (per_track, heads, tracks);
    if total >= 65535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        tracks = total / per_track;
    } else {
        let (mut sectors, mut by) = (17, total / 17);
        let mut head = by.div_ceil(1024).max(4);
        if by >= head * 1024 || head > 16 {
            (sectors, head) = (31, 16);
            by = total / sectors;
        }
        if by >= head * 1024 {
            (sectors, head) = (63, 16);
            by = total / sectors;
        }
        (per_track, heads, tracks) = (sectors, head, by);
    }
    let [.., high, low] = (tracks / heads).to_be_bytes();
    [high, low, heads as u8, per_track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_right_and_nothing_else() {
        let size = 20 << 20;
        let good = footer(size, Uuid::from_u128(1), OffsetDateTime::now_utc());
        check(&good, size).unwrap();
        assert!(check(&good, size + 512).unwrap_err().contains("size"));
        assert!(check(&good[..511], size).unwrap_err().contains("length"));
        for (at, why) in [
            (0, "cookie"),
            (63, "checksum"),
            (70, "checksum"),
            (511, "checksum"),
        ] {
            let mut bad = good;
            bad[at] ^= 1;
            assert!(check(&bad, size).unwrap_err().contains(why), "byte {at}");
        }
        let mut dynamic = good;
        dynamic[63] = 3;
        let sum = checksum(&dynamic);
        dynamic[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        assert!(check(&dynamic, size).unwrap_err().contains("fixed"));
    }

    #[test]
    fn the_geometry_is_that_of_the_specification() {
        // As Microsoft's own tools and QEMU have them.
        assert_eq!(geometry((20 << 20) / 512), [2, 90, 4, 17]);
        assert_eq!(geometry((1 << 30) / 512), [8, 32, 16, 63]);
        assert_eq!(geometry(u64::MAX / 512), [255, 255, 16, 255]);
    }
}
