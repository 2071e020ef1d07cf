//! The layers of a disk, open.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ceph::{CephError, Image, Pool};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::lock::lock;
use super::names::{self, DATA_AT, MAP_AT};
use super::told;
use crate::PlaceError;
use crate::messages::LayerOf;

/// Bytes of a map that are read at a time.
const PIECE: u64 = 1 << 20;

/// The layers of a disk, from the top down.
#[derive(Default)]
pub(super) struct Stack {
    pub(super) layers: Vec<OpenLayer>,
    /// Nothing is written to.
    pub(super) read_only: bool,
}

/// One of them.
#[derive(Clone)]
pub(super) struct OpenLayer {
    pub(super) image: Arc<Image>,
    pub(super) of: LayerOf,
}

impl Stack {
    /// Opens layers, the top one with its lock unless nothing is to be written to. The lock is taken from the client of the
    /// address `take_from`, if that is who has it. What `before` has open in the same way stays open.
    ///
    /// # Errors
    /// [`PlaceError::InUse`]: somebody else has the lock.
    pub(super) fn open(
        pool: &Arc<Pool>,
        layers: &[LayerOf],
        read_only: bool,
        take_from: Option<&str>,
        before: &Self,
    ) -> Result<Self, PlaceError> {
        let mut opened = Vec::new();
        for (depth, of) in layers.iter().enumerate() {
            let name = names::image(of.layer);
            let fail = |error: CephError| told(&error, || format!("layer {}", of.layer));
            let writes = depth == 0 && !read_only;
            let kept = before.layers.iter().enumerate().find(|(was, layer)| {
                let wrote = *was == 0 && !before.read_only;
                layer.of.layer == of.layer && wrote == writes
            });
            let image = match kept {
                Some((_, layer)) => layer.image.clone(),
                None if writes => {
                    let image = Image::open(pool, &name).map_err(fail)?;
                    lock(&image, of.layer, take_from)?;
                    Arc::new(image)
                }
                None => Arc::new(Image::open_to_read(pool, &name).map_err(fail)?),
            };
            let (size, least) = (
                image.size().map_err(fail)?,
                DATA_AT.saturating_add(of.data_len),
            );
            if size < least || of.map_len > DATA_AT {
                return Err(PlaceError::Failed(format!(
                    "the image {name} has {size} bytes, and the layer needs {least}"
                )));
            }
            opened.push(OpenLayer { image, of: *of });
        }
        Ok(Self {
            layers: opened,
            read_only,
        })
    }

    /// The maps of all layers, in memory.
    ///
    /// # Errors
    /// [`PlaceError::Failed`].
    pub(super) fn maps(&self) -> Result<Vec<File>, PlaceError> {
        self.layers.iter().map(OpenLayer::map).collect()
    }

    /// The same for another thread.
    pub(super) fn share(&self) -> Self {
        Self {
            layers: self.layers.clone(),
            read_only: self.read_only,
        }
    }
}

impl OpenLayer {
    /// The map in a file in memory, which has holes where the image has nothing.
    fn map(&self) -> Result<File, PlaceError> {
        let Self { image, of } = self;
        let fail = |error: CephError| told(&error, || format!("layer {}", of.layer));
        let failed = |error: std::io::Error| {
            PlaceError::Failed(format!("cannot make memory for a map: {error}"))
        };
        let file = memory_file(of.map_len).map_err(failed)?;
        let mut buffer = vec![0; PIECE as usize];
        for extent in image.extents(MAP_AT, of.map_len).map_err(fail)? {
            let mut at = extent.start;
            let end = extent.end.min(of.map_len);
            while at < end {
                let len = (end - at).min(PIECE);
                let bytes = &mut buffer[..len as usize];
                image.read(MAP_AT + at, bytes).map_err(fail)?;
                file.write_all_at(bytes, at).map_err(failed)?;
                at += len;
            }
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|error| failed(error.into()))?;
        Ok(file)
    }
}

fn memory_file(len: u64) -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("sealdisk-map", flags)?;
    ftruncate(&file, len)?;
    Ok(file.into())
}
