//! Opening an image.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::cancel::Cancel;
use super::error::ImportError;
use super::format::ImageFormat;
use super::image::SourceImage;
use super::qemu::{Bounds, QemuImage};
use super::vhd::Vhd;
use super::{partitions, probe, qemu, raw, references, vhd, whole};
use keys::units::SECTOR_SIZE;

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
    pub image: Box<dyn SourceImage + Send>,
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

pub(super) fn open_within(
    spec: &SourceSpec,
    cancel: &Cancel,
    bounds: Bounds,
) -> Result<Source, ImportError> {
    opened(raw::RawImage::open(&spec.path)?, spec, cancel, bounds)
}

/// Opens a regular file below a directory for [`open_file`]: no symbolic link and no `..` leads out of it.
///
/// # Errors
/// [`ImportError::Io`], [`ImportError::NotAnImage`].
pub fn open_beneath(directory: &Path, path: &Path) -> Result<File, ImportError> {
    let full = directory.join(path);
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_PATH)
        .open(directory)
        .map_err(raw::error("open", directory))?;
    // O_NONBLOCK: opening a pipe must not wait for a writer before it is refused.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, path, flags, Mode::empty(), resolve);
    let file = File::from(file.map_err(|error| raw::error("open", &full)(error.into()))?);
    let metadata = file.metadata().map_err(raw::error("inspect", &full))?;
    match metadata.is_file() {
        true => Ok(file),
        false => Err(ImportError::NotAnImage { path: full }),
    }
}

/// Opens an image whose file is open, as what its name and content say.
///
/// # Errors
/// [`ImportError`].
pub fn open_file(file: File, name: &Path, cancel: &Cancel) -> Result<Source, ImportError> {
    let spec = SourceSpec {
        path: name.into(),
        format: None,
        force_share: false,
    };
    let file = raw::RawImage::of(file, name)?;
    opened(file, &spec, cancel, Bounds::default())
}

fn opened(
    mut file: raw::RawImage,
    spec: &SourceSpec,
    cancel: &Cancel,
    bounds: Bounds,
) -> Result<Source, ImportError> {
    let path = &spec.path;
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
    let mut image: Box<dyn SourceImage + Send> = match (format, vhd) {
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
