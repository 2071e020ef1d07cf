//! Reading a disk that no guest uses.

use std::path::Path;
use std::sync::Arc;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::open::{geometry, layer_map, lower_layers, open_files};
use crate::resource::session::Unflushed;
use installation::envelope::{Header, LayerRecord};
use keys::DekStack;
use volume::pipeline::DiskIo;
use volume::store::{LayerFile, StackFiles};
use volume::{Volume, check_data_file};

/// Opens a disk whose data were claimed, to be read. A runtime map that an attach left behind has the
/// writes which were completed and not flushed.
pub(crate) fn open_existing(
    disk: &Disk,
    claim: LayerFile,
    header: &Header,
    deks: &DekStack,
    runtime_dir: &Path,
) -> Result<DiskIo, DiskError> {
    let (volume, files) = open_volume(disk, claim, header, runtime_dir)?;
    Ok(DiskIo::open(Arc::new(volume), files, deks)?)
}

/// As [`open_existing`] without any key: only what its maps say can be asked.
pub(crate) fn open_maps(
    disk: &Disk,
    claim: LayerFile,
    header: &Header,
    runtime_dir: &Path,
) -> Result<DiskIo, DiskError> {
    let (volume, files) = open_volume(disk, claim, header, runtime_dir)?;
    Ok(DiskIo::open_to_flush(Arc::new(volume), files)?)
}

fn open_volume(
    disk: &Disk,
    claim: LayerFile,
    header: &Header,
    runtime_dir: &Path,
) -> Result<(Volume, StackFiles), DiskError> {
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let paths = |layer: &LayerRecord| disk.layer_paths(layer);
    let geometry = geometry(header, top)?;
    disk.check_claim(header, &claim)?;
    check_data_file(claim.file(), &geometry)?;
    let files = open_files(claim, header, paths)?;
    let (map, lower) = (
        layer_map(header, top, &paths(top))?,
        lower_layers(header, paths)?,
    );
    let left = disk.left(header, runtime_dir, Unflushed::Needed)?;
    let volume = match left.map() {
        Some(runtime) => Volume::open_runtime(map, lower, &runtime)?,
        None => Volume::open_private(map, lower)?,
    };
    Ok((volume, files))
}
