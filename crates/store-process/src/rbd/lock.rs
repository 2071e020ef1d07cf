//! The lock of a layer: who has it may write to it.

use ceph::{CephError, Image};
use uuid::Uuid;

use super::told;
use crate::PlaceError;

/// Has the lock of a layer's image, which is taken from the client of the address `take_from`, if that is who has it.
///
/// # Errors
/// [`PlaceError::InUse`]: another client has it.
pub(super) fn lock(image: &Image, layer: Uuid, take_from: Option<&str>) -> Result<(), PlaceError> {
    let what = || format!("layer {layer}");
    let fail = |error: CephError| told(&error, what);
    // Who asks for a lock gets it from whoever hangs for half a minute. So nobody asks while another has it.
    match image.lock_owner().map_err(fail)? {
        Some(owner) if take_from == Some(owner.as_str()) => {
            image.take_lock_from(&owner).map_err(fail)
        }
        Some(owner) if owner != image.pool().cluster().address() => Err(PlaceError::InUse {
            what: what(),
            by: Some(owner),
        }),
        _ => image.lock().map_err(fail),
    }
}
