//! What the page shows.

mod audit_logs;
mod live_rows;
mod look;
mod shared;
mod store;
mod timeline;
mod views;

pub(crate) use live_rows::watch_disks;
pub(crate) use look::look_again_and_again;
pub(crate) use shared::{Part, Shared};
