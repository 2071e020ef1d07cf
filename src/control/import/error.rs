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
    /// The image holds no bytes.
    #[error("the image {} is empty", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// No such format.
    #[error("there is no image format '{0}'; use raw, qcow2, vpc (or vhd), vhdx or vmdk")]
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
    /// SIGINT or SIGTERM came.
    #[error("interrupted by a signal")]
    Interrupted,
}
