//! Whether an image needs other files, or a repair, by its own first bytes.

use std::path::Path;

use super::raw;
use super::raw::RawImage;
use super::{ImageFormat, ImportError, parallels, vhd};

/// Refuses an image that its first bytes show to need other files, before QEMU opens those.
pub(super) fn refuse(
    file: &mut RawImage,
    format: ImageFormat,
    path: &Path,
) -> Result<(), ImportError> {
    let what = match format {
        ImageFormat::Raw | ImageFormat::Vhdx => None,
        ImageFormat::Qcow2 => qcow2(&raw::read(file, 0, 80)?),
        ImageFormat::Vmdk => vmdk(&raw::read(file, 0, 80)?),
        ImageFormat::Qed => qed(&raw::read(file, 0, 24)?),
        ImageFormat::Vdi => vdi(&raw::read(file, 0, 464)?),
        ImageFormat::Parallels => parallels::reference(path),
        ImageFormat::Vpc => return vhd::examine(file, path).map(drop),
    };
    match what {
        Some(what) => Err(ImportError::Refers {
            path: path.into(),
            what: what.into(),
        }),
        None => Ok(()),
    }
}

/// QEMU's docs/interop/qcow2.txt: backing_file_offset at 8; incompatible features at 72 from
/// version 3 on, of which bit 2 is an external data file.
fn qcow2(head: &[u8]) -> Option<&'static str> {
    const EXTERNAL_DATA_FILE: u64 = 1 << 2;
    if !head.starts_with(b"QFI\xfb") {
        // QEMU will say that it is no such image.
        return None;
    }
    if big(head, 8, 8).is_some_and(|offset| offset != 0) {
        return Some("a backing file");
    }
    let features = big(head, 72, 8)?;
    (big(head, 4, 4)? >= 3 && features & EXTERNAL_DATA_FILE != 0).then_some("an external data file")
}

/// VMware's Virtual Disk Format 5.0: a text descriptor names its extents; a sparse extent of
/// capacity 0 (little-endian at 12) is read by QEMU as a descriptor.
fn vmdk(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"# Disk DescriptorFile") {
        return Some("a descriptor that names its extents");
    }
    let capacity = head.get(12..20)?;
    (head.starts_with(b"KDMV") && capacity.iter().all(|&b| b == 0))
        .then_some("an embedded descriptor that names its extents")
}

/// QEMU's docs/interop/qed_spec.txt: features, little-endian, at 16, of which bit 0 is a backing
/// file.
fn qed(head: &[u8]) -> Option<&'static str> {
    (little(head, 16, 8)? & 1 != 0).then_some("a backing file")
}

/// VirtualBox's VDICore.h: the type at 76, of which 4 is a differencing image; the parent's uuid at
/// 424.
fn vdi(head: &[u8]) -> Option<&'static str> {
    let parent = head.get(424..440)?;
    (little(head, 76, 4)? == 4 || parent.iter().any(|&b| b != 0))
        .then_some("the parent of a differencing image")
}

/// Why an image may have to be repaired before it can be read: what its header says of its last use.
///
/// # Errors
/// [`ImportError::Io`].
pub(super) fn not_closed(
    file: &mut RawImage,
    format: ImageFormat,
) -> Result<Option<&'static str>, ImportError> {
    let head = raw::read(file, 0, 512)?;
    Ok(match format {
        // As above; bit 0 is dirty (lazy reference counts), bit 1 corrupt.
        ImageFormat::Qcow2 if big(&head, 4, 4).is_some_and(|version| version >= 3) => {
            match big(&head, 72, 8).map_or(0, |features| features & 3) {
                0 => None,
                1 => Some("it was not closed, so its reference counts are out of date"),
                _ => Some("it is marked as corrupt"),
            }
        }
        // As above; bit 1 of the features.
        ImageFormat::Qed if little(&head, 16, 8).is_some_and(|features| features & 2 != 0) => {
            Some("it was not closed and needs a check")
        }
        // QEMU's docs/interop/parallels.txt: inuse, at 44.
        ImageFormat::Parallels if head.get(44..48) == Some(b"Ynot".as_slice()) => {
            Some("it was not closed")
        }
        ImageFormat::Vhdx if vhdx_log(file)? => {
            Some("it was not closed: its log has changes that are not made yet")
        }
        _ => None,
    })
}

/// MS-VHDX §2.2.2: headers at 64 and 128 KiB; the newer one has the higher sequence number (at 8) and
/// is without a log when its LogGuid (at 48) is nil.
fn vhdx_log(file: &mut RawImage) -> Result<bool, ImportError> {
    let mut newest = None;
    for at in [64 << 10, 128 << 10] {
        let header = raw::read(file, at, 64)?;
        if let (true, Some(sequence)) = (header.starts_with(b"head"), little(&header, 8, 8)) {
            let log = header[48..64].iter().any(|&b| b != 0);
            newest = newest.max(Some((sequence, log)));
        }
    }
    Ok(newest.is_some_and(|(_, log)| log))
}

pub(super) fn big(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at + len)?;
    Some(field.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

pub(super) fn little(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at + len)?;
    Some(field.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
}
