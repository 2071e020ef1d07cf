//! The atomics by which both sides meet. The crate `models` compiles the file that uses them with loom's in their place.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
