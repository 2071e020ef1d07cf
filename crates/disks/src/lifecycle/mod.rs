//! From the making of a resource to its end: creating, listing, registering, re-wrapping, unregistering and
//! deleting it, and making a new catalog of what is there.

mod complete_vaults;
pub(crate) mod create;
pub(crate) mod delete;
mod import_image;
pub(crate) mod new_resource;
mod outline;
mod rebuild_catalog;
mod rebuild_resources;
mod rebuilt;
mod register;
mod search;
mod unregister;
pub(crate) mod update;
mod view;

pub use create::{
    CreateRequest, Created, DEFAULT_SECTOR_SIZE, create, create_for_upload, create_from,
};
pub use delete::delete;
pub use outline::{Outline, is_used, outline, outlines};
pub use rebuild_catalog::rebuild;
pub use rebuilt::{Rebuilt, RebuiltSet};
pub use register::{RegisterRequest, register};
pub use unregister::{forget_departed, unregister};
pub use update::{NewKey, needs_other_dek, rewrap, update};
pub use view::{DiskView, EncryptionView, JobView, LayerView, SessionView, list, look, show};
