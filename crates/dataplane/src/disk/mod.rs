//! What all queues of a disk share: its files and volume, its key, its limits, its memory, and what is told of it.

pub(crate) mod full_storage;
pub(crate) mod key;
pub(crate) mod limiter;
pub(crate) mod log_limit;
pub(crate) mod memory;
pub(crate) mod ring_news;
pub(crate) mod rings;
pub(crate) mod shared;
pub(crate) mod sharing;
pub(crate) mod sync_alarm;
pub(crate) mod vacant;
