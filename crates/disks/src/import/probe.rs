//! What an image is, by its name and its own first and last bytes.
//!
//! [`KNOWN`] is the one table of magic numbers. What is in none of its rows is a raw image: boot
//! sectors, partition tables, file systems and ISO 9660 hybrids are what disks begin with.

use std::path::Path;

use uuid::Uuid;

use super::raw;
use super::raw::RawImage;
use super::{ImageFormat, ImportError, SourceImage, tar, vhd};

/// Bytes at the beginning of a file that are looked at.
const HEAD: usize = 512;
/// Bytes of Apple's trailer, at the end of a disk image.
const TRAILER: u64 = 512;

/// Where a magic number stands.
enum At {
    Start(usize),
    /// Behind the bytes that are looked at together.
    Far(u64),
    /// In the last 512 bytes.
    Trailer,
}

/// What a magic number stands for.
enum Means {
    Format(ImageFormat),
    /// Something else than a disk's bytes, that is not read here: what it is called, and what to do.
    Container(&'static str, &'static str),
}

use At::{Far, Start, Trailer};
use Means::{Container, Format};

const DECOMPRESS: &str = "decompress it first";
const UNPACK: &str = "unpack it first, and import the disk image in it";
const DECRYPT: &str = "decrypt it first, and import the disk image in it";
const SEALED: &str = "`sealdisk disk register --dir DIRECTORY` makes the disk known, then `disk copy` copies \
                      it and `disk decrypt` gives its bytes";
const NO_DISK: &str = "import the image of a disk";
/// What a disk of Sealdisk keeps its wrapped keys in.
const HEADER: &str = "the header of a disk of Sealdisk";
const DOWNLOAD: &str = "a server's error or a login page probably: download the image again";
const CONVERT: &str = "convert it to qcow2 with the program that made it";

/// Every magic number that is known, with its place; the first that fits counts.
const KNOWN: &[(At, &[u8], Means)] = &[
    // Version 1 has another layout than 2 and 3.
    (
        Start(0),
        b"QFI\xfb\0\0\0\x01",
        Container(
            "a qcow image of version 1",
            "convert it first: `qemu-img convert -f qcow -O qcow2`",
        ),
    ),
    (Start(0), b"QFI\xfb", Format(ImageFormat::Qcow2)),
    (Start(0), b"QED\0", Format(ImageFormat::Qed)),
    (Start(0), b"vhdxfile", Format(ImageFormat::Vhdx)),
    (Start(0), b"conectix", Format(ImageFormat::Vpc)),
    (Start(0), b"KDMV", Format(ImageFormat::Vmdk)),
    (Start(0), b"COWD", Format(ImageFormat::Vmdk)),
    (
        Start(0),
        b"# Disk DescriptorFile",
        Format(ImageFormat::Vmdk),
    ),
    (
        Start(0),
        b"\xbe\xba\xfe\xca\0\0\0\0",
        Container(
            "an SEsparse extent of VMware",
            "convert its descriptor with `qemu-img convert -f vmdk`",
        ),
    ),
    (Start(64), b"\x7f\x10\xda\xbe", Format(ImageFormat::Vdi)),
    (
        Start(0),
        b"WithoutFreeSpace",
        Format(ImageFormat::Parallels),
    ),
    (
        Start(0),
        b"WithouFreSpacExt",
        Format(ImageFormat::Parallels),
    ),
    (
        Start(0),
        b"Bochs Virtual HD Image",
        Container(
            "a Bochs image",
            "convert it first: `qemu-img convert -f bochs -O qcow2`",
        ),
    ),
    (
        Start(0),
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop",
        Container(
            "a cloop image",
            "convert it first: `qemu-img convert -f cloop -O qcow2`",
        ),
    ),
    (
        Start(0),
        b"LUKS\xba\xbe",
        Container(
            "a LUKS container",
            "open it with `cryptsetup open` and import the device that this makes, or say raw if \
             the guest is to open it",
        ),
    ),
    (
        Trailer,
        b"koly\0\0\0\x04",
        Container(
            "an Apple disk image (DMG)",
            "convert it first: `qemu-img convert -f dmg -O qcow2`",
        ),
    ),
    (
        Start(0),
        b"encrcdsa",
        Container("an encrypted Apple disk image", CONVERT),
    ),
    (
        Start(0),
        b"sprs",
        Container("an Apple sparse image", CONVERT),
    ),
    (
        Start(0),
        b"shdw",
        Container("an Apple sparse image (ASIF)", CONVERT),
    ),
    (
        Start(0),
        b"\x3a\xff\x26\xed",
        Container("an Android sparse image", "convert it with `simg2img`"),
    ),
    (
        Start(0),
        b"VMA\0",
        Container("a Proxmox backup (VMA)", "extract it first: `vma extract`"),
    ),
    (Start(0), b"MComprHD", Container("a CHD image", CONVERT)),
    (
        Start(0),
        b"EVF\x09\x0d\x0a\xff\0",
        Container("an EnCase image (E01)", CONVERT),
    ),
    (
        Start(0),
        b"partclone-image",
        Container("a partclone image", "restore it first"),
    ),
    (
        Start(0),
        b"MSWIM\0\0\0",
        Container("a Windows image (WIM)", "apply it to a disk first"),
    ),
    (
        Start(0),
        b"\xfd7zXZ\0",
        Container("xz-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x1f\x8b\x08",
        Container("gzip-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x1f\x9d\x90",
        Container("compressed by compress", DECOMPRESS),
    ),
    (
        Start(4),
        b"1AY&SY",
        Container("bzip2-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x28\xb5\x2f\xfd",
        Container("zstd-compressed", DECOMPRESS),
    ),
    (
        Start(1),
        b"\x2a\x4d\x18",
        Container("zstd- or lz4-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x04\x22\x4d\x18",
        Container("lz4-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x02\x21\x4c\x18",
        Container("lz4-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x89LZO\0\x0d\x0a\x1a\x0a",
        Container("lzop-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"LZIP\x01",
        Container("lzip-compressed", DECOMPRESS),
    ),
    (
        Start(0),
        b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff",
        Container("lzma-compressed", DECOMPRESS),
    ),
    (Start(0), b"PK\x03\x04", Container("a zip archive", UNPACK)),
    (
        Start(0),
        b"PK\x05\x06",
        Container("an empty zip archive", UNPACK),
    ),
    (
        Start(0),
        b"PK\x07\x08",
        Container("a zip archive in parts", UNPACK),
    ),
    (
        Start(0),
        b"7z\xbc\xaf\x27\x1c",
        Container("a 7z archive", UNPACK),
    ),
    (
        Start(0),
        b"Rar!\x1a\x07",
        Container("a RAR archive", UNPACK),
    ),
    (
        Start(0),
        b"MSCF\0\0\0\0",
        Container("a cabinet archive", UNPACK),
    ),
    (Start(0), b"xar!", Container("a xar archive", UNPACK)),
    (Start(0), b"070701", Container("a cpio archive", UNPACK)),
    (Start(0), b"070702", Container("a cpio archive", UNPACK)),
    (Start(0), b"070707", Container("a cpio archive", UNPACK)),
    (
        Start(0),
        b"!<arch>\ndebian-binary",
        Container("a Debian package", UNPACK),
    ),
    (Start(0), b"!<arch>\n", Container("an ar archive", UNPACK)),
    (
        Start(0),
        b"!<thin>\n",
        Container("a thin ar archive", UNPACK),
    ),
    (
        Start(0),
        b"\xed\xab\xee\xdb",
        Container("an RPM package", UNPACK),
    ),
    (
        Start(0),
        b"AFF10\x0d\x0a\0",
        Container("an AFF image", CONVERT),
    ),
    (
        Start(0),
        b"SQLite format 3\0",
        Container("an SQLite database", NO_DISK),
    ),
    (
        Start(0),
        b"age-encryption.org/",
        Container("encrypted by age", DECRYPT),
    ),
    (
        Start(0),
        b"-----BEGIN AGE ",
        Container("encrypted by age", DECRYPT),
    ),
    (
        Start(0),
        b"-----BEGIN PGP ",
        Container("an OpenPGP message", DECRYPT),
    ),
    // Packets of RFC 9580 §4.2, in the form that GnuPG writes: a session key under a passphrase (of
    // version 4), or for an RSA key of 2048, 3072 or 4096 bits or one of Curve25519 (of version 3).
    (
        Start(0),
        b"\x8c\x0d\x04",
        Container("an OpenPGP message", DECRYPT),
    ),
    (
        Start(0),
        b"\x85\x01\x0c\x03",
        Container("an OpenPGP message", DECRYPT),
    ),
    (
        Start(0),
        b"\x85\x01\x8c\x03",
        Container("an OpenPGP message", DECRYPT),
    ),
    (
        Start(0),
        b"\x85\x02\x0c\x03",
        Container("an OpenPGP message", DECRYPT),
    ),
    (
        Start(0),
        b"\x84\x5e\x03",
        Container("an OpenPGP message", DECRYPT),
    ),
    (
        Start(0),
        b"Salted__",
        Container("encrypted by OpenSSL", DECRYPT),
    ),
    // docs/format.md has these of Sealdisk itself; a header of version 1 begins with its first slot.
    (Start(0), b"SEALDISK\x01\0\0\0", Container(HEADER, SEALED)),
    (
        Far(64 << 10),
        b"SEALDISK\x02\0\0\0",
        Container(HEADER, SEALED),
    ),
    (
        Far(128 << 10),
        b"SEALDISK\x02\0\0\0",
        Container(HEADER, SEALED),
    ),
    (
        Start(0),
        b"SDBLKMAP",
        Container("the map of a disk of Sealdisk", SEALED),
    ),
    (
        Start(0),
        b"SDRUNMAP",
        Container("the runtime map of a disk of Sealdisk", SEALED),
    ),
    (
        Start(0),
        b"SDKEYBK1",
        Container("the backup of a key of Sealdisk", NO_DISK),
    ),
    (Start(257), b"ustar", Container("a tar archive", UNPACK)),
];

/// What a file's content says that it is.
pub(super) enum Content {
    /// An image of this format.
    Format(ImageFormat),
    /// What no disk begins with, in words, and what to do with it.
    Container {
        /// What it is.
        what: String,
        /// What to do.
        advice: String,
    },
}

impl Content {
    /// What it is, in words.
    fn what(&self) -> String {
        match self {
            Self::Format(format) => format.to_string(),
            Self::Container { what, .. } => what.clone(),
        }
    }
}

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
        Some("vdi") => Some(ImageFormat::Vdi),
        Some("qed") => Some(ImageFormat::Qed),
        Some("hdd" | "hds") => Some(ImageFormat::Parallels),
        _ => None,
    };
    if named.is_none() && is_ciphertext(path) {
        return Err(ImportError::Container {
            path: path.into(),
            what: "the ciphertext of a disk of Sealdisk".into(),
            advice: SEALED.into(),
        });
    }
    match (content(file)?, named) {
        // A fixed VHD without its end is told by its name alone, and refused for that.
        (Content::Format(ImageFormat::Raw), Some(ImageFormat::Vpc)) => Ok(ImageFormat::Vpc),
        (Content::Container { what, advice }, _) => Err(ImportError::Container {
            path: path.into(),
            what,
            advice,
        }),
        (Content::Format(found), Some(named)) if named != found => Err(ImportError::Mismatch {
            path: path.into(),
            named,
            found,
        }),
        (Content::Format(found), _) => Ok(found),
    }
}

/// Whether a file is `LAYER.data` of a disk, by its name and what is beside it: ciphertext has no mark.
fn is_ciphertext(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let layer = stem.is_some_and(|stem| Uuid::try_parse(stem).is_ok());
    layer
        && path
            .extension()
            .is_some_and(|extension| extension == "data")
        && RawImage::open(&path.with_file_name("header"))
            .and_then(|mut header| content(&mut header))
            .is_ok_and(|it| matches!(it, Content::Container { what, .. } if what == HEADER))
}

/// Refuses an image that is said to be of a format and has no mark of it, before a program says less. A
/// VHD's mark is its footer, which says more.
///
/// # Errors
/// [`ImportError::Damaged`], [`ImportError::Io`].
pub(super) fn refuse_other(
    file: &mut RawImage,
    path: &Path,
    format: ImageFormat,
) -> Result<(), ImportError> {
    let head = raw::read(file, 0, HEAD)?;
    let is_marked = KNOWN.iter().any(|(at, magic, means)| match (at, means) {
        (Start(at), Format(of)) => {
            *of == format && head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
        }
        _ => false,
    });
    if is_marked || matches!(format, ImageFormat::Raw | ImageFormat::Vpc) {
        return Ok(());
    }
    Err(ImportError::Damaged {
        path: path.into(),
        format,
        why: format!(
            "it does not begin as such an image does, its content is {}; say which it is with \
             --source-format, or leave that away",
            content(file)?.what()
        ),
    })
}

/// What a raw image looks like, if its bytes are also those of something else.
///
/// # Errors
/// [`ImportError::Io`].
pub(super) fn looks_like(file: &mut RawImage) -> Result<Option<String>, ImportError> {
    Ok(match content(file)? {
        Content::Format(ImageFormat::Raw) => None,
        other => Some(other.what()),
    })
}

fn content(file: &mut RawImage) -> Result<Content, ImportError> {
    let head = raw::read(file, 0, HEAD)?;
    let trailer = raw::read(file, file.size().saturating_sub(TRAILER), HEAD)?;
    let mut far = Vec::new();
    for (at, magic, _) in KNOWN {
        if let Far(at) = at {
            far.push((at, raw::read(file, *at, magic.len())?));
        }
    }
    let fits = |at: &At, magic: &[u8]| match at {
        Start(at) => head.get(*at..).is_some_and(|rest| rest.starts_with(magic)),
        Far(at) => far
            .iter()
            .any(|(place, bytes)| *place == at && bytes.starts_with(magic)),
        Trailer => trailer.starts_with(magic),
    };
    let known = KNOWN.iter().find(|(at, magic, _)| fits(at, magic));
    Ok(match known {
        Some((_, magic, Container(what, advice))) => match *magic {
            b"ustar" => tar_archive(file, advice)?,
            _ => Content::Container {
                what: (*what).into(),
                advice: (*advice).into(),
            },
        },
        Some((_, _, Format(format))) => Content::Format(*format),
        None if vhd::is_trailer(&trailer) => Content::Format(ImageFormat::Vpc),
        None if is_markup(&head) => Content::Container {
            what: "a page of HTML or XML".into(),
            advice: DOWNLOAD.into(),
        },
        None => Content::Format(ImageFormat::Raw),
    })
}

/// Whether a text begins as HTML or XML does, whatever the case and what is in front.
fn is_markup(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start().to_ascii_lowercase();
    [&b"<!doctype html"[..], b"<html", b"<head", b"<?xml"]
        .iter()
        .any(|start| text.starts_with(start))
}

/// An OVA is a tar archive that begins with its description.
fn tar_archive(file: &mut RawImage, advice: &str) -> Result<Content, ImportError> {
    let members = tar::members(file)?;
    let ends = |name: &String, extension: &str| name.to_ascii_lowercase().ends_with(extension);
    let is_ova = members.iter().any(|name| ends(name, ".ovf"));
    let disks: Vec<_> = members
        .iter()
        .filter(|name| {
            [".vmdk", ".vhd", ".vhdx", ".qcow2", ".img", ".raw"]
                .iter()
                .any(|e| ends(name, e))
        })
        .map(|name| format!("{name:?}"))
        .collect();
    Ok(Content::Container {
        what: match is_ova {
            true => "an OVA, which is a tar archive".into(),
            false => "a tar archive".into(),
        },
        advice: match disks.first() {
            Some(first) if disks.len() == 1 => {
                format!("unpack it with `tar -xf` and import {first}")
            }
            Some(_) => format!(
                "unpack it with `tar -xf` and import its disks: {}",
                disks.join(", ")
            ),
            None => advice.into(),
        },
    })
}
