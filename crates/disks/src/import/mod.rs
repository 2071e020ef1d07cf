//! Source images for new disks: what they hold and where they hold nothing.
//!
//! A raw image and a fixed VHD are read here; qcow2, dynamic VHD, VHDX, VMDK, VDI, QED and Parallels
//! images are read by a `qemu-nbd` child. Nothing is ever converted into a temporary file: the plaintext
//! that was in the source is in buffers, and then it is ciphertext.
//!
//! # An image is hostile
//!
//! An image may come from a guest or a stranger, and several formats can name other files of the
//! host as their content (backing files, external data files, flat extents). Such an image is
//! refused, before QEMU opens it as far as its first bytes tell, and again by what `qemu-img info`
//! says of it. The format is never guessed behind the operator's back: `--source-format` decides,
//! else the file's extension, which the content must not contradict, else the magic bytes, and
//! then the command says what it took the image for. So a raw image in which a guest wrote a qcow2
//! header stays raw when it is named `*.raw` or called raw. What is packed, compressed or encrypted
//! is no disk's bytes and is refused by its name, unless it is called raw.
//!
//! QEMU's programs read such an image confined (`confined.rs`): they are fed its bytes over a socket (`feeder.rs`)
//! and can reach nothing else of the host.
//!
//! # An image is in use
//!
//! A running QEMU locks its images. Those locks are honoured, and held for as long as an image is
//! read (`locks.rs`).
//!
//! The way back, an export, is here too: [`TargetImage`] has QEMU write a new image.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

mod cancel;
mod confined;
mod copy;
mod error;
mod feeder;
mod helper;
mod locks;
mod nbd;
mod parallels;
mod partitions;
mod probe;
mod qemu;
mod raw;
mod references;
mod socket;
mod tar;
mod target;
#[cfg(test)]
mod tests;
mod vhd;
mod whole;
mod writer;

use keys::units::SECTOR_SIZE;
use qemu::{Bounds, QemuImage};
use vhd::Vhd;

pub use cancel::Cancel;
pub use copy::{CopyError, PlaintextSink, copy};
pub use error::ImportError;
#[doc(hidden)]
pub use feeder::feed;
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
    /// VirtualBox's VDI.
    Vdi,
    /// QEMU's QED, which was to replace qcow2.
    Qed,
    /// The image of a Parallels HDD.
    Parallels,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
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
            "vdi" => Ok(Self::Vdi),
            "qed" => Ok(Self::Qed),
            "parallels" | "hdd" => Ok(Self::Parallels),
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

/// An image to import.
#[derive(Debug)]
pub struct SourceSpec {
    /// The image.
    pub path: PathBuf,
    /// What it is; found out when not given.
    pub format: Option<ImageFormat>,
    /// Read it even though a running QEMU may write to it.
    pub force_share: bool,
}

/// An opened source image.
pub struct Source {
    /// Its content.
    pub image: Box<dyn SourceImage>,
    /// What it was read as.
    pub format: ImageFormat,
    /// What else a raw image looks like.
    pub looks_like: Option<String>,
    /// The logical sector size of the disk in it, if a partition table tells.
    pub logical_sector_size: Option<u32>,
}

/// Opens an image as what it is said to be, or as what its name and content say.
///
/// # Errors
/// [`ImportError`].
pub fn open(spec: &SourceSpec, cancel: &Cancel) -> Result<Source, ImportError> {
    open_within(spec, cancel, Bounds::default())
}

fn open_within(spec: &SourceSpec, cancel: &Cancel, bounds: Bounds) -> Result<Source, ImportError> {
    let path = &spec.path;
    let mut file = raw::RawImage::open(path)?;
    if !spec.force_share {
        file.lock()?;
    }
    let format = examine(&mut file, path, spec.format)?;
    let looks_like = match format {
        ImageFormat::Raw => probe::looks_like(&mut file)?,
        _ => None,
    };
    let vhd = match format {
        ImageFormat::Vpc => Some(vhd::examine(&mut file, path)?),
        _ => None,
    };
    let mut image: Box<dyn SourceImage> = match (format, vhd) {
        (ImageFormat::Raw, _) => Box::new(file),
        (_, Some(Vhd::Fixed(size))) => Box::new(file.start(size)),
        (_, vhd) => {
            whole::refuse_truncated(&mut file, format, cancel)?;
            if format == ImageFormat::Vhdx {
                // What QEMU is fed is filled up to a sector, in which it would see no end.
                let whole_sectors = file.size() / SECTOR_SIZE * SECTOR_SIZE;
                file = file.start(whole_sectors);
            }
            let size = match vhd {
                Some(Vhd::Dynamic(size)) => Some(size),
                _ => None,
            };
            let wanted = qemu::Image {
                path,
                format,
                repair: references::not_closed(&mut file, format)?,
                bounds,
                cancel,
            };
            Box::new(QemuImage::open(&file, &wanted, size)?)
        }
    };
    if image.size() == 0 {
        return Err(ImportError::Empty { path: path.into() });
    }
    Ok(Source {
        logical_sector_size: partitions::logical_sector_size(image.as_mut())?,
        image,
        format,
        looks_like,
    })
}

/// What `path` would be opened as, by its name and its own bytes alone: no other program sees it.
///
/// # Errors
/// [`ImportError`]: it is no image, or one that needs other files.
pub fn identify(path: &Path, format: Option<ImageFormat>) -> Result<ImageFormat, ImportError> {
    examine(&mut raw::RawImage::open(path)?, path, format)
}

fn examine(
    file: &mut raw::RawImage,
    path: &Path,
    format: Option<ImageFormat>,
) -> Result<ImageFormat, ImportError> {
    let format = match format {
        Some(format) => {
            probe::refuse_other(file, path, format)?;
            format
        }
        None => probe::format(file, path)?,
    };
    references::refuse(file, format, path)?;
    Ok(format)
}
