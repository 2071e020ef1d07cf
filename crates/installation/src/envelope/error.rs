//! What can be wrong with an envelope or a disk header.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use keys::KeyError;
use vault::VaultError;

/// Errors of envelopes and header files. Where a file is meant, it was left as it was found.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    /// A system call on the header file failed.
    #[error("cannot {call} {}: {source}{}", path.display(), keys::read_only::advice(source))]
    Io {
        /// What was attempted.
        call: &'static str,
        /// The header file, or its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the header's lock for longer than an update takes.
    #[error("{} is locked by another process; try again when that command has ended", path.display())]
    Busy {
        /// The header file.
        path: PathBuf,
    },
    /// The file has not the length of a header.
    #[error(
        "{} is {actual} bytes long, a disk header has {expected}: it is truncated or not a header; \
         restore it from a backup", path.display()
    )]
    Length {
        /// The header file.
        path: PathBuf,
        /// Bytes that a header file has.
        expected: u64,
        /// Bytes that were found.
        actual: u64,
    },
    /// Neither copy starts with the magic bytes.
    #[error("{} is not a Sealdisk header (no magic bytes); check the path", path.display())]
    Foreign {
        /// The header file.
        path: PathBuf,
    },
    /// Both copies are zeros.
    #[error("{} is erased (all zeros): its disk was deleted", path.display())]
    Erased {
        /// The header file.
        path: PathBuf,
    },
    /// Neither copy has a correct checksum.
    #[error(
        "both header copies in {} are damaged (wrong checksum); restore the file from a backup",
        path.display()
    )]
    BothTorn {
        /// The header file.
        path: PathBuf,
    },
    /// A whole copy of a later format.
    #[error(
        "{} has header format {found}, this program reads up to {supported}; use a newer sealdisk",
        path.display()
    )]
    NewerFormat {
        /// The header file.
        path: PathBuf,
        /// The copy's format version.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// A copy with a correct checksum and content that no version of this program writes.
    #[error("{} holds an unusable header: {reason}; it was not written by sealdisk", path.display())]
    Malformed {
        /// The header file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The payload that was to be written does not fit, or breaks a rule of the format.
    #[error("the header of disk {name} cannot be written: {reason}")]
    Unwritable {
        /// The disk.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A DEK was unwrapped and is not the layer's.
    #[error(
        "the key unwrapped for layer {layer} is not the one its data is encrypted with; the header \
         was altered or belongs to another disk"
    )]
    WrongDek {
        /// The layer.
        layer: uuid::Uuid,
    },
    /// The header's authentication code does not match its content.
    #[error(
        "the header of disk {name} fails authentication: it was altered after sealdisk wrote it; \
         restore it from a backup"
    )]
    Unauthentic {
        /// The disk's name as the altered header has it.
        name: String,
    },
    /// An envelope was given to a vault that did not make it.
    #[error("the key of this envelope is in {wanted}, not in {given}")]
    OtherVault {
        /// The vault that the envelope names.
        wanted: String,
        /// The vault that was asked.
        given: String,
    },
    /// The vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Key memory or key material failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}
