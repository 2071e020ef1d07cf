//! A file system that is full keeps nobody from taking access away, and clients are told what is the matter.

use serde_json::json;
use test_support::Host;
use test_support::small_fs::{Moved, SmallFs};

use super::blob::{DISKS, FOOTER, access};
use super::client::Managed;
use super::vaults::group;

const UP: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks/up";

#[test]
fn access_is_taken_away_though_the_file_system_is_full() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let host = Host::new();
    for disk in ["d", "e"] {
        host.ok(&format!("disk create {disk} --size 1MiB"));
    }
    let moved = Moved::to(&fs, host.state());
    let managed = Managed::on(host);
    managed.user("bob");
    let role = managed
        .host
        .json("role assignment create --assignee bob --role Reader");
    let client = managed.client(&managed.admin);
    group(&client);
    let upload = json!({"location": "local", "properties": {"creationData": {
        "createOption": "Upload", "uploadSizeBytes": (2 << 20) + FOOTER,
    }}});
    client.ok(&format!("PUT {UP}"), Some(&upload));
    let (d, e) = (format!("{DISKS}/d"), format!("{DISKS}/e"));
    let written = access(&client, UP, "Write", 3600);
    let [read, other] = [&d, &e].map(|disk| access(&client, disk, "Read", 3600));
    // Whoever has a URL does not take the room by which it is revoked.
    let refused = (409, "InsufficientStorage".to_owned());
    assert_eq!(written.put(0, &[1; 512]).refusal(), refused);
    assert_eq!(written.clear(0, 512).status, 201, "which needs none");

    let ballast = fs.fill();
    let new = json!({"location": "local"});
    let (status, code) = client.refused("PUT ~/resourcegroups/new", Some(&new));
    assert_eq!((status, code.as_str()), (507, "InsufficientStorage"));
    let mut grant = managed
        .host
        .command("disk grant-access d --duration-in-seconds 60");
    let said = grant.output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("no space left for the audit log"), "{said}");

    let denied = json!({"properties": {"networkAccessPolicy": "DenyAll"}});
    client.ok(&format!("PATCH {d}"), Some(&denied));
    assert_eq!(read.range("0-9").refusal().0, 403);
    managed.host.ok("disk revoke-access e");
    assert_eq!(other.range("0-9").refusal().0, 403);
    let (status, code) = client.refused(&format!("POST {UP}/endGetAccess"), None);
    assert_eq!((status, code.as_str()), (409, "InvalidVhd"));
    assert_eq!(written.put(0, &[1; 512]).refusal().0, 403);
    let name = role["name"].as_str().unwrap();
    let assignments = "~/providers/Microsoft.Authorization/roleAssignments";
    client.ok(&format!("DELETE {assignments}/{name}"), None);
    client.ok(&format!("DELETE {e}"), None);
    // Whoever is to do so logs in before.
    for _ in 0..3 {
        managed.token(&managed.admin, &managed.base());
    }

    drop(ballast);
    client.ok("PUT ~/resourcegroups/new", Some(&new));
    managed.host.ok("audit verify");
    let log = managed.host.text("audit list --last 1000 -o json");
    for operation in ["AccessRevoke", "RoleAssignmentDelete", "TokenIssue"] {
        assert!(log.contains(operation), "{operation}: {log}");
    }
    let Managed { host, served, .. } = managed;
    drop(served);
    drop(moved);
    drop(host);
}
