//! The block map of one layer: which state each block has, which of it is durable, and where space is free.

mod block_map;
mod changing;
mod dirty;
mod load;
mod strays;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use block_map::{BlockMap, Content, MapFile, Run};
pub(crate) use load::is_sound;
