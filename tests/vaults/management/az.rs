//! Azure's own command line, unmodified, from pip: the documented workflow, with access policies and with
//! roles, and the refusals. It takes minutes:
//!
//! ```sh
//! cargo nextest run --locked --run-ignored all -E 'test(management::az::)'
//! ```

use std::process::Command;

use super::client::Managed;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vaults");

#[test]
#[ignore = "installs Azure's command line, and runs it for minutes"]
fn azs_own_commands_go_through() {
    let managed = Managed::new();
    let installed = Command::new(format!("{SCRIPTS}/azure/sdks.sh"))
        .arg("az")
        .output()
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let venv = String::from_utf8(installed.stdout).unwrap();
    let output = Command::new("bash")
        .arg(format!("{SCRIPTS}/management/az.sh"))
        .env("AZ", format!("{}/bin/az", venv.trim()))
        .env("AZURE_CONFIG_DIR", managed.host.path("azure"))
        .env("PYTHONPATH", format!("{SCRIPTS}/management/resolve"))
        .env("REQUESTS_CA_BUNDLE", &managed.served.ca_file)
        .env("BASE", managed.base())
        .env("PORT", managed.served.address.port().to_string())
        .env("TENANT", managed.tenant())
        .env("CLIENT_ID", &managed.admin.client_id)
        .env("SECRET", &managed.admin.secret)
        .env("SEALDISK", test_support::program())
        .env("SEALDISK_STATE_DIR", managed.host.state())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(managed.host.json("disk list"), serde_json::json!([]));
}
