//! A disk's layers: freezing them into snapshots and images, sharing them among disks, and getting
//! rid of those that are not needed.
//!
//! A layer that several resources have is a hard link in the directory of each: the file system
//! counts who has it, and each directory is complete by itself. Only the top layer of a disk is
//! written to; what is beneath it, and all layers of snapshots and images, stay what they are, but
//! for a merge, which fills blocks that a layer inherits with the very content that they inherit.

mod clone;
mod covered;
mod freeze;
mod image;
mod job;
mod links;
mod merge;
mod merge_frozen;
mod push;
mod revert;
mod run;
mod shed;

pub use clone::{CloneRequest, clone};
pub use freeze::{FreezeRequest, freeze_into};
pub use image::{ImageRequest, image_of_file, image_of_snapshot};
pub use job::{JobChange, begin_flatten, begin_merge, begin_rotation, change_job, layers_to_drop};
pub(super) use links::remove as remove_layer;
pub use merge::{Merge, Reach, delete_source, merge_all};
pub use revert::revert;
pub use run::{JobProgress, run_unattached};
pub use shed::shed;
