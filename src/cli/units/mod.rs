//! `sealdisk enable` and `disable`: the units of systemd that attach a disk, so that nobody edits units by hand.

mod change;
mod command;
mod drop_in;
mod files;
mod needs;
mod systemctl;

pub use command::{DisableArgs, EnableArgs};
pub(super) use command::{disable, enable};
pub(super) use needs::note_network;
