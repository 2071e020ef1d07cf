//! The atomics by which the threads of a volume meet. The crate `models` compiles the files that use them with loom's
//! in their place, which go through all that threads may see.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
