//! `sealdisk keyvault key`.

mod attributes;
mod command;
mod import;
mod lifecycle;
mod what_if;

pub use command::{KeyArgs, run};
