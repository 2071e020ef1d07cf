//! The tables of each format.

use super::table::{Extent, Order, SECTOR, Stop, Table, part_of_disk};
use crate::import::SourceImage;
use crate::import::raw;
use crate::import::references::{big, little};

/// QEMU's docs/interop/qcow2.txt. Big-endian: version at 4, cluster bits at 20, size of the disk at 24,
/// entries of the L1 table at 36 and its place at 40; from version 3 on the incompatible features at 72,
/// of which bit 4 is extended L2 entries.
///
/// An L2 entry is a cluster's place (bits 9 to 55), zeros whatever else it says (bit 0, from version 3
/// on), or compressed (bit 62). A compressed one has its place in the lower bits, above that the number of
/// sectors behind the first one, which the cluster ends within. An extended entry goes on with 32 bits for
/// what is zeros and 32 for which of its subclusters are allocated, the lowest bit for the first. QEMU
/// writes those only: the file may end behind the last one.
pub(super) fn qcow2(extent: &mut Extent<'_>) -> Result<(), Stop> {
    const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
    const EXTENDED: u64 = 1 << 4;
    const COMPRESSED: u64 = 1 << 62;
    const ZEROS: u64 = 1;
    let head = extent.head(72)?;
    let head = [head, raw::read(extent.file, 72, 8)?].concat();
    let field = |at, len| big(&head, at, len);
    let (Some(version), Some(bits), Some(size)) = (field(4, 4), field(20, 4), field(24, 8)) else {
        return Ok(());
    };
    let (Some(count), Some(at), true) = (field(36, 4), field(40, 8), (9..=21).contains(&bits))
    else {
        return Ok(());
    };
    let features = field(72, 8).filter(|_| version >= 3).unwrap_or(0);
    let (cluster, extended) = (1 << bits, features & EXTENDED != 0);
    let width = if extended { 16 } else { 8 };
    let below = |entry| {
        (entry & PLACE != 0).then_some(Table {
            at: entry & PLACE,
            count: cluster / width as u64,
            width,
            order: Order::Big,
        })
    };
    let first = Table {
        at,
        count,
        width: 8,
        order: Order::Big,
    };
    let file_size = extent.file.size();
    extent.walk_two_levels(first, below, |extent, index, entry| {
        let (Some(number), part) = (big(entry, 0, 8), part_of_disk(index, cluster, size)) else {
            return;
        };
        let place = number & PLACE;
        if number & COMPRESSED != 0 {
            let shift = 62 - (bits - 8);
            let start = number & ((1 << shift) - 1);
            let more = number >> shift & ((1 << (bits - 8)) - 1);
            let end = (start / SECTOR + more + 1) * SECTOR;
            // Where within its last sector it ends is not known before it is decompressed.
            if end.saturating_sub(file_size) >= SECTOR {
                extent.has(end, 0);
            }
        } else if let Some(bitmap) = big(entry, 8, 8) {
            let allocated = 32 - u64::from((bitmap as u32).leading_zeros());
            if place != 0 && allocated > 0 {
                extent.has(place, part.min(allocated * (cluster / 32)));
            }
        } else if place != 0 && part > 0 && (version < 3 || number & ZEROS == 0) {
            extent.has(place, part);
        }
    })
}

/// QEMU's docs/interop/qed_spec.txt. Little-endian: bytes of a cluster at 4, clusters of a table at 8,
/// place of the L1 table at 40, size of the disk at 48. An L2 entry is a cluster's place, 0 for none and 1
/// for zeros.
pub(super) fn qed(extent: &mut Extent<'_>) -> Result<(), Stop> {
    let head = extent.head(64)?;
    let field = |at, len| little(&head, at, len);
    let (Some(cluster), Some(clusters)) = (field(4, 4), field(8, 4)) else {
        return Ok(());
    };
    let (Some(at), Some(size)) = (field(40, 8), field(48, 8)) else {
        return Ok(());
    };
    let table = |at| Table {
        at,
        count: cluster * clusters / 8,
        width: 8,
        order: Order::Little,
    };
    let below = |place| (place != 0).then(|| table(place));
    extent.walk_two_levels(table(at), below, |extent, index, entry| {
        let place = little(entry, 0, 8).unwrap_or(0);
        // Unlike the others, QEMU wants the whole of the last cluster.
        if place > 1 && part_of_disk(index, cluster, size) > 0 {
            extent.has(place, cluster);
        }
    })
}

/// What the two kinds of sparse extents of VMware have in common; in sectors of 512 bytes.
struct Grains {
    /// Sectors of the disk.
    capacity: u64,
    /// Sectors of a grain.
    grain: u64,
    /// Place of the grain directory.
    directory: u64,
    /// Grain tables.
    tables: u64,
    /// Entries of a grain table.
    entries: u64,
}

/// VMware's Virtual Disk Format 5.0, and QEMU's block/vmdk.c for the older `COWD`.
pub(super) fn vmdk(extent: &mut Extent<'_>) -> Result<(), Stop> {
    /// Flags: grains are compressed; each has a marker.
    const COMPRESSED: u64 = 1 << 16;
    /// The footer, which is followed by one sector, has the place.
    const AT_END: u64 = u64::MAX;
    let mut head = extent.head(SECTOR as usize)?;
    if head.starts_with(b"COWD") {
        return cowd(extent, &head);
    }
    if little(&head, 56, 8) == Some(AT_END) {
        let footer = extent.file.size().saturating_sub(2 * SECTOR);
        head = raw::read(extent.file, footer, SECTOR as usize)?;
        if !head.starts_with(b"KDMV") {
            return Err(Stop::NoFooter);
        }
    }
    let field = |at, len| little(&head, at, len);
    let (Some(flags), Some(capacity), Some(grain)) = (field(8, 4), field(12, 8), field(20, 8))
    else {
        return Ok(());
    };
    let (Some(entries), Some(directory)) = (field(44, 4), field(56, 8)) else {
        return Ok(());
    };
    let of_table = grain.saturating_mul(entries);
    if of_table == 0 {
        return Ok(());
    }
    let grains = Grains {
        capacity,
        grain,
        directory,
        tables: capacity.div_ceil(of_table),
        entries,
    };
    if flags & COMPRESSED == 0 {
        return walk_grains(extent, &grains, |extent, place, part| {
            extent.has(place, part)
        });
    }
    let mut last = 0;
    walk_grains(extent, &grains, |_, place, _| last = last.max(place))?;
    if last != 0 {
        // A marker: the sector of the disk (8 bytes), the bytes that follow (4 bytes).
        let marker = raw::read(extent.file, last, 12)?;
        extent.has(last, 12 + little(&marker, 8, 4).unwrap_or(0));
    }
    Ok(())
}

/// Little-endian: sectors of the disk at 12, of a grain at 16, place of the directory at 20 and its
/// entries at 24.
fn cowd(extent: &mut Extent<'_>, head: &[u8]) -> Result<(), Stop> {
    let field = |at| little(head, at, 4).unwrap_or(0);
    let grains = Grains {
        capacity: field(12),
        grain: field(16),
        directory: field(20),
        tables: field(24),
        entries: 4096,
    };
    walk_grains(extent, &grains, |extent, place, part| {
        extent.has(place, part)
    })
}

/// Calls `each` with the place of each grain, and how many bytes of it are the disk's. Entries have 32
/// bits, in sectors; 0 is no grain, and 1 is one of zeros (the place of the header itself else).
fn walk_grains(
    extent: &mut Extent<'_>,
    grains: &Grains,
    mut each: impl FnMut(&mut Extent<'_>, u64, u64),
) -> Result<(), Stop> {
    let table = |sector: u64, count| Table {
        at: sector.saturating_mul(SECTOR),
        count,
        width: 4,
        order: Order::Little,
    };
    let below = |sector| (sector != 0).then(|| table(sector, grains.entries));
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
    let directory = table(grains.directory, grains.tables);
    extent.walk_two_levels(directory, below, |extent, index, entry| {
        let sector = little(entry, 0, 4).unwrap_or(0);
        let part = part_of_disk(index, bytes(grains.grain), bytes(grains.capacity));
        if sector > 1 && part > 0 {
            each(extent, bytes(sector), part);
        }
    })
}

/// VirtualBox's VDICore.h. Little-endian: place of the block map at 340 and of the blocks at 344, size of
/// the disk at 368, bytes of a block at 376 and what each has in front of that at 380, blocks at 384. The
/// map has a block's number in the file in 32 bits; the two highest are no block, and one of zeros.
pub(super) fn vdi(extent: &mut Extent<'_>) -> Result<(), Stop> {
    const NO_BLOCK: u64 = 0xffff_fffe;
    let head = extent.head(SECTOR as usize)?;
    let field = |at, len| little(&head, at, len);
    let (Some(map), Some(data), Some(size)) = (field(340, 4), field(344, 4), field(368, 8)) else {
        return Ok(());
    };
    let (Some(block), Some(extra), Some(count)) = (field(376, 4), field(380, 4), field(384, 4))
    else {
        return Ok(());
    };
    let map = Table {
        at: map,
        count,
        width: 4,
        order: Order::Little,
    };
    extent.walk(map, |extent, index, entry| {
        let number = map.number(entry);
        let part = part_of_disk(index, block, size);
        if number < NO_BLOCK && part > 0 {
            let place = data.saturating_add(number.saturating_mul(block + extra));
            extent.has(place, extra + part);
        }
    })?;
    Ok(())
}

/// QEMU's docs/interop/parallels.txt. Little-endian: sectors of a cluster at 28, entries of the table at
/// 32, sectors of the disk at 36, of which the older kind has 32 bits. The table is at 64 and has places in
/// 32 bits, of which 0 is none: in sectors in the older kind, in clusters in the other.
pub(super) fn parallels(extent: &mut Extent<'_>) -> Result<(), Stop> {
    let head = extent.head(64)?;
    let is_older = head.starts_with(b"WithoutFreeSpace");
    let field = |at, len| little(&head, at, len);
    let sectors = field(36, if is_older { 4 } else { 8 });
    let (Some(cluster), Some(count), Some(sectors)) = (field(28, 4), field(32, 4), sectors) else {
        return Ok(());
    };
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
    let table = Table {
        at: 64,
        count,
        width: 4,
        order: Order::Little,
    };
    extent.walk(table, |extent, index, entry| {
        let unit = if is_older { 1 } else { cluster };
        let place = bytes(table.number(entry).saturating_mul(unit));
        let part = part_of_disk(index, bytes(cluster), bytes(sectors));
        if place != 0 && part > 0 {
            extent.has(place, part);
        }
    })?;
    Ok(())
}

/// Microsoft's *Virtual Hard Disk Image Format Specification* 1.0. Big-endian: a footer's copy at the
/// beginning has the place of the header at 16 and the disk's size at 48; the header has that of the table
/// at 16, its entries at 28 and a block's bytes at 32. The table has the sectors in 32 bits, of which all
/// ones is none. In front of a block is a bit for each of its sectors, in whole sectors.
pub(super) fn dynamic_vhd(extent: &mut Extent<'_>) -> Result<(), Stop> {
    const NO_BLOCK: u64 = 0xffff_ffff;
    let footer = extent.head(SECTOR as usize)?;
    let (Some(header), Some(size)) = (big(&footer, 16, 8), big(&footer, 48, 8)) else {
        return Ok(());
    };
    extent.has(header, 2 * SECTOR);
    let header = raw::read(extent.file, header, 2 * SECTOR as usize)?;
    let field = |at, len| big(&header, at, len);
    let (Some(at), Some(count), Some(block)) = (field(16, 8), field(28, 4), field(32, 4)) else {
        return Ok(());
    };
    if !header.starts_with(b"cxsparse") {
        return Ok(());
    }
    let bitmap = (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    let table = Table {
        at,
        count,
        width: 4,
        order: Order::Big,
    };
    extent.walk(table, |extent, index, entry| {
        let sector = table.number(entry);
        let part = part_of_disk(index, block, size);
        if sector != NO_BLOCK && part > 0 {
            extent.has(sector.saturating_mul(SECTOR), bitmap + part);
        }
    })?;
    Ok(())
}

/// MS-VHDX 2.2. Little-endian: the header section is 1 MiB; the region table at 192 KiB has its entries'
/// number at 8, and from 16 on entries of 32 bytes with a place at 16 and a length at 24. The regions are
/// the table of blocks and the metadata.
pub(super) fn vhdx(extent: &mut Extent<'_>) -> Result<(), Stop> {
    extent.has(0, 1 << 20);
    let table = raw::read(extent.file, 192 << 10, 64 << 10)?;
    if !table.starts_with(b"regi") {
        return Ok(());
    }
    let count = little(&table, 8, 4).unwrap_or(0);
    let entries = table.get(16..).unwrap_or_default().chunks_exact(32);
    for (entry, _) in entries.zip(0..count) {
        if let (Some(place), Some(len)) = (little(entry, 16, 8), little(entry, 24, 4)) {
            extent.has(place, len);
        }
    }
    Ok(())
}
