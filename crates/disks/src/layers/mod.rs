//! A disk's layers: making snapshots and images of them, sharing them among disks, and dropping those that
//! are not needed.
//!
//! A layer that several resources have is a hard link in the directory of each: the file system
//! counts who has it, and each directory is complete by itself. Only the top layer of a disk is
//! written to; what is beneath it, and all layers of snapshots and images, are read-only, but for a
//! merge and the making of a snapshot that is a deep copy, which fill blocks that a layer inherits with
//! the very content that they inherit.
//!
//! [`LayerOp`] has every change of a disk's layers.

mod clone;
mod clone_disk;
mod drop_layers;
mod freeze;
mod grow;
mod hold;
mod image;
mod job;
mod merge;
mod merge_frozen;
mod op;
mod push;
mod revert;
mod run;
mod snapshot;
mod swap_volume;
mod verify_covered;

pub use clone::{CloneRequest, DeepCopyRequest, clone, deep_copy};
pub use image::{ImageRequest, image_of_file, image_of_snapshot};
pub use job::{JobChange, layers_to_drop};
pub use merge::{delete_source, merge_all};
pub use op::{Applied, ChangeLayers, LayerOp};
pub use run::{JobProgress, run_unattached};
pub use snapshot::SnapshotRequest;
pub use swap_volume::{ClaimedElsewhere, NewLayers, SwapVolume, Unattached};
