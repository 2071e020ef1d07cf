//! What is in the directory of a resource, and where.

use std::path::{Path, PathBuf};

use installation::envelope::{
    EnvelopeError, HeaderBuffer, HeaderFile, HeaderPayload, LayerRecord, UnverifiedHeader,
};
use volume::LayerPaths;

/// The name of the header in a disk's directory.
pub(crate) const HEADER: &str = "header";
/// The name of the file that is locked by whoever waits for the disk.
pub(crate) const AWAITED: &str = "awaited";
/// The name of the file that is locked by whoever makes, holds or deletes what is in the directory.
pub(crate) const LOCK: &str = "lock";

/// What the header in a disk's directory claims, unauthenticated.
pub(crate) fn header_claims(directory: &Path) -> Result<HeaderPayload, EnvelopeError> {
    Ok(unverified_header(directory, &mut HeaderBuffer::default())?.into_claims())
}

/// The header in a disk's directory, unauthenticated. `buffer` is for the next one too.
pub(crate) fn unverified_header(
    directory: &Path,
    buffer: &mut HeaderBuffer,
) -> Result<UnverifiedHeader, EnvelopeError> {
    HeaderFile::open(&directory.join(HEADER))?.read_with(buffer)
}

/// The directory in which `path` is.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn layer_paths(directory: &Path, layer: &LayerRecord) -> LayerPaths {
    let file = |extension: &str| -> PathBuf { directory.join(format!("{}.{extension}", layer.id)) };
    LayerPaths {
        data: file("data"),
        map: file("map"),
    }
}
