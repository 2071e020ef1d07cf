//! Headers of requests for the bytes of a disk.

use super::error::BlobError;
use server::Head;

/// A header that does not contradict itself.
///
/// # Errors
/// 400 for one that does.
pub fn only<'a>(head: &'a Head, name: &str) -> Result<Option<&'a str>, BlobError> {
    head.only(name).map_err(|_| BlobError::header(name))
}
