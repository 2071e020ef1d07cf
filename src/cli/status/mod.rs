//! `sealdisk status`: all of a host on one screen, and what will break on it.

mod asking;
mod command;
mod view;
mod watch;

pub use command::StatusArgs;
pub(super) use command::run;
