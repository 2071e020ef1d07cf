//! Envelopes: DEKs wrapped by vault keys, and the disk header that keeps them beside the
//! ciphertext.
//!
//! A layer's DEK is stored only as an [`Envelope`]: RSA-OAEP-256 under a version of a vault key. With double encryption
//! it is two keys in two envelopes, the outer one under the platform-managed key.
//! The [`Header`] of a disk, a snapshot or an image holds the envelopes of its layers, their check
//! values and its geometry, twice, in a [`HeaderFile`]. `docs/format.md` is the description for
//! readers without this program; the layout and the order of writes are defined in `slot.rs` and
//! `file.rs`.
//!
//! # What a header proves, and what not
//!
//! * Its CRC-32C tells a torn or damaged copy from a whole one. Anybody can compute it.
//! * Its HMAC-SHA256, under a key derived from the top layer's DEK, proves that whoever wrote the
//!   header held that DEK. So a size, a layer or a wrapped DEK cannot be exchanged by somebody who
//!   only has the files. It does not tell the newest header from an older genuine one: a copy of
//!   the file put back reads as what it was.
//! * Before the DEK is unwrapped nothing is proven, and the type says so: [`UnverifiedHeader`]
//!   lends its payload for listing and for finding the key to ask, and becomes a [`Header`] only
//!   through [`UnverifiedHeader::authenticate`].

mod error;
mod file;
mod payload;
mod session;
mod slot;
mod unwrap;
mod version_1;
mod wrap;

#[cfg(test)]
mod stack_tests;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
mod tests;

pub use error::EnvelopeError;
pub use file::{HEADER_FILE_LEN, HeaderBuffer, HeaderCopy, HeaderFile, HeaderLock, SLOT_OFFSETS};
pub use payload::{
    CloneSource, HeaderPayload, Job, JobKind, LayerRecord, MAX_DISK_SIZE, MAX_GONE, ResourceKind,
    USUAL_SECTOR_SIZE, Upload, check_disk_name, check_resource_name,
};
pub use session::{FailedSync, Session, SyncedFile};
pub use slot::{FORMAT_VERSION, Header, MAX_PAYLOAD_LEN, SLOT_LEN, UnverifiedHeader};
pub use unwrap::unwrap_one;
pub use wrap::{DekCheck, Envelope, HeaderAuthority, HeaderKey, wrap_dek};
