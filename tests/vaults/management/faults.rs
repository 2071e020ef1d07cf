//! What once went wrong, and what nobody may find out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{CONTRIBUTOR, assignment, line};
use super::client::{Client, Managed};
use super::deployments::PATIENCE;
use super::vaults::{ask_vault, group, vault_with_key};
use crate::azure::served::grant;
use installation::catalog::{Kind, PlacementRecord, Touch};

const GROUP: &str = "~/resourceGroups/rg";
const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";

fn disk() -> Value {
    json!({"location": "local", "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 1}})
}

/// Bob, who is a contributor of the group `own` and has nothing in `rg`.
fn with_outsider(managed: &Managed) -> Client<'_> {
    let owner = managed.client(&managed.admin);
    group(&owner);
    owner.ok(
        "PUT ~/resourcegroups/own",
        Some(&json!({"location": "local"})),
    );
    let bob = managed.user("bob");
    let made = owner.ask(
        &line("PUT", "~/resourceGroups/own", 1),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    assert_eq!(made.status, 201, "{made:?}");
    managed.client(&bob)
}

/// Somebody without a right to a source or a set is refused in the same way whether it is there or not.
#[test]
fn what_somebody_may_not_use_might_not_be_there() {
    let managed = Managed::new();
    let bob = with_outsider(&managed);
    let owner = managed.client(&managed.admin);
    let key = vault_with_key(&managed, &owner, "kv1");
    let set = json!({"location": "local", "properties": {"activeKey": {"keyUrl": key}}});
    owner.ok(
        &format!("PUT {COMPUTE}/diskEncryptionSets/there"),
        Some(&set),
    );
    owner.ok(&format!("PUT {COMPUTE}/disks/there"), Some(&disk()));
    let id = |below: &str| COMPUTE.replacen('~', &managed.subscription(), 1) + below;
    let copy = |kind: &str, name: &str| {
        json!({"location": "local", "properties": {"creationData": {
            "createOption": "Copy", "sourceResourceId": id(&format!("/{kind}/{name}")),
        }}})
    };
    owner.ok(
        &format!("PUT {COMPUTE}/snapshots/there"),
        Some(&copy("disks", "there")),
    );
    let under = |kind: &str, name: &str| {
        let mut body = disk();
        body["properties"]["encryption"] = json!({
            "type": kind, "diskEncryptionSetId": id(&format!("/diskEncryptionSets/{name}")),
        });
        body
    };
    let image = |name: &str| {
        json!({"location": "local", "properties": {"storageProfile": {
            "osDisk": {"osType": "Linux", "osState": "Generalized", "managedDisk": {"id": id(&format!("/disks/{name}"))}},
        }}})
    };
    let of_key = |vault: &str| {
        let url = key.replacen("kv1", vault, 1);
        json!({"location": "local", "properties": {"activeKey": {"keyUrl": url}}})
    };
    let own = "~/resourceGroups/own/providers/Microsoft.Compute";
    let customer = "EncryptionAtRestWithCustomerKey";
    let both = "EncryptionAtRestWithPlatformAndCustomerKeys";
    for (what, there, nowhere) in [
        (
            "disks",
            copy("snapshots", "there"),
            copy("snapshots", "nowhere"),
        ),
        (
            "snapshots",
            copy("disks", "there"),
            copy("disks", "nowhere"),
        ),
        ("images", image("there"), image("nowhere")),
        (
            "disks",
            under(customer, "there"),
            under(customer, "nowhere"),
        ),
        ("disks", under(both, "there"), under(both, "nowhere")),
        ("diskEncryptionSets", of_key("kv1"), of_key("kv9")),
    ] {
        let ask = |body: &Value| {
            let answer = bob.ask(&format!("PUT {own}/{what}/x"), Some(body));
            let message = answer.body["error"]["message"].as_str().unwrap();
            let message = message.replace("nowhere", "there").replace("kv9", "kv1");
            (answer.status, answer.code().to_owned(), message)
        };
        let (first, second) = (ask(&there), ask(&nowhere));
        assert_eq!(first, second);
        assert_eq!(
            (first.0, first.1.as_str()),
            (403, "LinkedAuthorizationFailed"),
            "{what}: {first:?}"
        );
    }
    // Whose name is taken is not told either.
    let taken = bob.ask(&format!("PUT {own}/disks/there"), Some(&disk()));
    let message = taken.body["error"]["message"].as_str().unwrap();
    assert!(
        taken.status == 409 && !message.contains("'rg'"),
        "{taken:?}"
    );
}

/// A group is gone with all that is in it, or it is there: whatever is put into it meanwhile.
#[test]
fn a_group_that_is_deleted_while_something_is_put_into_it() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    for round in 0..8 {
        group(&client);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let puts: Vec<_> = (0..3)
                .map(|at| {
                    let client = &client;
                    scope.spawn(move || {
                        let line = format!("PUT {COMPUTE}/disks/d{round}-{at}");
                        client.ask(&line, Some(&disk())).status
                    })
                })
                .collect();
            client.delete_group(GROUP);
            puts.into_iter().map(|put| put.join().unwrap()).collect()
        });
        assert!(
            statuses.iter().all(|status| [200, 404].contains(status)),
            "{statuses:?}"
        );
        let left = managed.host.json("disk list");
        assert_eq!(left, json!([]), "{statuses:?}");
    }
}

#[test]
fn a_page_of_nonsense_is_refused() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    for query in [
        "$top=x",
        "$top=0",
        "$top=-3",
        "$skiptoken=x",
        "$skiptoken=..%2F..",
        "$skiptoken=",
    ] {
        let line = format!("GET {COMPUTE}/disks?{query}");
        assert_eq!(
            client.refused(&line, None),
            (400, "InvalidParameter".into()),
            "{query}"
        );
    }
}

/// Where a request that was cut off was about to put a disk says nothing of the one that the command line makes.
#[test]
fn what_a_dead_request_left_catches_nothing() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let touch = Touch {
        at: time::OffsetDateTime::now_utc(),
        by: Uuid::nil(),
    };
    let installation = managed.host.installation();
    for (kind, name) in [
        (Kind::Disk, "d"),
        (Kind::Disk, "clone"),
        (Kind::Snapshot, "s"),
        (Kind::Image, "i"),
        (Kind::DiskEncryptionSet, "des"),
        (Kind::Vault, "kv1"),
        (Kind::Identity, "idn"),
    ] {
        let left = PlacementRecord {
            kind,
            name: name.into(),
            group: "rg".into(),
            location: "local".into(),
            tags: [("left".to_owned(), String::new())].into(),
            settings: json!({}),
            created: touch,
            changed: touch,
        };
        installation.catalog().put_placement(&left).unwrap();
    }
    for command in [
        "disk create d --size 4MiB",
        "snapshot create s --source d",
        "image create i --source d",
        "disk create clone --source s",
        "keyvault create kv1",
        "keyvault key create k --vault-name kv1",
        "disk-encryption-set create des --key-url https://kv1.vault.localhost/keys/k",
        "identity create idn",
    ] {
        managed.host.ok(command);
    }
    assert_eq!(
        client.ok(&format!("GET {GROUP}/resources"), None)["value"],
        json!([])
    );
    let all = client.ok("GET ~/resourceGroups/default/resources", None);
    // And the identity of whoever asks.
    assert_eq!(all["value"].as_array().unwrap().len(), 8, "{all}");
    client.ok(&format!("DELETE {GROUP}"), None);
    assert_eq!(managed.host.json("disk list").as_array().unwrap().len(), 2);
}

/// Whoever may purge keys of the platform's vault does not take its key from the disks that it wraps.
#[test]
fn the_platforms_key_is_not_purged_over_the_network_while_it_wraps_something() {
    let managed = Managed::new();
    let host = &managed.host;
    host.ok("disk create d --size 4MiB");
    let bob = managed.user("bob");
    let purge = || {
        ask_vault(
            &managed,
            &bob,
            "platform",
            "DELETE /deletedkeys/platform-key",
            None,
        )
    };
    assert_eq!(
        purge().status,
        403,
        "before it is said whether it is in use"
    );
    grant(host, "platform", &bob, "all");
    host.ok("keyvault key delete platform-key --vault-name platform --yes");
    let refused = purge();
    assert_eq!(
        (refused.status, refused.code()),
        (409, "Conflict"),
        "{refused:?}"
    );
    let begun = Instant::now();
    let is_told = |code: &str| {
        let log = host.text("audit list --last 1000 -o json");
        let is_it = |record: &Value| {
            record["operation"] == "KeyPurge"
                && record["code"] == code
                && record["caller"] == bob.object_id.as_str()
        };
        log.lines()
            .any(|line| is_it(&serde_json::from_str(line).unwrap()))
    };
    while !["Forbidden", "Conflict"].into_iter().all(is_told) {
        assert!(
            begun.elapsed() < PATIENCE,
            "{}",
            host.text("audit list -o json")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    host.ok("keyvault key recover platform-key --vault-name platform");
    host.ok("disk decrypt d");
    host.ok("disk delete d --yes");
    host.ok("keyvault key delete platform-key --vault-name platform --yes");
    assert_eq!(purge().status, 204);
}

/// What a request was about to make when its server died says nothing of a disk that comes from elsewhere.
#[test]
fn a_disk_that_is_registered_is_not_where_a_killed_request_meant_another_to_be() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let host = &managed.host;
    host.ok("disk create d --size 4MiB");
    let installation = host.installation();
    let catalog = installation.catalog();
    let directory = catalog.disk("d").unwrap().record.directory;
    host.ok("disk unregister d");
    let touch = Touch {
        at: time::OffsetDateTime::now_utc(),
        by: Uuid::new_v4(),
    };
    let left = PlacementRecord {
        kind: Kind::Disk,
        name: "D".into(),
        group: "rg".into(),
        location: "local".into(),
        tags: [("of".to_owned(), "another".to_owned())].into(),
        settings: json!({"sku": "UltraSSD_LRS"}),
        created: touch,
        changed: touch,
    };
    catalog.put_placement(&left).unwrap();
    host.ok(&format!("disk register --dir {}", directory.display()));
    assert_eq!(
        client.refused(&format!("GET {COMPUTE}/disks/d"), None).0,
        404
    );
    let shown = client.ok(
        "GET ~/resourceGroups/default/providers/Microsoft.Compute/disks/d",
        None,
    );
    assert_eq!(shown["tags"], json!({}), "{shown}");
}
