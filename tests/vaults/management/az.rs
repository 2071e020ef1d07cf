//! Azure's own command line, unmodified, from pip.
//!
//! All of it takes minutes:
//!
//! ```sh
//! cargo nextest run --locked --run-ignored all -E 'test(management::az::)'
//! ```

use std::path::Path;
use std::process::Command;

use super::client::Managed;
use super::sdk::{SCRIPTS, check, command};
use crate::azure::sdk::sdks;

/// A script that runs az on an installation.
fn script(managed: &Managed, name: &str) -> Command {
    let mut command = command(managed, Path::new("bash"));
    command
        .arg(format!("{SCRIPTS}/{name}"))
        .env("AZ", sdks("az").join("bin/az"))
        .env("AZURE_CONFIG_DIR", managed.host.path("azure"))
        .env("SEALDISK", test_support::program());
    command
}

#[test]
fn az_does_what_the_book_says() {
    let managed = Managed::new();
    let mut command = script(&managed, "book.sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/azure.md"));
    check(command);
    assert_eq!(managed.host.json("disk list"), serde_json::json!([]));
}

#[test]
#[ignore = "takes minutes"]
fn azs_own_commands_go_through() {
    let managed = Managed::new();
    check(script(&managed, "az.sh"));
    assert_eq!(managed.host.json("disk list"), serde_json::json!([]));
}
