//! Source images for new disks: what they hold and where they hold nothing.
//!
//! A raw image is read here; qcow2, VHD, VHDX and VMDK are read by a read-only `qemu-nbd` child over
//! a private Unix socket. Nothing is ever converted into a temporary file: the plaintext that was
//! in the source is in one buffer of this process, and then it is ciphertext.
//!
//! # An image is hostile
//!
//! An image may come from a guest or a stranger, and several formats can name other files of the
//! host as their content (backing files, external data files, flat extents). Such an image is
//! refused, before QEMU opens it as far as its first bytes tell, and again by what `qemu-img info`
//! says of it. The format is never guessed behind the operator's back: `--source-format` decides,
//! else the file's extension, which the content must not contradict, else the magic bytes, and
//! then the command says what it took the image for. So a raw image in which a guest wrote a qcow2
//! header stays raw when it is named `*.raw` or called raw.
//!
//! The way back, an export, is here too: [`TargetImage`] has QEMU write a new image.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

mod cancel;
mod copy;
mod error;
mod nbd;
mod probe;
mod qemu;
mod raw;
mod target;
#[cfg(test)]
mod tests;

pub use cancel::Cancel;
pub use copy::{CopyError, PlaintextSink, copy};
pub use error::ImportError;
pub use nbd::NbdClient;
pub use target::{Backing, TargetImage};

/// A format of source images, by QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes themselves.
    Raw,
    /// QEMU copy on write, version 2 or 3.
    Qcow2,
    /// VHD, fixed or dynamic: QEMU calls it `vpc`.
    Vpc,
    /// Hyper-V's VHDX.
    Vhdx,
    /// VMware's VMDK in one file.
    Vmdk,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        })
    }
}

impl FromStr for ImageFormat {
    type Err = ImportError;

    fn from_str(text: &str) -> Result<Self, ImportError> {
        match text.to_ascii_lowercase().as_str() {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vpc" | "vhd" => Ok(Self::Vpc),
            "vhdx" => Ok(Self::Vhdx),
            "vmdk" => Ok(Self::Vmdk),
            _ => Err(ImportError::UnknownFormat(text.into())),
        }
    }
}

/// An image's content as a guest would see it.
pub trait SourceImage {
    /// Bytes of the disk in the image.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`; the range lies within [`SourceImage::size`].
    ///
    /// # Errors
    /// [`ImportError`].
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError>;

    /// The first range at or after `offset` that may hold something other than zeros.
    ///
    /// # Errors
    /// [`ImportError`].
    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError>;
}

/// An opened source image.
pub struct Source {
    /// Its content.
    pub image: Box<dyn SourceImage>,
    /// What it was read as.
    pub format: ImageFormat,
}

/// Opens `path` as `format`, or as what its name and content say.
///
/// `scratch` is a directory of this process's own, for the socket of a qemu-nbd child.
///
/// # Errors
/// [`ImportError`].
pub fn open(
    path: &Path,
    format: Option<ImageFormat>,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Source, ImportError> {
    let (file, format) = examine(path, format)?;
    let image: Box<dyn SourceImage> = match format {
        ImageFormat::Raw => Box::new(file),
        _ => Box::new(qemu::QemuImage::open(path, format, scratch, cancel)?),
    };
    if image.size() == 0 {
        return Err(ImportError::Empty { path: path.into() });
    }
    Ok(Source { image, format })
}

/// What `path` would be opened as, by its name and its own bytes alone: no other program sees it.
///
/// # Errors
/// [`ImportError`]: it is no image, or one that needs other files.
pub fn identify(path: &Path, format: Option<ImageFormat>) -> Result<ImageFormat, ImportError> {
    examine(path, format).map(|(_, format)| format)
}

fn examine(
    path: &Path,
    format: Option<ImageFormat>,
) -> Result<(raw::RawImage, ImageFormat), ImportError> {
    let mut file = raw::RawImage::open(path)?;
    let format = match format {
        Some(format) => format,
        None => probe::format(&mut file, path)?,
    };
    probe::refuse_references(&mut file, format, path)?;
    Ok((file, format))
}
