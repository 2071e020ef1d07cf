//! The launcher of confined processes: see the documentation of the crate.

mod burial;
mod client;
mod message;
mod orphan;
mod program;
mod server;
mod trust;

pub use burial::bury_strangers;
pub use client::{Launch, Launcher};
pub use message::LAUNCHER_FD;
pub use server::run_launcher;
