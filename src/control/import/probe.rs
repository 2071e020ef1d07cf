//! What an image is, and whether it needs other files, by its own first (and last) bytes.

use std::path::Path;

use super::raw::RawImage;
use super::{ImageFormat, ImportError, SourceImage};

/// Length of a VHD's footer, which a dynamic VHD has at its beginning too.
const VHD_FOOTER_LEN: usize = 512;

/// The format by the file's name and content; see the module's text on which one counts.
pub(super) fn format(file: &mut RawImage, path: &Path) -> Result<ImageFormat, ImportError> {
    let extension = path
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase());
    let named = match extension.as_deref() {
        Some("raw" | "bin" | "iso") => return Ok(ImageFormat::Raw),
        Some("qcow2") => Some(ImageFormat::Qcow2),
        Some("vhd" | "vpc") => Some(ImageFormat::Vpc),
        Some("vhdx") => Some(ImageFormat::Vhdx),
        Some("vmdk") => Some(ImageFormat::Vmdk),
        _ => None,
    };
    let found = by_content(file)?;
    match named {
        Some(named) if named != found => Err(ImportError::Mismatch {
            path: path.into(),
            named,
            found,
        }),
        _ => Ok(found),
    }
}

fn by_content(file: &mut RawImage) -> Result<ImageFormat, ImportError> {
    let head = read(file, 0, 32)?;
    let magics: [(&[u8], ImageFormat); 6] = [
        (b"QFI\xfb", ImageFormat::Qcow2),
        (b"vhdxfile", ImageFormat::Vhdx),
        (b"KDMV", ImageFormat::Vmdk),
        (b"COWD", ImageFormat::Vmdk),
        (b"# Disk DescriptorFile", ImageFormat::Vmdk),
        (b"conectix", ImageFormat::Vpc),
    ];
    if let Some((_, format)) = magics.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Ok(*format);
    }
    if vhd_footer(file)?.is_some() {
        return Ok(ImageFormat::Vpc);
    }
    Ok(ImageFormat::Raw)
}

/// Refuses an image that its first bytes show to need other files, before QEMU opens those.
pub(super) fn refuse_references(
    file: &mut RawImage,
    format: ImageFormat,
    path: &Path,
) -> Result<(), ImportError> {
    let what = match format {
        ImageFormat::Raw | ImageFormat::Vhdx => None,
        ImageFormat::Qcow2 => qcow2_reference(&read(file, 0, 80)?),
        ImageFormat::Vmdk => vmdk_reference(&read(file, 0, 80)?),
        ImageFormat::Vpc => vhd_footer(file)?.and_then(|footer| vhd_reference(&footer)),
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
fn qcow2_reference(head: &[u8]) -> Option<&'static str> {
    const EXTERNAL_DATA_FILE: u64 = 1 << 2;
    if !head.starts_with(b"QFI\xfb") {
        // QEMU will say that it is no such image.
        return None;
    }
    let number = |at: usize| {
        head.get(at..at + 8)
            .map(|b| b.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
    };
    if number(8).is_some_and(|offset| offset != 0) {
        return Some("a backing file");
    }
    let version = head
        .get(4..8)?
        .iter()
        .fold(0u32, |n, &b| n << 8 | u32::from(b));
    let features = number(72)?;
    (version >= 3 && features & EXTERNAL_DATA_FILE != 0).then_some("an external data file")
}

/// VMware's Virtual Disk Format 5.0: a text descriptor names its extents; a sparse extent of
/// capacity 0 (little-endian at 12) is read by QEMU as a descriptor.
fn vmdk_reference(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"# Disk DescriptorFile") {
        return Some("a descriptor that names its extents");
    }
    let capacity = head.get(12..20)?;
    (head.starts_with(b"KDMV") && capacity.iter().all(|&b| b == 0))
        .then_some("an embedded descriptor that names its extents")
}

/// Virtual Hard Disk Image Format Specification: disk type, big-endian at 60; 4 is differencing,
/// which QEMU would read as if there were no parent.
fn vhd_reference(footer: &[u8]) -> Option<&'static str> {
    (footer.get(60..64)? == [0, 0, 0, 4]).then_some("the parent of a differencing disk")
}

/// The footer at the image's end, or its copy at the beginning.
fn vhd_footer(file: &mut RawImage) -> Result<Option<Vec<u8>>, ImportError> {
    let last = file.size().saturating_sub(VHD_FOOTER_LEN as u64);
    for offset in [last, 0] {
        let footer = read(file, offset, VHD_FOOTER_LEN)?;
        if footer.starts_with(b"conectix") {
            return Ok(Some(footer));
        }
    }
    Ok(None)
}

/// Up to `length` bytes at `offset`, fewer at the end of the image.
fn read(file: &mut RawImage, offset: u64, length: usize) -> Result<Vec<u8>, ImportError> {
    let rest = file.size().saturating_sub(offset);
    let length = usize::try_from(rest).map_or(length, |rest| rest.min(length));
    let mut bytes = vec![0; length];
    file.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
