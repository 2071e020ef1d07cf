//! A virtqueue and its thread: chains in, used entries out.

pub(crate) mod chains;
pub(crate) mod command;
pub(crate) mod dirty_log;
pub(crate) mod no_space;
pub(crate) mod notifier;
pub(crate) mod polling;
pub(crate) mod pulse;
pub(crate) mod quiesce;
pub(crate) mod ring;
pub(crate) mod worker;
pub(crate) mod worker_handle;
