//! Who has access to keys and resources, who has it no more, and who is said to have given it.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::access::{CONTRIBUTOR, OFFICER, assignment, line};
use super::client::{Client, Managed};
use super::vaults::{SET, VAULT, ask_vault, group, policy, set_body, vault_body, vault_with_key};
use crate::azure::client::Connection;
use crate::azure::served::{User, grant};

const GROUP: &str = "~/resourceGroups/rg";
const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";
const IDENTITIES: &str =
    "~/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities";
const DELETED: &str = "~/providers/Microsoft.KeyVault/locations/local/deletedVaults";
const KEY_VAULT_CONTRIBUTOR: &str = "f25e0fa2-a7c8-4377-a976-54943a77a395";
const IDENTITY_CONTRIBUTOR: &str = "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59";

fn assigned(owner: &Client<'_>, scope: &str, number: u32, role: &str, user: &User) {
    let made = owner.ask(
        &line("PUT", scope, number),
        Some(&assignment(role, &user.object_id)),
    );
    assert_eq!(made.status, 201, "{made:?}");
}

/// What a vault answers to somebody who lists its keys.
fn keys_of(managed: &Managed, user: &User, vault: &str) -> u16 {
    ask_vault(managed, user, vault, "GET /keys", None).status
}

fn made_by_roles(managed: &Managed, owner: &Client<'_>, name: &str) {
    let body = vault_body(managed, true, json!([]));
    owner.ok(&format!("PUT {VAULT}/{name}"), Some(&body));
}

fn recover(managed: &Managed) -> Value {
    json!({"location": "local", "properties": {
        "tenantId": managed.tenant(), "sku": {"name": "standard", "family": "A"}, "createMode": "recover",
    }})
}

/// Whoever may delete a vault and recover it gets nothing from its keys by that.
#[test]
fn a_recovered_vault_is_as_it_was() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    made_by_roles(&managed, &owner, "kv1");
    let bob = managed.user("bob");
    assigned(&owner, GROUP, 1, KEY_VAULT_CONTRIBUTOR, &bob);
    let client = managed.client(&bob);
    let kv = &format!("{VAULT}/kv1");
    let before = owner.ok(&format!("GET {kv}"), None);
    client.ok(&format!("DELETE {kv}"), None);

    let mine = json!([policy(&managed, &bob.object_id, &["all"])]);
    let mut body = vault_body(&managed, false, mine);
    let refused = client.refused(&format!("PUT {kv}"), Some(&body));
    assert_eq!(refused, (409, "ConflictError".into()), "without createMode");
    body["properties"]["createMode"] = json!("recover");
    body["properties"]["enablePurgeProtection"] = json!(true);
    body["properties"]["networkAcls"] = json!({"defaultAction": "Deny", "bypass": "None"});
    let back = client.ask(&format!("PUT {kv}"), Some(&body));
    assert_eq!(back.status, 201, "{back:?}");
    assert_eq!(back.body["properties"], before["properties"]);
    assert_eq!(keys_of(&managed, &bob, "kv1"), 403);
}

/// What governs a vault that the command line has made stays when it is recovered over the API.
#[test]
fn a_recovered_vault_of_the_command_line_keeps_its_policies() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    managed.host.ok("keyvault create kv1");
    grant(&managed.host, "kv1", &bob, "all");
    managed.host.ok("keyvault delete kv1 --yes");
    let kv = VAULT.replace("/rg/", "/default/") + "/kv1";
    let back = owner.ok(&format!("PUT {kv}"), Some(&recover(&managed)));
    assert_eq!(back["properties"]["enableRbacAuthorization"], false);
    let policies = back["properties"]["accessPolicies"].as_array().unwrap();
    assert_eq!(policies[0]["objectId"], bob.object_id.as_str());
    assert_eq!(keys_of(&managed, &bob, "kv1"), 200);
}

fn has_policy(managed: &Managed, vault: &str, user: &User) -> bool {
    let shown = managed.host.json(&format!("keyvault show {vault}"));
    shown.to_string().contains(&user.object_id)
}

/// One role is taken away while another is given, by this server and by the command line: what is left in the vaults
/// is what the catalog says.
#[test]
fn roles_that_change_at_once_leave_no_access_behind() {
    const VAULTS: [&str; 6] = ["kv1", "kv2", "kv3", "kv4", "kv5", "kv6"];
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    for vault in VAULTS {
        made_by_roles(&managed, &owner, vault);
    }
    let (bob, carol) = (managed.user("bob"), managed.user("carol"));
    for round in 0..12 {
        let (first, second) = (2 * round + 1, 2 * round + 2);
        assigned(&owner, GROUP, first, OFFICER, &bob);
        std::thread::scope(|scope| {
            scope.spawn(|| match round % 2 {
                0 => drop(owner.ok(&line("DELETE", GROUP, first), None)),
                _ => {
                    let name = format!("00000000-0000-0000-0000-{first:012}");
                    let command = format!("role assignment delete {name} --yes");
                    managed.host.ok(&command);
                }
            });
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(u64::from(10 * round)));
                assigned(&owner, GROUP, second, OFFICER, &carol);
            });
        });
        for vault in VAULTS {
            let (first, second) = (
                has_policy(&managed, vault, &bob),
                has_policy(&managed, vault, &carol),
            );
            assert_eq!((first, second), (false, true), "{vault} in round {round}");
        }
        owner.ok(&line("DELETE", GROUP, second), None);
    }
}

/// Two who add access policies at once both have theirs.
#[test]
fn policies_that_are_added_at_once_are_both_there() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    vault_with_key(&managed, &owner, "kv1");
    let users: Vec<User> = (0..8)
        .map(|number| managed.user(&format!("user{number}")))
        .collect();
    let of = |user: &User, keys: &[&str]| {
        let policies = json!([policy(&managed, &user.object_id, keys)]);
        json!({"properties": {"accessPolicies": policies}})
    };
    for round in 0..8 {
        let together = Barrier::new(users.len());
        std::thread::scope(|scope| {
            for user in &users {
                let (owner, together) = (&owner, &together);
                let body = of(user, &["get"]);
                scope.spawn(move || {
                    let mut connection = Connection::open(&owner.managed.served).unwrap();
                    together.wait();
                    let add = format!("PUT {VAULT}/kv1/accessPolicies/add");
                    let answer = owner.ask_on(&mut connection, &add, "", Some(&body));
                    assert_eq!(answer.status, 200, "{answer:?}");
                });
            }
        });
        for user in &users {
            assert!(has_policy(&managed, "kv1", user), "round {round}");
            let body = of(user, &[]);
            owner.ok(
                &format!("PUT {VAULT}/kv1/accessPolicies/remove"),
                Some(&body),
            );
        }
    }
}

/// A role that was taken away while the vault was deleted is not there when somebody recovers it.
#[test]
fn a_recovered_vault_follows_the_roles_of_now() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    made_by_roles(&managed, &owner, "kv1");
    let (bob, carol) = (managed.user("bob"), managed.user("carol"));
    let kv = &format!("{VAULT}/kv1");
    for by_api in [false, true] {
        assigned(&owner, kv, 1, OFFICER, &bob);
        assert_eq!(keys_of(&managed, &bob, "kv1"), 200);
        owner.ok(&format!("DELETE {kv}"), None);
        owner.ok(&line("DELETE", kv, 1), None);
        assigned(&owner, kv, 2, OFFICER, &carol);
        match by_api {
            true => drop(owner.ok(&format!("PUT {kv}"), Some(&recover(&managed)))),
            false => drop(managed.host.ok("keyvault recover kv1")),
        }
        assert_eq!(keys_of(&managed, &bob, "kv1"), 403, "by API: {by_api}");
        assert_eq!(keys_of(&managed, &carol, "kv1"), 200, "by API: {by_api}");
        owner.ok(&line("DELETE", kv, 2), None);
    }
}

/// Whoever had a role at a vault that is purged has none at the next one of that name.
#[test]
fn roles_at_a_vault_go_when_it_is_purged() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let bob = managed.user("bob");
    let kv = &format!("{VAULT}/kv1");
    for by_api in [false, true] {
        made_by_roles(&managed, &owner, "kv1");
        assigned(&owner, kv, 1, OFFICER, &bob);
        assert_eq!(keys_of(&managed, &bob, "kv1"), 200);
        owner.ok(&format!("DELETE {kv}"), None);
        match by_api {
            true => drop(owner.ok(&format!("POST {DELETED}/kv1/purge"), None)),
            false => drop(managed.host.ok("keyvault purge kv1 --yes")),
        }
        made_by_roles(&managed, &owner, "kv1");
        assert_eq!(keys_of(&managed, &bob, "kv1"), 403, "by API: {by_api}");
        let left = managed.host.json("role assignment list").to_string();
        assert!(!left.contains(&bob.object_id), "by API: {by_api}: {left}");
        owner.ok(&format!("DELETE {kv}"), None);
        managed.host.ok("keyvault purge kv1 --yes");
    }
}

/// A role at a resource goes with it, also when the command line deletes it.
#[test]
fn roles_at_a_resource_go_with_it() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let bob = managed.user("bob");
    let key = vault_with_key(&managed, &owner, "kv1");
    let id = |below: &str| COMPUTE.replacen('~', &managed.subscription(), 1) + below;
    let disk = json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }});
    let snapshot = json!({"location": "local", "properties": {"creationData": {
        "createOption": "Copy", "sourceResourceId": id("/disks/thing"),
    }}});
    let image = json!({"location": "local", "properties": {"storageProfile": {"osDisk": {
        "osType": "Linux", "osState": "Generalized", "managedDisk": {"id": id("/disks/thing")},
    }}}});
    let set = set_body(&owner, "kv1", &key);
    let all = [
        (format!("{COMPUTE}/disks/thing"), disk.clone()),
        (format!("{COMPUTE}/snapshots/thing"), snapshot),
        (format!("{COMPUTE}/images/thing"), image),
        (format!("{SET}/thing"), set),
        (format!("{IDENTITIES}/thing"), json!({"location": "local"})),
    ];
    for (number, (path, body)) in (10..).zip(&all) {
        owner.ok(&format!("PUT {path}"), Some(body));
        // A scope is the same in any case.
        assigned(
            &owner,
            &path.replace("thing", "THING"),
            number,
            CONTRIBUTOR,
            &bob,
        );
    }
    // One whose name only begins like it.
    owner.ok(&format!("PUT {COMPUTE}/disks/thing2"), Some(&disk));
    assigned(
        &owner,
        &format!("{COMPUTE}/disks/thing2"),
        20,
        CONTRIBUTOR,
        &bob,
    );
    managed
        .client(&bob)
        .ok(&format!("GET {COMPUTE}/disks/thing"), None);
    for command in [
        "image delete",
        "snapshot delete",
        "disk delete",
        "disk-encryption-set delete",
        "identity delete",
    ] {
        managed.host.ok(&format!("{command} thing --yes"));
    }
    let client = managed.client(&bob);
    owner.ok(&format!("PUT {COMPUTE}/disks/thing"), Some(&disk));
    let refused = client.refused(&format!("GET {COMPUTE}/disks/thing"), None);
    assert_eq!(refused.0, 403, "a disk of the old name");
    client.ok(&format!("GET {COMPUTE}/disks/thing2"), None);
    let left = managed.host.json("role assignment list");
    let left: Vec<_> = left
        .as_array()
        .unwrap()
        .iter()
        .filter(|role| role["principalId"] == bob.object_id.as_str())
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // Nor does a catalog that is made again from its copy have them.
    let copy = std::fs::read_to_string(managed.host.state().join("catalog-copy.json")).unwrap();
    assert!(!copy.contains("disks/THING\""), "{copy}");
}

/// Who has given or taken access is in the log, whichever way it was done.
#[test]
fn who_gives_access_is_in_the_audit_log() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let bob = managed.user("bob");
    assigned(&owner, GROUP, 1, CONTRIBUTOR, &bob);
    owner.ok(&line("DELETE", GROUP, 1), None);
    let made = managed
        .host
        .json("role assignment create --assignee bob --role Reader");
    let name = made["name"].as_str().unwrap();
    managed
        .host
        .ok(&format!("role assignment delete {name} --yes"));
    vault_with_key(&managed, &owner, "kv1");
    let policies = json!([policy(&managed, &bob.object_id, &["get"])]);
    let body = json!({"properties": {"accessPolicies": policies}});
    owner.ok(&format!("PUT {VAULT}/kv1/accessPolicies/add"), Some(&body));
    let disk = json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }});
    owner.ok(&format!("PUT {COMPUTE}/disks/d"), Some(&disk));
    assigned(&owner, GROUP, 2, CONTRIBUTOR, &bob);
    owner.delete_group(GROUP);

    let log = managed.host.text("audit list --last 1000 -o json");
    let log: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let count = |operation: &str, words: &[&str]| {
        let found = log.iter().filter(|record| {
            let text = record.to_string();
            record["operation"] == operation && words.iter().all(|word| text.contains(word))
        });
        found.count()
    };
    let (admin, bob) = (managed.admin.object_id.as_str(), bob.object_id.as_str());
    let by_admin = &[admin, bob, "resourceGroups/rg", "Contributor"];
    assert_eq!(count("RoleAssignmentWrite", by_admin), 2, "{log:?}");
    assert_eq!(count("RoleAssignmentDelete", by_admin), 2, "with the group");
    let by_operator = &[bob, "Reader", "/subscriptions/"];
    assert_eq!(count("RoleAssignmentWrite", by_operator), 1, "{log:?}");
    assert_eq!(count("RoleAssignmentDelete", by_operator), 1, "{log:?}");
    let policy = &[admin, bob, "vaults/kv1", "add"];
    assert_eq!(count("VaultAccessPolicyWrite", policy), 1, "{log:?}");
    for resource in ["disks/d", "vaults/kv1"] {
        assert_eq!(count("ResourceDelete", &[admin, resource]), 1, "{log:?}");
    }
}

/// Whoever manages identities gives them to nobody, as in Azure.
#[test]
fn a_contributor_of_identities_assigns_none() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    owner.ok(
        "PUT ~/resourcegroups/rg2",
        Some(&json!({"location": "local"})),
    );
    let key = vault_with_key(&managed, &owner, "kv1");
    let bob = managed.user("bob");
    assigned(&owner, GROUP, 1, IDENTITY_CONTRIBUTOR, &bob);
    assigned(&owner, "~/resourceGroups/rg2", 2, CONTRIBUTOR, &bob);
    assigned(&owner, &format!("{VAULT}/kv1"), 3, CONTRIBUTOR, &bob);
    let client = managed.client(&bob);
    let made = client.ok(
        &format!("PUT {IDENTITIES}/id1"),
        Some(&json!({"location": "local"})),
    );
    let mut body = set_body(&owner, "kv1", &key);
    let id = made["id"].as_str().unwrap();
    body["identity"] = json!({"type": "UserAssigned", "userAssignedIdentities": {id: {}}});
    let set = SET.replace("/rg/", "/rg2/");
    let refused = client.refused(&format!("PUT {set}/des1"), Some(&body));
    assert_eq!(refused, (403, "LinkedAuthorizationFailed".into()));
    owner.ok(&format!("PUT {set}/des1"), Some(&body));
    owner.ok(&format!("DELETE {set}/des1"), None);
    client.ok(&format!("GET {IDENTITIES}/id1"), None);
    client.ok(&format!("DELETE {IDENTITIES}/id1"), None);
}

/// Deleted vaults are the subscription's, as in Azure: a right in their group shows and purges none.
#[test]
fn deleted_vaults_are_purged_by_who_may_in_the_subscription() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let bob = managed.user("bob");
    assigned(&owner, GROUP, 1, CONTRIBUTOR, &bob);
    let client = managed.client(&bob);
    made_by_roles(&managed, &client, "kv1");
    client.ok(&format!("DELETE {VAULT}/kv1"), None);
    let forbidden = (403, "AuthorizationFailed".to_owned());
    for asked in [
        "GET ~/providers/Microsoft.KeyVault/deletedVaults".to_owned(),
        format!("GET {DELETED}/kv1"),
        format!("GET {DELETED}/none"),
        format!("POST {DELETED}/kv1/purge"),
        format!("POST {DELETED}/none/purge"),
    ] {
        assert_eq!(client.refused(&asked, None), forbidden, "{asked}");
    }
    owner.ok(&format!("GET {DELETED}/kv1"), None);
    client.ok(&format!("PUT {VAULT}/kv1"), Some(&recover(&managed)));
    client.ok(&format!("DELETE {VAULT}/kv1"), None);
    owner.ok(&format!("POST {DELETED}/kv1/purge"), None);
}

/// A change of access policies is made of the vault as the client knows it.
#[test]
fn access_policies_have_conditions() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    vault_with_key(&managed, &owner, "kv1");
    let kv = format!("{VAULT}/kv1");
    let bob = managed.user("bob");
    let policies = json!([policy(&managed, &bob.object_id, &["get"])]);
    let body = json!({"properties": {"accessPolicies": policies}});
    let add = format!("PUT {kv}/accessPolicies/add");
    let answer = owner.ask(&format!("GET {kv}"), None);
    let etag = format!("If-Match: {}\r\n", answer.header("etag").unwrap());
    owner.ok(&format!("PATCH {kv}"), Some(&json!({"tags": {"a": "b"}})));
    let stale = owner.ask_with(&add, &etag, Some(&body));
    assert_eq!(stale.status, 412, "{stale:?}");
    assert!(!has_policy(&managed, "kv1", &bob));
    let answer = owner.ask(&format!("GET {kv}"), None);
    let etag = format!("If-Match: {}\r\n", answer.header("etag").unwrap());
    assert_eq!(owner.ask_with(&add, &etag, Some(&body)).status, 200);
    assert!(has_policy(&managed, "kv1", &bob));
}

/// A role that is given while its group is deleted goes with the group, or is given to nobody.
#[test]
fn no_role_outlives_its_group() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    for round in 0..10 {
        group(&owner);
        for at in 0..12 {
            let identity = format!("PUT {IDENTITIES}/id{at}");
            owner.ok(&identity, Some(&json!({"location": "local"})));
        }
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (owner, ended, bob) = (&owner, &ended, &bob);
            for at in 0..12 {
                scope.spawn(move || {
                    let mut connection = Connection::open(&owner.managed.served).unwrap();
                    for number in 0..20 {
                        let number = round * 1000 + at * 100 + number;
                        let scope = format!("{IDENTITIES}/id{at}");
                        let put = line("PUT", &scope, number);
                        let body = assignment(CONTRIBUTOR, &bob.object_id);
                        let answer = owner.ask_on(&mut connection, &put, "", Some(&body));
                        // It is granted once under one name.
                        assert!([201, 404, 409].contains(&answer.status), "{answer:?}");
                        if ended.load(Ordering::Acquire) {
                            break;
                        }
                    }
                });
            }
            owner.delete_group(GROUP);
            ended.store(true, Ordering::Release);
        });
        let left = managed.host.json("role assignment list").to_string();
        assert!(!left.contains(&bob.object_id), "round {round}: {left}");
    }
}

/// A vault that cannot be opened keeps nobody from changing roles that do not concern it. What does concern it is refused
/// before anything is changed.
#[test]
fn a_vault_that_cannot_be_opened_is_a_matter_of_its_own() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    made_by_roles(&managed, &owner, "kv1");
    made_by_roles(&managed, &owner, "kv2");
    let bob = managed.user("bob");
    let id = |path: &str| path.replacen('~', &managed.subscription(), 1);
    let create = |role: &str, scope: &str| {
        format!("role assignment create --assignee bob --role {role} --scope {scope}")
    };
    let database = managed.host.state().join("vaults/kv2/vault.db");
    let aside = database.with_extension("aside");
    std::fs::rename(&database, &aside).unwrap();
    let made = managed
        .host
        .json(&create(OFFICER, &id(&format!("{VAULT}/kv1"))));
    assert!(has_policy(&managed, "kv1", &bob));
    let name = made["name"].as_str().unwrap();
    managed
        .host
        .ok(&format!("role assignment delete {name} --yes"));
    assert!(!has_policy(&managed, "kv1", &bob));
    // It gives nothing in any vault.
    managed.host.ok(&create(CONTRIBUTOR, &id(GROUP)));

    let all = create(OFFICER, &id(GROUP));
    let said = managed.host.refused_with("KeyVaultNotAvailable", &all);
    assert!(said.contains("'kv2'"), "{said}");
    assert!(!has_policy(&managed, "kv1", &bob), "nothing is changed");
    let left = managed.host.json("role assignment list").to_string();
    assert!(!left.contains(OFFICER), "{left}");

    std::fs::rename(&aside, &database).unwrap();
    let made = managed.host.json(&all);
    assert!(has_policy(&managed, "kv1", &bob) && has_policy(&managed, "kv2", &bob));
    std::fs::rename(&database, &aside).unwrap();
    let name = made["name"].as_str().unwrap();
    let delete = format!("role assignment delete {name} --yes");
    managed.host.refused_with("KeyVaultNotAvailable", &delete);
    assert!(has_policy(&managed, "kv1", &bob), "nothing is changed");
    std::fs::rename(&aside, &database).unwrap();
    managed.host.ok(&delete);
    assert!(!has_policy(&managed, "kv1", &bob) && !has_policy(&managed, "kv2", &bob));
}

/// A slip of the pen is no grant that waits for whoever makes a resource of that name.
#[test]
fn a_role_is_granted_at_what_is_there() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    owner.ok(
        "PUT ~/resourcegroups/rg2",
        Some(&json!({"location": "local"})),
    );
    let disk = json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }});
    owner.ok(&format!("PUT {COMPUTE}/disks/Thing"), Some(&disk));
    let bob = managed.user("bob");
    let body = assignment(CONTRIBUTOR, &bob.object_id);
    for scope in [
        format!("{COMPUTE}/disks/nope"),
        format!("{COMPUTE}/disks/thing").replace("/rg/", "/rg2/"),
        format!("{COMPUTE}/virtualMachines/thing"),
    ] {
        let (status, code) = owner.refused(&line("PUT", &scope, 1), Some(&body));
        assert_eq!(
            (status, code.as_str()),
            (404, "ResourceNotFound"),
            "{scope}"
        );
    }
    // It is kept as it is written, however it is asked for.
    let asked = format!("{COMPUTE}/DISKS/tHING").replace("/rg/", "/RG/");
    let made = owner.ok(&line("PUT", &asked, 1), Some(&body));
    let scope = COMPUTE.replacen('~', &managed.subscription(), 1) + "/disks/Thing";
    assert_eq!(made["properties"]["scope"], scope.as_str(), "{made}");
    let create = format!("role assignment create --assignee bob --role Reader --scope {scope}x");
    managed.host.refused_with("ResourceNotFound", &create);
    // Whether there is something is asked for without its content.
    for (line, status) in [
        (format!("HEAD {COMPUTE}/disks/thing"), 204),
        (format!("HEAD {COMPUTE}/disks/nope"), 404),
        (line("HEAD", &asked, 1), 204),
        (line("HEAD", &asked, 2), 404),
    ] {
        assert_eq!(owner.ask(&line, None).status, status, "{line}");
    }
}
