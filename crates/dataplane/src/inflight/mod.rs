//! Which requests are in flight, in memory that outlives this process.

mod error;
mod queue;
mod region;
#[cfg(test)]
mod tests;

pub use error::InflightError;
pub(crate) use queue::{InflightQueue, Resumed};
pub(crate) use region::InflightRegion;
