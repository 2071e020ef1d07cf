//! What is called how on a cluster, and where in an image what is.

use uuid::Uuid;

/// Where in the image of a layer its map begins.
pub const MAP_AT: u64 = 0;
/// Where its ciphertext begins, whatever its size: the map of the largest disk ends before.
pub const DATA_AT: u64 = 8 << 30;

/// The object with the entries of resources.
pub(super) const RESOURCES: &str = "sealdisk.resources";
/// The key of the claim, in the object of a header.
pub(super) const CLAIM: &str = "claim";
/// The key that says whether a layer is there to be had, in the object of its holders.
pub(super) const STATE: &str = "state";
/// It is.
pub(super) const LIVE: &[u8] = b"live";
/// Nobody has it any more, and it is being removed.
pub(super) const DYING: &[u8] = b"dying";
/// How the keys of holders begin.
pub(super) const HOLDER: &str = "holder.";

/// The image of a layer.
pub(super) fn image(layer: Uuid) -> String {
    format!("sealdisk.layer.{layer}")
}

/// The object that says who has a layer.
pub(super) fn holders(layer: Uuid) -> String {
    format!("sealdisk.holders.{layer}")
}

/// The key of a holder.
pub(super) fn holder(resource: Uuid) -> String {
    format!("{HOLDER}{resource}")
}

/// The object with the header of a resource.
pub(super) fn header(resource: Uuid) -> String {
    format!("sealdisk.header.{resource}")
}
