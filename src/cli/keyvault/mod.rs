//! `sealdisk keyvault`.

mod alarm_watch;
mod command;
mod connect;
mod due;
mod hsm;
mod lifecycle;
mod master;
mod network;
mod serve;
mod unlocked;
mod view;

pub use command::{KeyvaultArgs, run};
pub use serve::{Management, ServeArgs, run as run_serve};
