//! The process that serves one disk: its start and confinement, what the attach process tells it, its end.

pub(crate) mod calls;
pub(crate) mod confine;
pub(crate) mod copier;
pub(crate) mod hand_over;
mod last_resort;
pub(crate) mod map_scan;
mod open;
pub(crate) mod prepare;
pub(crate) mod quiesce;
pub(crate) mod serve;
mod signs;
pub(crate) mod vacant;
