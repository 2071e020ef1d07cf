//! The default store: local files through io_uring.

mod bare;
mod entry;
mod registered;
mod retry;
mod ring;
#[cfg(test)]
mod tests;
mod watch;

pub use bare::{BareRing, ENABLE_RINGS, RING_OPERATIONS, RING_REGISTRATIONS, RingRule, restrict};
pub use ring::{UringStore, Wait};
pub use watch::WatchId;
