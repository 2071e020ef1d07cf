//! A disk's plaintext without a guest: what import and decryption ask of the data path.

use std::fs::{File, OpenOptions};
use std::sync::Arc;

use crate::resource::error::DiskError;
use installation::envelope::{HeaderPayload, LayerRecord};
use volume::pipeline::PipelineError;
use volume::store::{LayerFile, StackFiles};
use volume::{Geometry, LayerMap, LayerPaths, LowerLayer, check_data_file};
use xts::DataUnit;

/// What the volume is told about a layer: its own size, which is the disk's for the top one only.
///
/// # Errors
/// [`DiskError::Pipeline`] for a data unit that the cipher has not.
pub fn geometry(header: &HeaderPayload, layer: &LayerRecord) -> Result<Geometry, DiskError> {
    let is_top = header.top().is_some_and(|top| top.id == layer.id);
    Ok(Geometry {
        disk: layer.origin,
        layer: layer.id,
        size: if is_top { header.size } else { layer.size },
        data_unit: DataUnit::try_from(u64::from(layer.data_unit)).map_err(PipelineError::from)?,
    })
}

/// A layer of a disk with its map file, opened to be read.
///
/// # Errors
/// [`DiskError::File`], [`DiskError::Pipeline`].
pub fn layer_map(
    header: &HeaderPayload,
    layer: &LayerRecord,
    paths: &LayerPaths,
) -> Result<LayerMap, DiskError> {
    let file = File::open(&paths.map).map_err(DiskError::file("open", &paths.map))?;
    Ok(LayerMap::new(geometry(header, layer)?, file))
}

/// The layers beneath the top, downwards; `paths` tells where each one's files are.
///
/// # Errors
/// [`DiskError`] when one is missing or is not what the header says.
pub fn lower_layers(
    header: &HeaderPayload,
    paths: impl Fn(&LayerRecord) -> LayerPaths,
) -> Result<Vec<Arc<LowerLayer>>, DiskError> {
    let open = |layer: &LayerRecord| {
        let map = layer_map(header, layer, &paths(layer))?;
        Ok(LowerLayer::open(map)?)
    };
    header.layers.iter().rev().skip(1).map(open).collect()
}

/// The map files of the layers beneath the top, downwards, opened to be read.
///
/// # Errors
/// [`DiskError::File`].
pub fn lower_maps(
    header: &HeaderPayload,
    paths: impl Fn(&LayerRecord) -> LayerPaths,
) -> Result<Vec<File>, DiskError> {
    let open = |layer: &LayerRecord| {
        let path = paths(layer).map;
        File::open(&path).map_err(DiskError::file("open", &path))
    };
    header.layers.iter().rev().skip(1).map(open).collect()
}

/// Opens all files of a disk, of which the top layer's data file is open already.
///
/// # Errors
/// [`DiskError::File`], [`DiskError::Pipeline`].
pub fn open_files(
    data: LayerFile,
    header: &HeaderPayload,
    paths: impl Fn(&LayerRecord) -> LayerPaths,
) -> Result<StackFiles, DiskError> {
    let top = header
        .top()
        .ok_or_else(|| DiskError::Argument("a disk has a layer".into()))?;
    let path = paths(top).map;
    let map = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(DiskError::file("open", &path))?;
    let map = LayerFile::from_file(map).map_err(PipelineError::from)?;
    let mut lower = Vec::new();
    for layer in header.layers.iter().rev().skip(1) {
        let file = LayerFile::open_to_read(&paths(layer).data).map_err(PipelineError::from)?;
        check_data_file(file.file(), &geometry(header, layer)?)?;
        lower.push(file);
    }
    Ok(StackFiles::new(data, map, lower))
}
