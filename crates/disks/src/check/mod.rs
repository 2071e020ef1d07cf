//! Looking for damage of a disk and for space that it holds for nothing, and repairing what is safe.

mod disk;
mod layers;
mod lost;
mod repair_sync;
mod report;

pub use disk::check;
pub use report::{ByteRange, CheckReport, Problem, ProblemKind};
