//! `sealdisk doctor`: whether this host has what disks need, and what to do where it has not.

mod check;
mod command;
mod files;
mod host;
mod mounts;
mod programs;
mod sandbox;
mod vaults;

pub use command::{DoctorArgs, run};
pub(super) use host::LEAST_KERNEL;
pub(super) use sandbox::tell_confinement;
