//! What is opened, claimed and started before a disk is served.

pub(crate) mod confine;
pub(crate) mod cpus;
pub(crate) mod data_plane;
pub(crate) mod find;
pub(crate) mod host_memory;
pub(crate) mod map_lock;
pub(crate) mod open;
pub(crate) mod program;
pub(crate) mod request;
pub(crate) mod setup;
pub(crate) mod socket;
pub(crate) mod take;

pub use confine::sandbox_rules;
pub use host_memory::memory_limit;
pub use request::AttachRequest;
pub use socket::{Socket, SocketAccess, SocketSource};
