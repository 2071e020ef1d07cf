//! Errors of the volume: a torn, truncated or foreign file is refused and left as it was.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

use super::FailedSync;

/// What opening or making a layer can fail with.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// A size that no disk can have.
    #[error("a disk cannot have {size} bytes: {why}")]
    Size {
        /// The size asked for.
        size: u64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A file or directory operation failed.
    #[error("cannot {what} {path}: {source}{}", keys::read_only::advice(source))]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file system has no file of that length.
    #[error(
        "{} cannot have {len} bytes: a file on its file system has {most} bytes at most (ext4 with blocks of \
         4 KiB ends at 16 TiB); take a smaller size, or a --data-dir on another file system, XFS say",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The length asked for.
        len: u64,
        /// The longest that there is.
        most: u64,
    },
    /// A sync of a layer's file failed, so what was written to it before may be lost.
    #[error("cannot sync {path}: {source}")]
    Sync {
        /// Which of the layer's files it is.
        file: FailedSync,
        /// Where it is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An operation on an opened file failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A disk does not get smaller.
    #[error("the disk has {from} bytes already; it cannot be made smaller ({to} bytes)")]
    Shrink {
        /// Its size.
        from: u64,
        /// The size asked for.
        to: u64,
    },
    /// The data file is shorter than the disk.
    #[error(
        "the data file has {actual} bytes where the disk needs {expected}: it was truncated or \
         belongs to another disk; restore it from a backup"
    )]
    DataLength {
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        actual: u64,
    },
    /// The map file is shorter than its disk needs.
    #[error("the map file has {actual} bytes where the disk needs {expected}: it was truncated")]
    MapLength {
        /// Bytes it should have.
        expected: u64,
        /// Bytes it has.
        actual: u64,
    },
    /// The file does not start as a map does.
    #[error("the map file does not start with the signature of a Sealdisk block map")]
    MapForeign,
    /// A newer program wrote the map.
    #[error("the map file has format version {0}, this program knows version 1; use a newer one")]
    MapVersion(u32),
    /// The map is one of another disk or layer.
    #[error("the map file belongs to layer {found}, not to layer {expected}")]
    MapOfOther {
        /// The layer whose map was wanted.
        expected: Uuid,
        /// The layer that the file names.
        found: Uuid,
    },
    /// The map was made for a larger disk than its header says.
    #[error(
        "the map file was made for a disk of {made_for} bytes, the disk's header says {size}: it is \
         an old header; put the newest one back"
    )]
    MapOfLarger {
        /// Bytes of the disk that the map was made for.
        made_for: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// A part of the map does not match its checksum.
    #[error("sector {sector} of the map file is damaged (checksum): restore it from a backup")]
    MapDamaged {
        /// 512-byte sector of the map, counted after its header.
        sector: u64,
    },
    /// Another version of this program left a runtime map behind that counts.
    #[error(
        "{path} has format version {found}: a daemon of another version died and left what it had \
         not flushed there; attach and detach the disk with that version first"
    )]
    RuntimeVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u8,
    },
    /// Another process may still serve the disk, or what it was writing when it died was not finished.
    #[error(
        "writes into the data file that the runtime map names are not finished: end the process that serves the \
         disk, and attach it again"
    )]
    Unfinished,
    /// A layer beneath another is larger than it.
    #[error("the layer {lower} has {size} bytes, more than the layer above it ({above})")]
    LowerIsLarger {
        /// The layer beneath.
        lower: Uuid,
        /// Its size.
        size: u64,
        /// The size of the one above.
        above: u64,
    },
    /// The caller has cancelled it.
    #[error("going through the maps was stopped")]
    Stopped,
    /// Too many layers.
    #[error("a disk of {layers} layers; {most} are possible: flatten it first", most = keys::units::MAX_LAYERS)]
    TooManyLayers {
        /// How many there are.
        layers: usize,
    },
    /// The directory for the runtime map is not on tmpfs.
    #[error(
        "{path} is not on tmpfs: the map of unflushed writes must vanish with the power, as they \
         do; choose a directory on tmpfs with --runtime-dir"
    )]
    NotTmpfs {
        /// The file that was to be made.
        path: PathBuf,
    },
}

impl VolumeError {
    /// For `map_err` of the sync of a layer's file.
    pub fn sync(file: FailedSync, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Sync {
            file,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the host has no space left for what was tried.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
