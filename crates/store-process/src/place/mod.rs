//! A place where disks, snapshots and images are that are not files of a host.
//!
//! What a directory of files does by names, hard links and renames is said here by what it is for: what there is, whose
//! header says what, who has which layer. Each change is made as a whole or not at all, and is durable when it returns.
//! A change that depends on what was read names that, and is refused ([`PlaceError::Changed`]) when it is something else
//! by now.
//!
//! Nothing here knows what is in a header, an entry or a claim: they are texts and bytes of whoever makes disks.

mod commands;
mod error;
mod memory;
#[cfg(test)]
pub(crate) mod tests;

use uuid::Uuid;

pub(crate) use commands::{Asked, PlaceAnswer, PlaceCommand, RemotePlace, obey};
pub use error::PlaceError;
pub use memory::MemoryPlace;

/// Bytes of a header at most.
pub const MAX_HEADER_LEN: usize = 64 << 10;
/// Bytes of an entry or a claim at most.
pub const MAX_TEXT_LEN: usize = 2 << 10;
/// Entries that are told at a time.
pub const MAX_LISTED: usize = 32;

/// A layer that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewLayer<'a> {
    /// Its id.
    pub layer: Uuid,
    /// The resource that has it first.
    pub holder: Uuid,
    /// How its map begins; the rest of it is zeros.
    pub map_start: &'a [u8],
    /// Bytes of its ciphertext, none of which is there yet.
    pub data_len: u64,
}

/// A place of resources.
///
/// Each resource has an entry, which says what it is, and while it is being made by whom; a header, which counts for all
/// else; and a claim, which says who has it in use. The entry comes first and goes last, so that whatever was half made is
/// found by it.
pub trait Place {
    /// Entries of resources behind `after` in the order of their ids, [`MAX_LISTED`] at most; none when there are no more.
    ///
    /// # Errors
    /// [`PlaceError`].
    fn resources(&self, after: Option<Uuid>) -> Result<Vec<(Uuid, String)>, PlaceError>;

    /// Gives a resource an entry, in place of the one that is named; `None` where it has none, or is to have none.
    ///
    /// # Errors
    /// [`PlaceError::Changed`].
    fn set_entry(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError>;

    /// The header of a resource.
    ///
    /// # Errors
    /// [`PlaceError`].
    fn header(&self, resource: Uuid) -> Result<Option<Vec<u8>>, PlaceError>;

    /// Gives a resource its first header.
    ///
    /// # Errors
    /// [`PlaceError::There`].
    fn create_header(&self, resource: Uuid, header: &[u8]) -> Result<(), PlaceError>;

    /// Gives a resource another header in place of the one that was read, of the same length.
    ///
    /// # Errors
    /// [`PlaceError::Changed`], [`PlaceError::Missing`].
    fn replace_header(&self, resource: Uuid, from: &[u8], to: &[u8]) -> Result<(), PlaceError>;

    /// Removes a header, with the claim. What was there is overwritten first, as far as the storage does that.
    ///
    /// # Errors
    /// [`PlaceError`]; it is none that there is no header.
    fn remove_header(&self, resource: Uuid) -> Result<(), PlaceError>;

    /// Who has a resource in use, as they have said.
    ///
    /// # Errors
    /// [`PlaceError`].
    fn claim(&self, resource: Uuid) -> Result<Option<String>, PlaceError>;

    /// Says who has a resource in use, in place of what was read.
    ///
    /// # Errors
    /// [`PlaceError::Changed`], [`PlaceError::Missing`] when it has no header.
    fn set_claim(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError>;

    /// Makes an empty layer.
    ///
    /// # Errors
    /// [`PlaceError::There`]. What is half made goes by [`Place::let_go`].
    fn create_layer(&self, new: NewLayer<'_>) -> Result<(), PlaceError>;

    /// Makes a layer that nobody has open long enough for so many bytes of ciphertext. One that is longer stays so.
    ///
    /// # Errors
    /// [`PlaceError::Missing`], [`PlaceError::InUse`].
    fn grow_layer(&self, layer: Uuid, data_len: u64) -> Result<(), PlaceError>;

    /// Has one more resource have a layer. It may have it already.
    ///
    /// # Errors
    /// [`PlaceError::Missing`], also when the last one has just let go of it.
    fn hold(&self, layer: Uuid, holder: Uuid) -> Result<(), PlaceError>;

    /// Has a resource have a layer no more; whether nobody has it then, so that it is gone. A layer that is not there is
    /// gone.
    ///
    /// # Errors
    /// [`PlaceError::InUse`]: nobody has it any more, and it is not gone, since somebody has it open. It goes when this is
    /// called again.
    fn let_go(&self, layer: Uuid, holder: Uuid) -> Result<bool, PlaceError>;

    /// Which resources have a layer; none of one that is not there.
    ///
    /// # Errors
    /// [`PlaceError`].
    fn holders(&self, layer: Uuid) -> Result<Vec<Uuid>, PlaceError>;
}
