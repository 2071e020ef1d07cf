//! The default store: local files through io_uring.

mod entry;
mod registered;
mod retry;
mod ring;
#[cfg(test)]
mod tests;
mod watch;

pub use ring::{UringStore, Wait};
pub use watch::WatchId;
