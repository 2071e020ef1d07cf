//! A disk's plaintext without a guest: what import and decryption ask of the data path.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskError};
use crate::cipher::DataUnit;
use crate::control::import::{self, Cancel, CopyError, PlaintextSink, SourceImage};
use crate::envelope::{Header, HeaderPayload, LayerRecord};
use crate::keys::Dek;
use crate::pipeline::{DiskIo, PipelineError};
use crate::store::{LayerFile, LayerFiles};
use crate::volume::{Geometry, LayerPaths, RuntimeMap, Volume, check_data_file};

/// What the volume is told about a layer.
///
/// # Errors
/// [`DiskError::Pipeline`] for a data unit that the cipher has not.
pub fn geometry(header: &HeaderPayload, layer: &LayerRecord) -> Result<Geometry, DiskError> {
    Ok(Geometry {
        disk: header.disk,
        layer: layer.id,
        size: header.size,
        data_unit: DataUnit::try_from(u64::from(layer.data_unit)).map_err(PipelineError::from)?,
    })
}

/// Opens the files of a new layer for import. Nobody else knows of them yet, and if this process
/// dies they are removed, so the map needs no place that outlives it.
pub(super) fn open_new(
    paths: &LayerPaths,
    geometry: Geometry,
    dek: &Dek,
) -> Result<DiskIo, DiskError> {
    let data = LayerFile::open(&paths.data).map_err(PipelineError::from)?;
    let files = open_files(data, paths)?;
    let volume = Volume::open_private(files.map.file(), geometry)?;
    Ok(DiskIo::open(Arc::new(volume), files, dek)?)
}

/// Opens a disk whose data were claimed, to be read. A runtime map that an attach left behind and
/// that counts has the writes which were completed and not flushed.
pub(super) fn open_existing(
    disk: &Disk,
    claim: LayerFile,
    header: &Header,
    dek: &Dek,
    runtime_map: &Path,
) -> Result<DiskIo, DiskError> {
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let geometry = geometry(header, top)?;
    check_data_file(claim.file(), &geometry)?;
    let files = open_files(claim, &disk.layer_paths(top))?;
    let volume = match RuntimeMap::find(runtime_map, &geometry, header.attach)? {
        Some(runtime) => Volume::open_runtime(files.map.file(), geometry, &runtime)?,
        None => Volume::open_private(files.map.file(), geometry)?,
    };
    Ok(DiskIo::open(Arc::new(volume), files, dek)?)
}

/// Copies an image into a new layer and makes it durable.
pub(super) fn import(
    mut disk: DiskIo,
    source: &mut dyn SourceImage,
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

    fn write_at(&mut self, offset: u64, plaintext: &[u8]) -> Result<(), PipelineError> {
        Self::write_at(self, offset, plaintext)
    }
}

/// Opens the map of a layer whose data file is open already.
///
/// # Errors
/// [`DiskError::File`].
pub fn open_files(data: LayerFile, paths: &LayerPaths) -> Result<LayerFiles, DiskError> {
    let map = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&paths.map)
        .map_err(DiskError::file("open", &paths.map))?;
    let map = LayerFile::from_file(map).map_err(PipelineError::from)?;
    Ok(LayerFiles::new(data, map))
}
