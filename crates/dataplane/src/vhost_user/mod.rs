//! The messages of a frontend (vhost-user), and what a driver reads of the device.

pub(crate) mod backend_channel;
pub(crate) mod config_space;
pub(crate) mod conversation;
pub(crate) mod guest_memory;
pub(crate) mod handler;
pub(crate) mod keeper;
pub(crate) mod messages;
pub(crate) mod restore;
mod vacancy;
