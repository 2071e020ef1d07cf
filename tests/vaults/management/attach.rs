//! What a host needs of a resource of the management API: its id is enough, and the answer says who has it.

use serde_json::{Value, json};
use test_support::Host;

use super::client::Managed;
use super::vaults::{SET, group, set_body, vault_with_key};

const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";

fn disk() -> Value {
    json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }})
}

#[test]
fn a_disk_is_attached_by_its_id() {
    let managed = Managed::on(Host::that_attaches());
    let client = managed.client(&managed.admin);
    group(&client);
    let line = &format!("PUT {COMPUTE}/disks/Data-1");
    let made = client.ok(line, Some(&disk()));
    assert_eq!(made.get("managedBy"), None);
    let id = made["id"].as_str().unwrap();
    let get = &format!("GET {COMPUTE}/disks/data-1");
    let daemon = managed
        .host
        .attach(&id.to_uppercase().replacen('/', "//", 2));
    let attached = client.ok(get, None);
    assert_eq!(attached["properties"]["diskState"], "Attached");
    let host = attached["managedBy"].as_str().unwrap();
    let hosts = format!("{}/providers/Sealdisk/hosts/", managed.subscription());
    assert!(
        host.starts_with(&hosts) && host.len() > hosts.len(),
        "{host}"
    );
    assert!(attached["properties"]["LastOwnershipUpdateTime"].is_string());
    // What is read only is passed over when it is sent back.
    client.ok(line, Some(&attached));
    daemon.stop();
    let detached = client.ok(get, None);
    assert_eq!(detached["properties"]["diskState"], "Unattached");
    assert_eq!(detached.get("managedBy"), None);
    let by_option = managed.host.refused(&format!(
        "attach --blk-file {id}x --socket-path {}",
        managed.host.file("s")
    ));
    assert!(by_option.contains("Data-1x"), "{by_option}");
}

#[test]
fn commands_take_ids_for_names() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let host = &managed.host;
    group(&client);
    let d = client.ok(&format!("PUT {COMPUTE}/disks/D"), Some(&disk()));
    let d = d["id"].as_str().unwrap();
    assert_eq!(host.json(&format!("disk show {d}"))["name"], "D");
    assert_eq!(host.json(&format!("disk show --name {d}"))["name"], "D");
    assert_eq!(host.json(&format!("disk show -n={d}"))["name"], "D");
    let s = host.json(&format!("snapshot create S --source={d}"));
    assert_eq!(s["name"], "S");
    let s = client.ok(
        "GET ~/resourceGroups/default/providers/Microsoft.Compute/snapshots/s",
        None,
    );
    let s = s["id"].as_str().unwrap();
    assert_eq!(host.json(&format!("snapshot show {s}"))["name"], "S");
    assert_eq!(
        host.json(&format!("disk create E --source {s}"))["name"],
        "E"
    );
    host.ok(&format!("image create I --source {d}"));
    let key = vault_with_key(&managed, &client, "kv1");
    let set = client.ok(
        &format!("PUT {SET}/des1"),
        Some(&set_body(&client, "kv1", &key)),
    );
    let des = set["id"].as_str().unwrap();
    let principal = set["identity"]["principalId"].as_str().unwrap();
    host.ok(&format!(
        "keyvault set-policy kv1 --object-id {principal} --key-permissions get wrapKey unwrapKey"
    ));
    assert_eq!(
        host.json(&format!("disk-encryption-set show {des}"))["name"],
        "des1"
    );
    let updated = host.json(&format!("disk update {d} --disk-encryption-set {des}"));
    assert_eq!(updated["encryption"]["diskEncryptionSetId"], "des1");
    host.ok(&format!("disk delete {d} --yes"));

    for (line, code) in [
        // Of another subscription, group or type; of nothing; no id.
        (
            format!(
                "disk show {}",
                d.replace(&managed.subscription()[15..], "0")
            ),
            "SubscriptionNotFound",
        ),
        (
            format!(
                "disk show {}",
                s.replace("/default/", "/rg/").replace("snapshots", "disks")
            ),
            "ResourceNotFound",
        ),
        (format!("disk show {s}"), "InvalidArgument"),
        (format!("disk show {d}"), "ResourceNotFound"),
        (format!("disk show {s}/x"), "InvalidArgument"),
        (
            format!("disk show {}", d.replace("/D", "/%2e%2e")),
            "InvalidArgument",
        ),
        (format!("snapshot create T --source {s}"), "InvalidArgument"),
        (format!("disk create F --source {des}"), "InvalidArgument"),
    ] {
        host.refused_with(code, &line);
    }
}
