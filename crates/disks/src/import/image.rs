//! What the formats of images have in common.

use std::ops::Range;

use super::error::ImportError;

/// An image's content as a guest would see it.
pub trait SourceImage {
    /// Bytes of the disk in the image.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`; the range lies within [`SourceImage::size`].
    ///
    /// # Errors
    /// [`ImportError`].
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ImportError>;

    /// The first range at or after `offset` that may hold something other than zeros.
    ///
    /// # Errors
    /// [`ImportError`].
    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>, ImportError>;

    /// Tells that a range, in which [`SourceImage::next_data`] found data, is read soon, so that its
    /// storage can begin.
    fn will_read(&mut self, _range: Range<u64>) {}
}
