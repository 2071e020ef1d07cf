//! Disks, snapshots and images.

use serde_json::{Value, json};

use super::client::{Client, Managed, serve};
use super::vaults::{SET, VAULT, ask_vault, group, policy, set_body, vault_body, vault_with_key};

const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";

fn disk(size: u64) -> Value {
    json!({"location": "local", "sku": {"name": "Premium_LRS"}, "tags": {}, "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": size,
    }})
}

fn id(managed: &Managed, below: &str) -> String {
    COMPUTE.replacen('~', &managed.subscription(), 1) + below
}

fn under(managed: &Managed, mut body: Value, set: &str) -> Value {
    body["properties"]["encryption"] = json!({
        "type": "EncryptionAtRestWithCustomerKey",
        "diskEncryptionSetId": id(managed, &format!("/diskEncryptionSets/{set}")),
    });
    body
}

fn copy_of(managed: &Managed, source: &str) -> Value {
    json!({"location": "local", "properties": {"creationData": {
        "createOption": "Copy", "sourceResourceId": id(managed, source),
    }}})
}

/// A group with a vault, a key and a set that may not use it yet.
fn with_set(managed: &Managed) -> Client<'_> {
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(managed, &client, "kv1");
    client.ok(
        &format!("PUT {SET}/des1"),
        Some(&set_body(&client, "kv1", &key)),
    );
    client
}

fn grant(managed: &Managed, client: &Client<'_>) {
    let set = client.ok(&format!("GET {SET}/des1"), None);
    let principal = set["identity"]["principalId"].as_str().unwrap();
    let policies = json!([
        policy(managed, &managed.admin.object_id, &["all"]),
        policy(managed, principal, &["get", "wrapKey", "unwrapKey"]),
    ]);
    client.ok(
        &format!("PUT {VAULT}/kv1"),
        Some(&vault_body(managed, false, policies)),
    );
}

#[test]
fn the_documented_workflow_with_its_refusals() {
    let managed = Managed::new();
    let client = with_set(&managed);
    let d1 = &format!("{COMPUTE}/disks/d1");
    let body = under(&managed, disk(1), "des1");
    let (status, code) = client.refused(&format!("PUT {d1}"), Some(&body));
    assert_eq!(
        (status, code.as_str()),
        (403, "KeyVaultAccessForbidden"),
        "before the grant"
    );
    assert_eq!(client.refused(&format!("GET {d1}"), None).0, 404);
    assert_eq!(managed.host.json("disk list"), json!([]));
    grant(&managed, &client);
    let made = client.ask(&format!("PUT {d1}"), Some(&body));
    assert_eq!(made.status, 200, "{made:?}");
    let made = made.body["properties"].clone();
    assert_eq!(
        (&made["diskSizeGB"], &made["diskState"]),
        (&json!(1), &json!("Unattached"))
    );
    assert_eq!(
        made["encryption"]["type"],
        "EncryptionAtRestWithCustomerKey"
    );
    let again = client.ok(&format!("PUT {d1}"), Some(&body));
    assert_eq!(
        again["properties"]["uniqueId"], made["uniqueId"],
        "a retried create"
    );
    let shown = managed.host.json("disk show d1");
    assert_eq!(shown["uniqueId"], made["uniqueId"]);
    let associated = client.ok(&format!("GET {SET}/des1/associatedResources"), None);
    assert_eq!(associated["value"], json!([id(&managed, "/disks/d1")]));
    let (status, code) = client.refused(&format!("DELETE {SET}/des1"), None);
    assert_eq!(
        (status, code.as_str()),
        (409, "InUseDiskEncryptionSetCannotBeDeleted")
    );

    // Into the set and out of it, as `az disk update` does: the whole disk.
    client.ok(&format!("PUT {COMPUTE}/disks/d2"), Some(&disk(1)));
    let mut whole = client.ok(&format!("GET {COMPUTE}/disks/d2"), None);
    assert_eq!(
        whole["properties"]["encryption"]["type"],
        "EncryptionAtRestWithPlatformKey"
    );
    whole["properties"]["encryption"] = body["properties"]["encryption"].clone();
    client.ok(&format!("PUT {COMPUTE}/disks/d2"), Some(&whole));
    let shown = managed.host.json("disk show d2");
    assert_eq!(shown["encryption"]["diskEncryptionSetId"], "des1");
    let patch = json!({"properties": {"encryption": {
        "type": "EncryptionAtRestWithPlatformKey", "diskEncryptionSetId": null,
    }, "diskSizeGB": 2}});
    let patched = client.ok(&format!("PATCH {COMPUTE}/disks/d2"), Some(&patch));
    assert_eq!(
        patched["properties"]["encryption"],
        json!({"type": "EncryptionAtRestWithPlatformKey"})
    );
    assert_eq!(patched["properties"]["diskSizeBytes"], 2u64 << 30);

    // A snapshot, a disk of it, an image, and what keeps them.
    let mut snapshot = copy_of(&managed, "/disks/d1");
    snapshot["properties"]["incremental"] = json!(true);
    let s1 = client.ok(&format!("PUT {COMPUTE}/snapshots/s1"), Some(&snapshot));
    assert_eq!(s1["properties"]["incremental"], true);
    client.ok(&format!("PUT {COMPUTE}/snapshots/s1"), Some(&snapshot));
    assert_eq!(
        managed.host.json("snapshot list").as_array().unwrap().len(),
        1
    );
    let d3 = client.ok(
        &format!("PUT {COMPUTE}/disks/d3"),
        Some(&copy_of(&managed, "/snapshots/s1")),
    );
    assert_eq!(
        d3["properties"]["encryption"], body["properties"]["encryption"],
        "as its source"
    );
    let image = json!({"location": "local", "properties": {"hyperVGeneration": "V1", "storageProfile": {
        "dataDisks": [],
        "osDisk": {"managedDisk": {"id": id(&managed, "/disks/d1")}, "osState": "Generalized", "osType": "Linux"},
    }}});
    assert_eq!(
        client
            .ask(&format!("PUT {COMPUTE}/images/i1"), Some(&image))
            .status,
        201
    );
    assert_eq!(
        client
            .ask(&format!("PUT {COMPUTE}/images/i1"), Some(&image))
            .status,
        200
    );
    let (status, code) = client.refused(&format!("DELETE {COMPUTE}/snapshots/s1"), None);
    assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
    for gone in ["disks/d3", "snapshots/s1", "images/i1", "disks/d1"] {
        client.ok(&format!("DELETE {COMPUTE}/{gone}"), None);
    }
    // A key that is disabled makes no more disks.
    let key = json!({"attributes": {"enabled": false}});
    assert_eq!(
        ask_vault(&managed, &managed.admin, "kv1", "PATCH /keys/k", Some(&key)).status,
        200
    );
    let (status, code) = client.refused(&format!("PUT {d1}"), Some(&body));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    client.ok(&format!("DELETE {SET}/des1"), None);
    // The group takes the rest along.
    client.ok("DELETE ~/resourceGroups/rg", None);
    assert_eq!(managed.host.json("disk list"), json!([]));
}

#[test]
fn a_disk_is_refused_what_cannot_be() {
    let managed = Managed::new();
    let client = with_set(&managed);
    client.ok(&format!("PUT {COMPUTE}/disks/Old"), Some(&disk(2)));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = disk(2);
        change(&mut body);
        body
    };
    let option = |option: &str| json!({"createOption": option});
    for (name, body, refusal) in [
        (
            "old",
            with(&|b| b["properties"]["diskSizeGB"] = json!(1)),
            (409, "ResizeDiskError"),
        ),
        (
            "old",
            with(&|b| b["properties"]["creationData"] = option("Copy")),
            (409, "PropertyChangeNotAllowed"),
        ),
        (
            "old",
            with(&|b| b["location"] = json!("westeurope")),
            (409, "InvalidResourceLocation"),
        ),
        (
            "new",
            with(&|b| b["location"] = json!("westeurope")),
            (400, "LocationNotAvailableForResourceType"),
        ),
        (
            "new",
            with(&|b| b["properties"]["diskSizeGB"] = json!(0)),
            (400, "InvalidParameter"),
        ),
        (
            "new",
            with(&|b| b["properties"]["diskSizeGB"] = json!("big")),
            (400, "InvalidParameter"),
        ),
        (
            "new",
            with(&|b| b["properties"]["creationData"] = json!({})),
            (400, "InvalidParameter"),
        ),
        (
            "new",
            with(&|b| b["properties"]["creationData"] = option("Import")),
            (400, "InvalidParameter"),
        ),
        (
            "new",
            with(&|b| b["properties"]["creationData"] = option("Restore")),
            (400, "FeatureNotOffered"),
        ),
        (
            "new",
            with(&|b| b["properties"]["maxShares"] = json!(2)),
            (400, "FeatureNotOffered"),
        ),
        (
            "new",
            with(&|b| b["zones"] = json!(["1"])),
            (400, "FeatureNotOffered"),
        ),
        (
            "new",
            with(&|b| b["sku"]["name"] = json!("Fast")),
            (400, "InvalidParameter"),
        ),
        ("n/w", disk(1), (404, "ResourceNotFound")),
        ("n%20w", disk(1), (400, "InvalidParameter")),
        (
            "new",
            under(&managed, disk(1), "none"),
            (404, "ResourceNotFound"),
        ),
        (
            "new",
            copy_of(&managed, "/snapshots/none"),
            (404, "ResourceNotFound"),
        ),
        (
            "new",
            copy_of(&managed, "/disks/none"),
            (404, "ResourceNotFound"),
        ),
        (
            "new",
            with(&|b| {
                b["properties"]["encryption"] =
                    json!({"type": "EncryptionAtRestWithPlatformAndCustomerKeys"})
            }),
            (400, "InvalidParameter"),
        ),
    ] {
        let (status, code) = client.refused(&format!("PUT {COMPUTE}/disks/{name}"), Some(&body));
        assert_eq!((status, code.as_str()), refusal, "{name} {body}");
    }
    let all = client.ok(&format!("GET {COMPUTE}/disks"), None);
    assert_eq!(all["value"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all["value"][0]["name"], "Old", "the case is kept");
    let unknown = client.refused(&format!("POST {COMPUTE}/disks/old/other"), Some(&json!({})));
    assert_eq!((unknown.0, unknown.1.as_str()), (404, "NotFound"));
    // Who has seen another state of the disk changes nothing.
    let answer = client.ask(&format!("GET {COMPUTE}/disks/old"), None);
    let etag = format!("If-Match: {}\r\n", answer.header("etag").unwrap());
    let tags = json!({"tags": {"a": "b"}});
    let line = format!("PATCH {COMPUTE}/disks/old");
    assert_eq!(client.ask_with(&line, &etag, Some(&tags)).status, 200);
    let stale = client.ask_with(&line, &etag, Some(&tags));
    assert_eq!((stale.status, stale.code()), (412, "PreconditionFailed"));
    let only_new = client.ask_with(
        &format!("PUT {COMPUTE}/disks/old"),
        "If-None-Match: *\r\n",
        Some(&disk(2)),
    );
    assert_eq!(only_new.status, 412);
}

/// As somebody else would see it in the group of what the command line makes, without its policy.
#[test]
fn a_snapshot_that_its_set_cannot_have_is_not_there() {
    let managed = Managed::new();
    let client = with_set(&managed);
    client.ok(&format!("PUT {COMPUTE}/disks/d"), Some(&disk(1)));
    let mut body = under(&managed, copy_of(&managed, "/disks/d"), "des1");
    body["properties"]["networkAccessPolicy"] = json!("DenyAll");
    let line = format!("PUT {COMPUTE}/snapshots/s");
    for _ in 0..2 {
        let (status, code) = client.refused(&line, Some(&body));
        assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
        let all = client.ok("GET ~/providers/Microsoft.Compute/snapshots", None);
        assert_eq!(all["value"], json!([]));
        assert_eq!(managed.host.json("snapshot list"), json!([]));
    }
    grant(&managed, &client);
    let made = client.ok(&line, Some(&body));
    assert_eq!(made["properties"]["networkAccessPolicy"], "DenyAll");
    assert_eq!(
        made["properties"]["encryption"],
        body["properties"]["encryption"]
    );
}

#[test]
fn lists_have_pages_and_both_views_agree() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    managed.host.ok("disk create by-hand --size 4MiB");
    for name in ["a", "b", "c"] {
        client.ok(&format!("PUT {COMPUTE}/disks/{name}"), Some(&disk(1)));
    }
    let mut line = format!("GET {COMPUTE}/disks?$top=2");
    let mut names = Vec::new();
    for _ in 0..2 {
        let page = client.ok(&line, None);
        names.extend(
            page["value"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d["name"].clone()),
        );
        let Some(next) = page["nextLink"].as_str() else {
            break;
        };
        let below = next.strip_prefix(&managed.base()).unwrap();
        line = format!("GET {below}");
    }
    assert_eq!(names, ["a", "b", "c"]);
    let all = client.ok("GET ~/providers/Microsoft.Compute/disks", None);
    assert_eq!(all["value"].as_array().unwrap().len(), 4);
    let by_hand = "~/resourceGroups/default/providers/Microsoft.Compute/disks/by-hand";
    let shown = client.ok(&format!("GET {by_hand}"), None);
    assert_eq!(
        (&shown["location"], &shown["properties"]["diskSizeGB"]),
        (&json!("local"), &json!(1))
    );
    // Tags are put to what the command line has made, and go with it.
    client.ok(
        &format!("PATCH {by_hand}"),
        Some(&json!({"tags": {"a": "b"}})),
    );
    managed.host.ok("disk delete by-hand --yes");
    assert_eq!(client.refused(&format!("GET {by_hand}"), None).0, 404);
    managed.host.ok("disk create by-hand --size 4MiB");
    assert_eq!(
        client.ok(&format!("GET {by_hand}"), None)["tags"],
        json!({})
    );
    managed.host.ok("disk delete a --yes");
    assert_eq!(
        client.refused(&format!("GET {COMPUTE}/disks/a"), None).0,
        404
    );
}

#[test]
fn two_puts_at_once_make_one_disk() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let ids: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let made = client.ok(&format!("PUT {COMPUTE}/disks/d"), Some(&disk(1)));
                    made["properties"]["uniqueId"].clone()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_server_that_is_killed_leaves_whole_disks_or_none() {
    let mut managed = Managed::new();
    group(&managed.client(&managed.admin));
    for round in 0..6u64 {
        let client = managed.client(&managed.admin);
        std::thread::scope(|scope| {
            let client = &client;
            let puts = scope.spawn(move || {
                for at in 0..50 {
                    let line = format!("PUT {COMPUTE}/disks/d{round}-{at}");
                    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        client.ask(&line, Some(&disk(1))).status
                    }));
                    if asked.is_err() {
                        return;
                    }
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(150 + 70 * round));
            rustix::process::kill_process(managed.served.pid(), rustix::process::Signal::KILL)
                .unwrap();
            puts.join().unwrap();
        });
        managed.served = serve(&managed.host);
        let client = managed.client(&managed.admin);
        let listed = client.ok(&format!("GET {COMPUTE}/disks"), None);
        let by_hand = managed.host.json("disk list");
        assert_eq!(
            listed["value"].as_array().unwrap().len(),
            by_hand.as_array().unwrap().len(),
            "each disk is in its group, and whole"
        );
        for disk in by_hand.as_array().unwrap() {
            assert_eq!(disk["diskState"], "Unattached", "{disk}");
        }
    }
}

/// The server's file system has no file of that length, or it has: a disk is in a file.
#[test]
fn a_disk_that_is_too_large_for_the_file_system_is_a_wrong_parameter() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {COMPUTE}/disks/there"), Some(&disk(1)));
    for name in ["new", "there"] {
        let put = format!("PUT {COMPUTE}/disks/{name}");
        let answer = client.ask(&put, Some(&disk(65_536)));
        if (200..300).contains(&answer.status) {
            continue;
        }
        assert_eq!(
            (answer.status, answer.code()),
            (400, "InvalidParameter"),
            "{answer:?}"
        );
        let error = &answer.body["error"];
        assert_eq!(error["target"], "properties.diskSizeGB");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("GiB") && !message.contains('/'),
            "{message}"
        );
    }
}

/// As SDKs send it, which leave out what is null.
#[test]
fn a_patch_takes_a_disk_out_of_its_set_and_into_it() {
    let managed = Managed::new();
    let client = with_set(&managed);
    grant(&managed, &client);
    let d = format!("{COMPUTE}/disks/d");
    client.ok(&format!("PUT {d}"), Some(&under(&managed, disk(1), "des1")));
    let encryption = |encryption: Value| json!({"properties": {"encryption": encryption}});
    let set = id(&managed, "/diskEncryptionSets/des1");
    let out = encryption(json!({"type": "EncryptionAtRestWithPlatformKey"}));
    let into = encryption(json!({"diskEncryptionSetId": set}));
    for (patch, wanted) in [(out, Value::Null), (into, json!(set))] {
        let changed = client.ok(&format!("PATCH {d}"), Some(&patch));
        let found = &changed["properties"]["encryption"]["diskEncryptionSetId"];
        assert_eq!(found, &wanted, "{patch}: {changed}");
    }
}
