//! The footer of a VHD, which alone says how large the disk is.
//!
//! From Microsoft's *Virtual Hard Disk Image Format Specification*, version 1.0; numbers are
//! big-endian. A footer of 512 bytes ends every image; a dynamic one begins with a copy of it.
//!
//! | at | | |
//! |---|---|---|
//! | 0 | 8 | `conectix` |
//! | 28 | 4 | the creator: `win ` is Hyper-V, `wa\0\0` Azure, `vbox` VirtualBox, `vpc ` Virtual PC |
//! | 48 | 8 | current size: bytes of the disk |
//! | 56 | 4 | cylinders, heads and sectors per track, whose product may be less |
//! | 60 | 4 | type: 2 fixed, 3 dynamic, 4 differencing |
//! | 64 | 4 | checksum: the ones' complement of the sum of all other bytes |
//!
//! Which of the two sizes a program believes depends on the creator's name and on the program: QEMU
//! before 10.0 takes cylinders, heads and sectors for creators that it does not know, and the end of
//! the disk is lost. The current size is what the specification calls the size of the disk.

use std::path::Path;

use super::raw;
use super::raw::RawImage;
use super::{ImageFormat, ImportError, SourceImage};

const LEN: usize = 512;
const COOKIE: &[u8] = b"conectix";

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// What counts of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    kind: u32,
    size: u64,
}

/// What a VHD is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vhd {
    /// The disk's bytes, of that number, and a footer.
    Fixed(u64),
    /// A disk of that many bytes, in blocks.
    Dynamic(u64),
}

/// Whether the last bytes of a file begin as a footer does.
pub(super) fn is_trailer(bytes: &[u8]) -> bool {
    bytes.starts_with(COOKIE)
}

/// Reads the footer and its copy.
///
/// # Errors
/// [`ImportError::Refers`] for a differencing disk, [`ImportError::Damaged`] when what is there is not
/// a whole VHD.
pub(super) fn examine(file: &mut RawImage, path: &Path) -> Result<Vhd, ImportError> {
    let damaged = |why: &str| ImportError::Damaged {
        path: path.into(),
        format: ImageFormat::Vpc,
        why: why.into(),
    };
    let end = file.size().saturating_sub(LEN as u64);
    let last = Found::in_bytes(&raw::read(file, end, LEN)?);
    let first = Found::in_bytes(&raw::read(file, 0, LEN)?);
    let footer = match (last, first) {
        // What a fixed disk begins with is the guest's.
        (Found::Sound(last), _) if last.kind == FIXED => last,
        (Found::Sound(last), Found::Sound(first)) if last == first => first,
        (Found::Sound(_), Found::Sound(_)) => {
            return Err(damaged("the two copies of its footer say different things"));
        }
        (Found::Sound(last), Found::Nothing) if last.kind == DYNAMIC => {
            return Err(damaged(
                "the copy of its footer at the beginning is missing",
            ));
        }
        (Found::Sound(last), Found::Nothing) => last,
        // The specification has the copy for the case that the end is lost. QEMU sees when blocks are.
        (Found::Nothing, Found::Sound(first)) if first.kind != FIXED => first,
        (Found::Nothing, Found::Nothing) => {
            return Err(damaged(
                "it has no footer: it is truncated, or no VHD (--source-format raw takes its bytes for \
                 the disk's)",
            ));
        }
        (Found::Nothing, Found::Sound(_)) => {
            return Err(damaged("it is truncated: its end is missing"));
        }
        (Found::Sound(_) | Found::Torn, _) | (Found::Nothing, Found::Torn) => {
            return Err(damaged("the checksum of its footer is wrong"));
        }
    };
    match footer.kind {
        FIXED if footer.size > end => Err(damaged(&format!(
            "it is truncated: it is to have {} bytes, and only {end} are there",
            footer.size
        ))),
        FIXED => Ok(Vhd::Fixed(footer.size)),
        DYNAMIC => Ok(Vhd::Dynamic(footer.size)),
        DIFFERENCING => Err(ImportError::Refers {
            path: path.into(),
            what: "the parent of a differencing disk".into(),
        }),
        kind => Err(damaged(&format!(
            "its type is {kind}, which does not exist"
        ))),
    }
}

/// What 512 bytes are.
enum Found {
    /// Something else.
    Nothing,
    /// A footer, but its checksum is wrong.
    Torn,
    Sound(Footer),
}

impl Found {
    fn in_bytes(bytes: &[u8]) -> Self {
        if bytes.len() != LEN || !bytes.starts_with(COOKIE) {
            return Self::Nothing;
        }
        let number = |range: std::ops::Range<usize>| {
            bytes[range]
                .iter()
                .fold(0u64, |n, &b| n << 8 | u64::from(b))
        };
        let others = bytes[..64].iter().chain(&bytes[68..]);
        let sum: u32 = others.map(|&b| u32::from(b)).sum();
        match number(64..68) == u64::from(!sum) {
            true => Self::Sound(Footer {
                kind: number(60..64) as u32,
                size: number(48..56),
            }),
            false => Self::Torn,
        }
    }
}
