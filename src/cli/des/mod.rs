//! `sealdisk disk-encryption-set`.

mod command;
mod identity;
mod identity_options;
mod view;

pub use command::{DesArgs, run};
