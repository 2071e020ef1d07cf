//! Filling a new layer with the content of an image.

use std::sync::Arc;

use crate::import;
use crate::import::{Cancel, CopyError, PlaintextSink, SourceImage};
use crate::resource::error::DiskError;
use crate::resource::open::{layer_map, lower_layers, open_files};
use installation::envelope::{HeaderPayload, LayerRecord};
use keys::DekStack;
use volume::pipeline::{DiskIo, PipelineError};
use volume::store::LayerFile;
use volume::{LayerPaths, Volume};

/// Opens the files of a new layer for import. Nobody else knows of them yet, and if this process
/// dies they are removed, so the map needs no place that outlives it.
pub(crate) fn open_new(
    header: &HeaderPayload,
    paths: impl Fn(&LayerRecord) -> LayerPaths,
    deks: &DekStack,
) -> Result<DiskIo, DiskError> {
    let top = header
        .top()
        .ok_or_else(|| DiskError::Argument("a new disk has a layer".into()))?;
    let data = LayerFile::open(&paths(top).data).map_err(PipelineError::from)?;
    let files = open_files(data, header, &paths)?;
    let map = layer_map(header, top, &paths(top))?;
    let volume = Volume::open_private(map, lower_layers(header, &paths)?)?;
    Ok(DiskIo::open(Arc::new(volume), files, deks)?)
}

/// Copies an image into a new layer and makes it durable.
pub(crate) fn import_image(
    mut disk: DiskIo,
    source: &mut (dyn SourceImage + Send),
    size: u64,
    cancel: &Cancel,
    progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    import::copy(source, size, &mut disk, cancel, progress).map_err(|e| match e {
        CopyError::Source(e) => DiskError::Import(e),
        CopyError::Sink(e) => DiskError::Pipeline(e),
    })?;
    Ok(disk.flush()?)
}

impl PlaintextSink for DiskIo {
    type Error = PipelineError;

    fn write_behind(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), PipelineError> {
        Self::write_behind(self, offset, plaintext)
    }
}
