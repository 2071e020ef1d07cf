//! From the making of a resource to its end: creating, listing, registering, re-wrapping, unregistering and
//! deleting it, and making a new catalog of what is there.

mod attachment_view;
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
#[cfg(test)]
mod scale;
mod search;
mod take_over;
mod unregister;
pub(crate) mod update;
mod view;

pub use attachment_view::AttachmentView;
pub use create::{
    CreateRequest, Created, DEFAULT_SECTOR_SIZE, create, create_for_upload, create_from,
};
pub use delete::delete;
pub use outline::{Outline, outline, outlines};
pub use rebuild_catalog::rebuild;
pub use rebuilt::{Rebuilt, RebuiltSet};
pub use register::{RegisterRequest, register};
pub use take_over::{TakenOver, take_over};
pub use unregister::{forget_departed, unregister};
pub use update::{NewKey, needs_other_dek, rewrap, update};
pub use view::{
    DiskView, EncryptionView, JobView, LayerView, SessionView, list, list_here, look, show,
};
