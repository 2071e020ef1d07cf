//! How far an image's file has to reach: the end of what its own tables say that is in it.
//!
//! QEMU reads what lies behind the end of an image file as zeros, so a truncated image would be imported
//! as one with less in it. `qemu-img check` sees that in some formats, and by whole clusters only.
//! `qemu-img map` tells no offsets for VHDX and for compressed clusters. So the tables are read here.
//! The blocks of VHDX are left to QEMU, which does refuse to open an image without one of them.
//!
//! What is behind the end of the disk is not needed: of the last cluster of a disk, programs write what
//! the disk has.
//!
//! An image is hostile: holes of its file are not read, no table of the second level is read twice, and
//! those of the first level have at most [`table::MAX_FIRST`] bytes. So the work is bounded by the storage that
//! the image takes. What is no sound header at all is left to QEMU's refusal.

use super::raw::RawImage;
use super::{Cancel, ImageFormat, ImportError, SourceImage};

mod formats;
mod table;

use table::{Extent, Stop};

/// Refuses an image whose file ends before what is in it.
///
/// # Errors
/// [`ImportError::Damaged`], [`ImportError::Io`], [`ImportError::Interrupted`].
pub(super) fn refuse_truncated(
    file: &mut RawImage,
    format: ImageFormat,
    cancel: &Cancel,
) -> Result<(), ImportError> {
    let size = file.size();
    let path = file.path().to_owned();
    let damaged = |why| ImportError::Damaged { path, format, why };
    let mut extent = Extent {
        file,
        cancel,
        end: 0,
    };
    let found = match format {
        ImageFormat::Raw => Ok(()),
        ImageFormat::Vhdx => formats::vhdx(&mut extent),
        ImageFormat::Qcow2 => formats::qcow2(&mut extent),
        ImageFormat::Qed => formats::qed(&mut extent),
        ImageFormat::Vmdk => formats::vmdk(&mut extent),
        ImageFormat::Vdi => formats::vdi(&mut extent),
        ImageFormat::Parallels => formats::parallels(&mut extent),
        ImageFormat::Vpc => formats::dynamic_vhd(&mut extent),
    };
    let end = extent.end;
    match found {
        Ok(()) if end <= size => Ok(()),
        Ok(()) => Err(damaged(format!(
            "it is truncated: what is in it reaches to byte {end}, and the file has {size}; copy or \
             download it again"
        ))),
        Err(Stop::NoFooter) => Err(damaged(
            "it is truncated: the footer at its end is missing; copy or download it again".into(),
        )),
        Err(Stop::TooLarge) => Err(damaged(
            "its table is larger than that of any sound image".into(),
        )),
        Err(Stop::Overlapping) => Err(damaged(
            "its tables lie over each other, as those of no sound image do".into(),
        )),
        Err(Stop::Import(error)) => Err(error),
    }
}
