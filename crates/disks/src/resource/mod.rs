//! A disk, a snapshot or an image: its files, its header, its row of the catalog, and what whoever used it last
//! has left.

pub(crate) mod awaited;
pub(crate) mod directory;
pub(crate) mod directory_lock;
pub(crate) mod disk;
pub(crate) mod erase;
pub(crate) mod error;
pub(crate) mod extents;
pub(crate) mod failed_sync;
mod holder;
pub(crate) mod key_watch;
pub(crate) mod layer_files;
pub(crate) mod lookup;
pub(crate) mod offline;
pub(crate) mod open;
pub(crate) mod reconcile;
pub(crate) mod session;
pub(crate) mod shared;
mod size;
pub(crate) mod staging;
mod take_over;
pub(crate) mod unlock;
mod verdict;

pub use awaited::{Awaiting, Waiter};
pub use disk::Disk;
pub use error::DiskError;
pub use failed_sync::{as_in_runtime_map, synced_file};
pub use key_watch::KeyWatch;
pub use lookup::resources_named;
pub use open::{geometry, layer_map, lower_layers, lower_maps, open_files};
pub use reconcile::reconcile;
pub use session::{Left, Unflushed, begun, ended, log_other_boot};
pub use shared::may_be_shared;
pub use size::parse_size;
pub use staging::sweep_one;
