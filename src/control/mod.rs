//! What the commands do: the catalog, the vaults and the disks of one installation tied together.

mod context;
mod error;
pub mod files;
pub mod import;

pub use context::{Installation, default_state_dir};
pub use error::ControlError;
