//! The last check before a layer is dropped: the layers above it have all of its content.

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::open::{layer_map, lower_layers};
use installation::envelope::HeaderPayload;
use volume::Volume;

/// Checks by the durable maps that nothing is missing without the layers that `goes` says. Whoever
/// copied has made it durable by now; what a guest writes meanwhile only makes less be needed.
///
/// # Errors
/// [`DiskError::Needed`], and what is wrong with a map.
pub(super) fn verify_covered(
    disk: &Disk,
    header: &HeaderPayload,
    goes: impl Fn(usize) -> bool,
) -> Result<(), DiskError> {
    let paths = |layer: &_| disk.layer_paths(layer);
    for (at, layer) in header.layers.iter().enumerate() {
        let beneath = (0..at).rev().take_while(|below| goes(*below)).count();
        if goes(at) || beneath == 0 {
            continue;
        }
        // This layer as the top of what is beneath it.
        let part = HeaderPayload {
            size: layer.size,
            layers: header.layers[..=at].to_vec(),
            ..header.clone()
        };
        let map = layer_map(&part, layer, &paths(layer))?;
        let volume = Volume::open_private(map, lower_layers(&part, paths)?)?;
        if !volume.has_all_of(beneath)? {
            return Err(DiskError::Needed {
                name: disk.name().into(),
                layer: header.layers[at - 1].id,
            });
        }
    }
    Ok(())
}
