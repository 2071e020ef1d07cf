//! Why a source image cannot be imported, or an image not be written.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::ImageFormat;

/// Errors of images.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A system call on the image failed.
    #[error("cannot {call} the image {}: {source}", path.display())]
    Io {
        /// What was attempted.
        call: &'static str,
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path is a directory, a pipe or the like.
    #[error("the image {} is neither a regular file nor a block device", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
    },
    /// The path is a disk of Parallels.
    #[error(
        "the image {} is a disk of Parallels, which is a directory; import the image in it: {images}",
        path.display()
    )]
    Directory {
        /// The path.
        path: PathBuf,
        /// The images in it.
        images: String,
    },
    /// The image holds no bytes.
    #[error("the image {} is empty", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// No such format.
    #[error(
        "there is no image format '{0}'; use raw, qcow2, vpc (or vhd), vhdx, vmdk, vdi, qed or parallels"
    )]
    UnknownFormat(String),
    /// The name of the image promises a format that its content is not.
    #[error(
        "the image {} is named like {named} but its content is {found}; say which it is with \
         --source-format", path.display()
    )]
    Mismatch {
        /// The image.
        path: PathBuf,
        /// The format that the extension stands for.
        named: ImageFormat,
        /// The format that the magic bytes stand for.
        found: ImageFormat,
    },
    /// The image is packed, encrypted or of a format that is not read here.
    #[error(
        "the image {} is {what}: {advice} (--source-format raw takes its bytes for the disk's)",
        path.display()
    )]
    Container {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A QEMU writes to the image.
    #[error(
        "the image {} is in use: failed to get shared \"{what}\" lock; is another process using it, a \
         running VM say? Shut that down or import a snapshot, or give --force-share to read it as it is, \
         torn perhaps", path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// The permission that is missing, by QEMU's name.
        what: &'static str,
    },
    /// The image is not whole.
    #[error("cannot read the image {} as {format}: {why}", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// As what it was to be read.
        format: ImageFormat,
        /// What is wrong.
        why: String,
    },
    /// QEMU takes the disk in the image for larger or smaller than the image says.
    #[error(
        "the image {} says that its disk has {says} bytes, and {program} reads {reads}; convert it to raw \
         with the program that made it", path.display()
    )]
    OtherSize {
        /// The image.
        path: PathBuf,
        /// What the image says.
        says: u64,
        /// The program.
        program: &'static str,
        /// What it reads.
        reads: u64,
    },
    /// The image needs other files, which it could name at will.
    #[error(
        "the image {} refers to another file ({what}); flatten it first with `qemu-img convert`",
        path.display()
    )]
    Refers {
        /// The image.
        path: PathBuf,
        /// What it refers to and how.
        what: String,
    },
    /// A helper program is not there.
    #[error(
        "{format} images need the program {program}, which cannot be run: {source}; \
         install the package qemu-utils"
    )]
    NoHelper {
        /// The format to be read or written.
        format: ImageFormat,
        /// The program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// QEMU's tools refused the image.
    #[error("{program} cannot read the image {} as {format}: {message}", path.display())]
    Unreadable {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// As what it was to be read.
        format: ImageFormat,
        /// What the program said, on one line.
        message: String,
    },
    /// QEMU's tools could not make an image.
    #[error("{program} cannot write the {format} image: {message}")]
    Unwritable {
        /// The program.
        program: &'static str,
        /// What was to be written.
        format: ImageFormat,
        /// What the program said, on one line.
        message: String,
    },
    /// The conversation with qemu-nbd broke.
    #[error("going through qemu-nbd failed: {0}")]
    Nbd(String),
    /// There is no thread to read the image.
    #[error("cannot start a thread for the image: {0}")]
    Thread(#[source] io::Error),
    /// SIGINT or SIGTERM came.
    #[error("interrupted by a signal")]
    Interrupted,
}
