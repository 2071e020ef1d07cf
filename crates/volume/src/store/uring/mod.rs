//! The default store: local files through io_uring.

mod bare;
mod entry;
mod events;
mod registered;
mod retry;
mod ring;
#[cfg(test)]
mod tests;
mod watch;

pub use bare::{BareRing, ENABLE_RINGS, RING_OPERATIONS, RING_REGISTRATIONS, RingRule, restrict};
pub(super) use entry::verb;
pub(super) use events::{Entered, EventRing};
pub use ring::UringStore;
pub(super) use ring::is_batch;
