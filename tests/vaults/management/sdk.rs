//! Azure's management SDKs for Python and JavaScript: the documented workflow, with access policies and with
//! roles, and the refusals.

use std::path::Path;
use std::process::Command;

use super::client::Managed;
use crate::azure::sdk::{beside_modules, sdks};

pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vaults/management");

/// A command that finds the installation, and what is Azure's in it.
pub fn command(managed: &Managed, program: &Path) -> Command {
    let mut command = Command::new(program);
    let subscription = managed.served.ready["subscriptionId"].as_str().unwrap();
    managed.host.prepare(&mut command);
    command
        .env("PYTHONPATH", format!("{SCRIPTS}/resolve"))
        .env("REQUESTS_CA_BUNDLE", &managed.served.ca_file)
        .env("NODE_EXTRA_CA_CERTS", &managed.served.ca_file)
        .env("NO_PROXY", "*")
        .env("BASE", managed.base())
        .env("TENANT", managed.tenant())
        .env("SUBSCRIPTION", subscription)
        .env("CLIENT_ID", &managed.admin.client_id)
        .env("OBJECT_ID", &managed.admin.object_id)
        .env("SECRET", &managed.admin.secret);
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "MSI_ENDPOINT"] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end, which has to be a good one.
pub fn check(mut command: Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// As an app on App Service asks for tokens.
fn with_managed_identity(managed: &Managed, command: &mut Command) {
    command
        .env("IDENTITY_ENDPOINT", format!("{}/msi/token", managed.base()))
        .env("IDENTITY_HEADER", &managed.admin.secret);
}

#[test]
fn python_goes_through_the_documented_workflow() {
    let managed = Managed::new();
    let mut command = command(&managed, &sdks("python").join("bin/python"));
    with_managed_identity(&managed, &mut command);
    command.arg(format!("{SCRIPTS}/sdk.py"));
    check(command);
    assert_eq!(managed.host.json("disk list"), serde_json::json!([]));
}

#[test]
#[ignore = "installs Azure's SDKs for JavaScript"]
fn javascript_goes_through_the_documented_workflow() {
    let managed = Managed::new();
    let dir = sdks("management-js");
    let script = beside_modules(&dir, Path::new(&format!("{SCRIPTS}/js/workflow.mjs")));
    let mut command = command(&managed, Path::new("node"));
    with_managed_identity(&managed, &mut command);
    command.arg(script);
    check(command);
    assert_eq!(managed.host.json("disk list"), serde_json::json!([]));
}
