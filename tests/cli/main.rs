//! The program as its operators see it: what works, what is refused in one line, what is on disk afterwards.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alarms;
mod attached;
mod catalog_server;
mod cli_audit;
mod cli_disk;
mod cli_disk_attached;
mod cli_disk_refusals;
mod cli_doctor;
mod cli_keys;
mod cli_keyvault;
mod cli_layers;
mod cli_list;
mod cli_output;
mod cli_usage;
mod contrib;
mod disk_check;
mod disk_check_layers;
mod disk_cut_off;
mod disk_export;
mod disk_import;
mod disk_sockets;
mod double;
mod fips;
mod format;
mod key_interop;
mod key_withdrawn;
mod layer_keys;
mod many_rows;
mod my_vault;
mod package;
mod reference;
mod rotation;
mod shared;
mod tutorial;
mod units;
mod without_systemd;
