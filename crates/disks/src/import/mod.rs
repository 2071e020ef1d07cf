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
//! and can reach nothing else of the host. What a qcow2 image has uncompressed is read from its file, at the places
//! that they tell (`map.rs`).
//!
//! # An image is in use
//!
//! A running QEMU locks its images. Those locks are honoured, and held for as long as an image is
//! read (`locks.rs`).
//!
//! The way back, an export, is here too: [`TargetImage`] has QEMU write a new image.

mod cancel;
mod confined;
mod copy;
mod error;
mod feeder;
mod format;
mod helper;
mod image;
mod locks;
mod map;
mod nbd;
mod open;
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

pub use cancel::Cancel;
pub(crate) use cancel::Deadline;
pub use copy::{CopyError, PlaintextSink, copy};
pub use error::ImportError;
#[doc(hidden)]
pub use feeder::feed;
pub use format::ImageFormat;
pub use image::SourceImage;
pub use nbd::NbdClient;
pub use open::{Source, SourceSpec, identify, open, open_beneath, open_file};
pub use target::TargetImage;
pub use writer::Backing;
