//! Management locks: over the API, and for the command line.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::deployments::{DISKS, PATIENCE, deploy, disk, ended};
use super::vaults::group;

const GROUP: &str = "~/resourceGroups/rg";
const LOCKS: &str = "providers/Microsoft.Authorization/locks";
const DISK: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks/d1";
const SNAPSHOT: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/snapshots/s1";

fn empty_disk() -> Value {
    json!({
        "location": "local",
        "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 1},
    })
}

fn lock(client: &Client<'_>, scope: &str, name: &str, level: &str) -> Value {
    let body = json!({"properties": {"level": level, "notes": "for the test"}});
    client.ok(&format!("PUT {scope}/{LOCKS}/{name}"), Some(&body))
}

fn unlock(client: &Client<'_>, scope: &str, name: &str) {
    let line = format!("DELETE {scope}/{LOCKS}/{name}");
    assert_eq!(client.ask(&line, None).status, 200, "{line}");
    assert_eq!(client.ask(&line, None).status, 204, "{line}");
}

/// The request is refused because of a lock on that scope.
fn is_locked(client: &Client<'_>, line: &str, body: Option<&Value>, by: &str) {
    let answer = client.ask(line, body);
    assert_eq!(
        (answer.status, answer.code()),
        (409, "ScopeLocked"),
        "{line}: {answer:?}"
    );
    let message = answer.body["error"]["message"].as_str().unwrap();
    let by = by.replacen('~', &client.managed.subscription(), 1);
    let words =
        format!("following scope(s) are locked: '{by}'. Please remove the lock and try again.");
    assert!(message.ends_with(&words), "{line}: {message}");
}

/// The command is refused because of a lock.
fn is_locked_here(managed: &Managed, command: &str) {
    managed.host.refused_with("ScopeLocked", command);
}

#[test]
fn what_is_locked_is_not_deleted_by_anybody() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {DISK}"), Some(&empty_disk()));
    for (size, scope) in [DISK, GROUP, "~"].into_iter().enumerate() {
        let made = lock(&client, scope, "keep", "CanNotDelete");
        assert_eq!(made["properties"]["level"], "CanNotDelete");
        assert_eq!(made["properties"]["notes"], "for the test");
        assert_eq!(client.ok(&format!("GET {scope}/{LOCKS}/KEEP"), None), made);
        is_locked(&client, &format!("DELETE {DISK}"), None, scope);
        is_locked(&client, &format!("DELETE {GROUP}"), None, scope);
        is_locked_here(&managed, "disk delete d1 --yes");
        is_locked_here(&managed, "disk unregister d1");
        // It may be changed.
        let tags = json!({"tags": {"scope": scope}});
        client.ok(&format!("PATCH {DISK}"), Some(&tags));
        let resize = format!("disk resize d1 --size {}GiB", size + 2);
        managed.host.ok(resize.as_str());
        unlock(&client, scope, "keep");
    }
    assert_eq!(client.ask(&format!("DELETE {DISK}"), None).status, 200);
}

/// Of a lock and a deletion at once one is first: then the other one is refused.
#[test]
fn a_lock_and_a_deletion_at_once_have_an_order() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let identity =
        format!("{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1");
    let body = json!({"properties": {"level": "CanNotDelete"}});
    for round in 0..20 {
        let (target, made) = match round % 2 {
            0 => (DISK, empty_disk()),
            _ => (identity.as_str(), json!({"location": "local"})),
        };
        client.ok(&format!("PUT {target}"), Some(&made));
        let both = Barrier::new(2);
        let (locked, deleted) = thread::scope(|scope| {
            let (client, both, body) = (&client, &both, &body);
            let locks = scope.spawn(move || {
                both.wait();
                let line = format!("PUT {target}/{LOCKS}/keep");
                client.ask(&line, Some(body)).status
            });
            both.wait();
            let deleted = client.ask(&format!("DELETE {target}"), None).status;
            (locks.join().unwrap(), deleted)
        });
        let there = client.ask(&format!("GET {target}"), None).status;
        match (locked, deleted) {
            (201, 409) => {
                assert_eq!(there, 200, "{target}");
                unlock(&client, target, "keep");
                client.ok(&format!("DELETE {target}"), None);
            }
            (404, 200) => assert_eq!(there, 404, "{target}"),
            other => panic!("{target}: {other:?}"),
        }
    }
    // None waits for what is made under these names later.
    assert_eq!(
        client.ok(&format!("GET ~/{LOCKS}"), None)["value"],
        json!([])
    );
}

/// What a purge takes is the vault alone: a lock on something else is not in its way, one on all of it is.
#[test]
fn a_vault_is_purged_whatever_else_is_locked() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {DISK}"), Some(&empty_disk()));
    managed.host.ok("keyvault create kv1");
    managed.host.ok("keyvault delete kv1 --yes");
    lock(&client, DISK, "keep", "CanNotDelete");
    lock(&client, "~", "all", "CanNotDelete");
    let purge = "POST ~/providers/Microsoft.KeyVault/locations/local/deletedVaults/kv1/purge";
    is_locked(&client, purge, None, "~");
    unlock(&client, "~", "all");
    let purged = client.ask(purge, None).status;
    assert!([200, 202].contains(&purged), "{purged}");
}

#[test]
fn what_is_read_only_is_not_changed_by_anybody() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {DISK}"), Some(&empty_disk()));
    managed.host.ok("keyvault create kv1");
    let vault = "~/resourceGroups/default/providers/Microsoft.KeyVault/vaults/kv1";
    let access = json!({"access": "Read", "durationInSeconds": 600});
    let snapshot = json!({
        "location": "local",
        "properties": {"creationData": {"createOption": "Copy", "sourceResourceId":
            DISK.replacen('~', &managed.subscription(), 1)}},
    });
    lock(&client, GROUP, "frozen", "ReadOnly");
    for (line, body) in [
        (format!("PUT {DISK}"), Some(empty_disk())),
        (format!("PATCH {DISK}"), Some(json!({"tags": {"a": "b"}}))),
        (format!("POST {DISK}/beginGetAccess"), Some(access.clone())),
        (format!("DELETE {DISK}"), None),
        (format!("PUT {SNAPSHOT}"), Some(snapshot.clone())),
        (format!("PATCH {GROUP}"), Some(json!({"tags": {"a": "b"}}))),
        (format!("DELETE {GROUP}"), None),
    ] {
        is_locked(&client, &line, body.as_ref(), GROUP);
    }
    let template = json!({"resources": [disk("d2")]});
    let deployed = deploy(&client, "dep", &template, &json!({}));
    assert_eq!((deployed.status, deployed.code()), (409, "ScopeLocked"));
    for command in [
        "disk resize d1 --size 2GiB",
        "disk grant-access d1 --duration-in-seconds 60",
        "disk delete d1 --yes",
    ] {
        is_locked_here(&managed, command);
    }
    // Reading goes on, and what is in other groups.
    client.ok(&format!("GET {DISK}"), None);
    assert_eq!(
        client.ok(&format!("GET {DISKS}"), None)["value"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    managed.host.ok("disk create other --size 1GiB");

    lock(&client, "~", "all", "ReadOnly");
    for command in [
        "disk create another --size 1GiB",
        "disk delete other --yes",
        "snapshot create s1 --source other",
        "keyvault create kv2",
        "keyvault update kv1 --retention-days 30",
        "keyvault reseal kv1",
        "keyvault delete kv1 --yes",
        "identity create bob",
        "role assignment create --assignee admin --role Reader",
    ] {
        is_locked_here(&managed, command);
    }
    is_locked(&client, &format!("DELETE {vault}"), None, "~");
    // Keys are of the data plane.
    managed
        .host
        .ok("keyvault key create k1 --vault-name kv1 --kty RSA --size 2048");
    unlock(&client, "~", "all");
    unlock(&client, GROUP, "frozen");
    client.ok(&format!("PUT {SNAPSHOT}"), Some(&snapshot));
    client.ok(&format!("POST {DISK}/beginGetAccess"), Some(&access));
}

/// A snapshot or a copy reads its source, and is something else. Access to the source's data is asked for by a POST to it.
#[test]
fn what_is_read_only_is_copied_into_what_is_not() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {DISK}"), Some(&empty_disk()));
    let copy = json!({
        "location": "local",
        "properties": {"creationData": {"createOption": "Copy", "sourceResourceId":
            DISK.replacen('~', &managed.subscription(), 1)}},
    });
    let access = json!({"access": "Read", "durationInSeconds": 600});
    lock(&client, DISK, "frozen", "ReadOnly");
    client.ok(&format!("PUT {SNAPSHOT}"), Some(&copy));
    client.ok(&format!("PUT {DISKS}/copy"), Some(&copy));
    managed.host.ok("snapshot create s2 --source d1");
    managed.host.ok("disk create copy2 --source disk:d1");
    let granting = format!("POST {DISK}/beginGetAccess");
    is_locked(&client, &granting, Some(&access), DISK);
    is_locked_here(&managed, "disk grant-access d1 --duration-in-seconds 60");
    is_locked_here(&managed, "disk flatten d1");
    // What is made is under a lock that its place is under.
    lock(&client, GROUP, "frozen", "ReadOnly");
    is_locked(&client, &format!("PUT {DISKS}/copy3"), Some(&copy), GROUP);
}

#[test]
fn a_group_with_something_locked_loses_nothing() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let disks = ["d1", "d2", "d3"].map(|name| format!("{DISKS}/{name}"));
    for disk in &disks {
        client.ok(&format!("PUT {disk}"), Some(&empty_disk()));
    }
    lock(&client, &disks[2], "keep", "CanNotDelete");
    is_locked(&client, &format!("DELETE {GROUP}"), None, &disks[2]);
    for disk in &disks {
        client.ok(&format!("GET {disk}"), None);
    }
    unlock(&client, &disks[2], "keep");
    lock(&client, GROUP, "keep", "CanNotDelete");
    is_locked(&client, &format!("DELETE {}", disks[0]), None, GROUP);
    unlock(&client, GROUP, "keep");
    client.ok(&format!("DELETE {GROUP}"), None);
    let begun = Instant::now();
    while client.ask(&format!("HEAD {GROUP}"), None).status != 404 {
        assert!(begun.elapsed() < PATIENCE, "the group is not deleted");
        thread::sleep(Duration::from_millis(50));
    }
    // Nothing is left for what comes after under these names.
    group(&client);
    assert_eq!(
        client.ok(&format!("GET ~/{LOCKS}"), None)["value"],
        json!([])
    );
}

#[test]
fn a_template_locks_what_it_makes() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let lock = json!({
        "type": "Microsoft.Authorization/locks", "apiVersion": "2020-05-01", "name": "keep",
        "scope": "Microsoft.Compute/disks/d1", "properties": {"level": "CanNotDelete"},
        "dependsOn": ["[resourceId('Microsoft.Compute/disks', 'd1')]"],
    });
    let template = json!({"resources": [lock, disk("d1")]});
    deploy(&client, "dep", &template, &json!({}));
    let ended = ended(&client, "dep");
    assert_eq!(
        ended["properties"]["provisioningState"], "Succeeded",
        "{ended}"
    );
    is_locked(&client, &format!("DELETE {DISK}"), None, DISK);
}

#[test]
fn locks_are_listed_where_they_are_and_where_they_count() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    client.ok(&format!("PUT {DISK}"), Some(&empty_disk()));
    for (scope, name) in [("~", "a"), (GROUP, "b"), (DISK, "c")] {
        lock(&client, scope, name, "CanNotDelete");
    }
    let names = |path: &str| -> Vec<String> {
        let listed = client.ok(&format!("GET {path}"), None);
        let listed = listed["value"].as_array().unwrap().iter();
        let mut names: Vec<String> = listed
            .map(|lock| lock["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&format!("~/{LOCKS}")), ["a", "b", "c"]);
    assert_eq!(names(&format!("~/{LOCKS}?$filter=atScope()")), ["a"]);
    assert_eq!(
        names(&format!("{GROUP}/{LOCKS}?$filter=atScope()")),
        ["a", "b"]
    );
    assert_eq!(names(&format!("~/resourceGroups/default/{LOCKS}")), ["a"]);
    // What one front makes the other sees.
    let listed = managed.host.json("lock list");
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");
    let id = DISK.replacen('~', &managed.subscription(), 1);
    let of_disk = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|lock| lock["name"] == "c");
    assert_eq!(of_disk.unwrap()["scope"], json!(id));
    managed.host.ok("lock delete c --resource disk:d1 --yes");
    managed.host.ok(&format!(
        "lock create d --lock-type ReadOnly --resource {id} --notes why"
    ));
    let seen = client.ok(&format!("GET {DISK}/{LOCKS}/d"), None);
    assert_eq!(
        seen["properties"],
        json!({"level": "ReadOnly", "notes": "why"})
    );
    managed
        .host
        .ok("lock create d --lock-type CanNotDelete --resource disk:d1");
    let seen = client.ok(&format!("GET {DISK}/{LOCKS}/d"), None);
    assert_eq!(seen["properties"], json!({"level": "CanNotDelete"}));
    for (command, code) in [
        ("lock delete z --yes", "ResourceNotFound"),
        (
            "lock create z --lock-type ReadOnly --resource disk:nowhere",
            "ResourceNotFound",
        ),
        (
            "lock create z --lock-type ReadOnly --resource d1",
            "InvalidArgument",
        ),
        (
            "lock create z --lock-type ReadOnly -g nowhere",
            "ResourceNotFound",
        ),
    ] {
        managed.host.refused_with(code, command);
    }
}

#[test]
fn a_lock_is_changed_and_taken_off_as_the_client_knows_it() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    lock(&client, GROUP, "keep", "CanNotDelete");
    let path = format!("{GROUP}/{LOCKS}/keep");
    let known = || {
        let answer = client.ask(&format!("GET {path}"), None);
        format!("If-Match: {}\r\n", answer.header("etag").unwrap())
    };
    let (stale, body) = (
        known(),
        json!({"properties": {"level": "ReadOnly", "notes": "another"}}),
    );
    let put = format!("PUT {path}");
    assert_eq!(client.ask_with(&put, &stale, Some(&body)).status, 200);
    for (line, body) in [(put, Some(&body)), (format!("DELETE {path}"), None)] {
        let refused = client.ask_with(&line, &stale, body);
        let told = (refused.status, refused.code());
        assert_eq!(told, (412, "PreconditionFailed"), "{line}");
    }
    assert_eq!(
        client.ok(&format!("GET {path}"), None)["properties"]["level"],
        "ReadOnly"
    );
    let delete = format!("DELETE {path}");
    assert_eq!(client.ask_with(&delete, &known(), None).status, 200);
    // What is not there is taken off already.
    assert_eq!(client.ask_with(&delete, &stale, None).status, 204);
}

#[test]
fn what_is_no_lock_is_refused_and_who_may_not_write_roles_makes_none() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let put = |scope: &str, name: &str, body: Value| {
        client.refused(&format!("PUT {scope}/{LOCKS}/{name}"), Some(&body))
    };
    let body = |level: &str| json!({"properties": {"level": level}});
    for (scope, name, body, status, code) in [
        (
            GROUP,
            "l",
            json!({"properties": {}}),
            400,
            "InvalidParameter",
        ),
        (GROUP, "l", body("NotSpecified"), 400, "InvalidParameter"),
        (GROUP, "a:b", body("ReadOnly"), 400, "InvalidParameter"),
        (DISK, "l", body("ReadOnly"), 404, "ResourceNotFound"),
        (
            "~/resourceGroups/no",
            "l",
            body("ReadOnly"),
            404,
            "ResourceGroupNotFound",
        ),
        (
            "~/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/v/keys/k",
            "l",
            body("ReadOnly"),
            400,
            "FeatureNotOffered",
        ),
        (
            GROUP,
            "l",
            json!({"properties": {"level": "ReadOnly", "notes": "x".repeat(513)}}),
            400,
            "InvalidParameter",
        ),
        (
            GROUP,
            "l",
            json!({"properties": {"level": "ReadOnly", "notes": "a\u{1b}[2Jb"}}),
            400,
            "InvalidParameter",
        ),
    ] {
        let refused = put(scope, name, body.clone());
        assert_eq!(refused, (status, code.to_owned()), "{scope} {name} {body}");
    }
    assert_eq!(
        client.refused(&format!("GET {GROUP}/{LOCKS}/l"), None),
        (404, "LockNotFound".into())
    );
    for n in 0..20 {
        lock(&client, GROUP, &format!("l{n}"), "CanNotDelete");
    }
    assert_eq!(put(GROUP, "l20", body("ReadOnly")).0, 409);
    lock(&client, GROUP, "l19", "ReadOnly");

    let helper = managed.user("helper");
    managed
        .host
        .ok("role assignment create --assignee helper --role Contributor");
    let helper = managed.client(&helper);
    for method in ["PUT", "DELETE"] {
        let line = format!("{method} {GROUP}/{LOCKS}/l0");
        let refused = helper.refused(&line, Some(&body("CanNotDelete")));
        assert_eq!(refused, (403, "AuthorizationFailed".into()), "{line}");
    }
    helper.ok(&format!("GET {GROUP}/{LOCKS}/l0"), None);
}
