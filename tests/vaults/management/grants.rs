//! Who has access to keys and resources, who has it no more, and who is said to have given it.

use serde_json::{Value, json};

use super::access::{assignment, line};
use super::client::{Client, Managed};
use super::vaults::{VAULT, ask_vault, group, policy, vault_body};
use crate::azure::served::{User, grant};

const GROUP: &str = "~/resourceGroups/rg";
const KEY_VAULT_CONTRIBUTOR: &str = "f25e0fa2-a7c8-4377-a976-54943a77a395";

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
