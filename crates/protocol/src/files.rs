//! The files of a disk, which travel as descriptors.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use keys::units::MAX_LAYERS;
use volume::RuntimeMap;
use volume::store::{LayerFile, StackFiles};

use crate::ProtocolError;

/// Descriptors of a disk at most.
pub(crate) const MAX_FILES: usize = 1 + 2 * MAX_LAYERS;

/// What is open of a disk. As descriptors they go in the order of the fields.
#[derive(Debug)]
pub struct DiskFiles {
    /// The data of all layers and the map of the top one.
    pub files: StackFiles,
    /// The runtime map of the top layer.
    pub runtime: RuntimeMap,
    /// The maps of the layers beneath it, downwards.
    pub lower_maps: Vec<File>,
}

impl DiskFiles {
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let StackFiles {
            data, map, lower, ..
        } = &self.files;
        [
            data.file().as_raw_fd(),
            map.file().as_raw_fd(),
            self.runtime.as_raw_fd(),
        ]
        .into_iter()
        .chain(lower.iter().map(|data| data.file().as_raw_fd()))
        .chain(self.lower_maps.iter().map(AsRawFd::as_raw_fd))
        .collect()
    }

    /// Of a disk of `layers` layers.
    pub(crate) fn from_descriptors(files: Vec<File>, layers: usize) -> Result<Self, ProtocolError> {
        let count = files.len();
        let refuse = || ProtocolError::Cargo(format!("{count} descriptors for {layers} layers"));
        if layers == 0 || count != 1 + 2 * layers {
            return Err(refuse());
        }
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or_else(refuse);
        let data = LayerFile::from_file(next()?)?;
        let map = LayerFile::from_file(next()?)?;
        let runtime = RuntimeMap::from_file(next()?);
        let lower = (1..layers)
            .map(|_| Ok(LayerFile::from_file(next()?)?))
            .collect::<Result<_, ProtocolError>>()?;
        Ok(Self {
            files: StackFiles::new(data, map, lower),
            runtime,
            lower_maps: files.collect(),
        })
    }
}
