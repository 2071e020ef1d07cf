//! `sealdisk disk`.

mod check;
mod command;
mod create;
mod export;
mod layers;
mod moving;
mod show;
mod takeover;
mod update;
mod wait;

pub use command::{DiskArgs, run};
pub use layers::{change, with_changes};
pub use wait::wait_for_job;
