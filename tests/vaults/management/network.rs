//! Network rules of vaults: from where their keys may be asked for.

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::vaults::{SET, VAULT, ask_vault, group, set_body, vault_with_key};
use crate::azure::client::{Answer, Connection};
use crate::azure::served::User;

const DISK: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks";

fn patch(client: &Client<'_>, properties: Value) -> Value {
    let patch = json!({"properties": properties});
    client.ok(&format!("PATCH {VAULT}/kv1"), Some(&patch))
}

/// What the vault says to the owner of the subscription, at 127.0.0.1.
fn ask(managed: &Managed) -> Answer {
    ask_vault(managed, &managed.admin, "kv1", "GET /keys/k", None)
}

fn assert_refused(answer: &Answer, inner: &str) {
    assert_eq!(
        (answer.status, answer.code()),
        (403, "Forbidden"),
        "{answer:?}"
    );
    assert_eq!(
        answer.body["error"]["innererror"]["code"], inner,
        "{answer:?}"
    );
}

#[test]
fn a_vault_is_asked_from_where_it_may_be() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    vault_with_key(&managed, &client, "kv1");
    assert_eq!(ask(&managed).status, 200);
    let vault = patch(&client, json!({"networkAcls": {"defaultAction": "Deny"}}));
    let acls = &vault["properties"]["networkAcls"];
    assert_eq!(
        *acls,
        json!({"bypass": "AzureServices", "defaultAction": "Deny", "ipRules": [], "virtualNetworkRules": []})
    );
    let refused = ask(&managed);
    assert_refused(&refused, "ForbiddenByFirewall");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("127.0.0.1") && message.contains(&managed.admin.object_id),
        "{message}"
    );
    // Whoever has no token is told that first, and a request that makes no sense nothing of its form.
    let host = managed.served.host_of("kv1");
    let mut connection = Connection::open(&managed.served).unwrap();
    let unknown = connection.ask(&host, "x.y.z", "GET /keys/k", None).unwrap();
    assert_eq!(unknown.status, 401, "{unknown:?}");
    let senseless = Some(json!({"kty": 7}));
    let line = "POST /keys/n/create";
    let answer = ask_vault(&managed, &managed.admin, "kv1", line, senseless.as_ref());
    assert_refused(&answer, "ForbiddenByFirewall");
    let log = managed.host.text("audit list --vault kv1 -o json");
    assert!(
        log.contains("ForbiddenByFirewall") && log.contains("defaultAction=Deny"),
        "{log}"
    );

    for (rules, wanted) in [
        (json!([{"value": "192.0.2.0/24"}]), 403),
        (
            json!([{"value": "192.0.2.0/24"}, {"value": "127.0.0.1"}]),
            200,
        ),
        (json!([{"value": "127.0.0.0/8"}]), 200),
        (json!([]), 403),
    ] {
        patch(&client, json!({"networkAcls": {"ipRules": rules}}));
        assert_eq!(ask(&managed).status, wanted, "{rules}");
    }
    // The whole vault, as az sends it, keeps what it says and leaves out nothing.
    patch(
        &client,
        json!({"networkAcls": {"ipRules": [{"value": "127.0.0.0/8"}]}}),
    );
    let whole = client.ok(&format!("GET {VAULT}/kv1"), None);
    let again = client.ok(&format!("PUT {VAULT}/kv1"), Some(&whole));
    assert_eq!(
        again["properties"]["networkAcls"],
        whole["properties"]["networkAcls"]
    );
    let vault = patch(&client, json!({"publicNetworkAccess": "Disabled"}));
    assert_eq!(vault["properties"]["publicNetworkAccess"], "Disabled");
    assert_refused(&ask(&managed), "ForbiddenByConnection");
    patch(&client, json!({"publicNetworkAccess": "Enabled"}));
    assert_eq!(ask(&managed).status, 200);
}

#[test]
fn trusted_services_are_the_sets_of_the_installation() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let set = client.ok(
        &format!("PUT {SET}/des1"),
        Some(&set_body(&client, "kv1", &key)),
    );
    let principal = set["identity"]["principalId"].as_str().unwrap();
    managed.host.ok(&format!(
        "keyvault set-policy kv1 --object-id {principal} --key-permissions get create wrapKey unwrapKey"
    ));
    patch(
        &client,
        json!({"networkAcls": {"defaultAction": "Deny"}, "publicNetworkAccess": "Disabled"}),
    );
    let disk = json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
        "encryption": {"diskEncryptionSetId": set["id"]},
    }});
    client.ok(&format!("PUT {DISK}/d1"), Some(&disk));
    managed.host.ok("disk decrypt d1");
    // The same identity over the network, as a set has it whose disks are on another host.
    let secret = managed
        .host
        .json("identity secret --disk-encryption-set des1");
    let text = |field: &str| secret[field].as_str().unwrap().to_owned();
    let of_set = User {
        object_id: text("principalId"),
        client_id: text("clientId"),
        secret: text("secret"),
    };
    let by_set =
        |line: &str| ask_vault(&managed, &of_set, "kv1", line, Some(&json!({"kty": "RSA"})));
    assert_eq!(
        ask_vault(&managed, &of_set, "kv1", "GET /keys/k", None).status,
        200
    );
    assert_refused(&by_set("POST /keys/n/create"), "ForbiddenByConnection");

    patch(
        &client,
        json!({"networkAcls": {"defaultAction": "Deny", "bypass": "None"}}),
    );
    let answer = ask_vault(&managed, &of_set, "kv1", "GET /keys/k", None);
    assert_refused(&answer, "ForbiddenByConnection");
    managed
        .host
        .refused_with("ForbiddenByConnection", "disk decrypt d1");
    let (status, code) = client.refused(&format!("PUT {DISK}/d2"), Some(&disk));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    // The operator of the host asks over no network, and opens the vault again.
    managed.host.ok("keyvault key list --vault-name kv1");
    managed
        .host
        .ok("keyvault update kv1 --bypass AzureServices");
    managed.host.ok("disk decrypt d1");
}

#[test]
fn rules_that_are_none_are_refused() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    vault_with_key(&managed, &client, "kv1");
    let many: Vec<Value> = (0..1001)
        .map(|n| json!({"value": format!("10.0.{}.{}", n / 256, n % 256)}))
        .collect();
    for (acls, code) in [
        (json!([]), "InvalidParameter"),
        (json!({"defaultAction": "Maybe"}), "InvalidParameter"),
        (json!({"bypass": "Everybody"}), "InvalidParameter"),
        (json!({"ipRules": {}}), "InvalidParameter"),
        (json!({"ipRules": ["10.0.0.1"]}), "InvalidParameter"),
        (
            json!({"ipRules": [{"value": "10.0.0.0/33"}]}),
            "InvalidParameter",
        ),
        (
            json!({"ipRules": [{"value": "localhost"}]}),
            "InvalidParameter",
        ),
        (json!({"ipRules": many}), "InvalidParameter"),
        (
            json!({"virtualNetworkRules": [{"id": "/x"}]}),
            "FeatureNotOffered",
        ),
    ] {
        let patch = json!({"properties": {"networkAcls": acls}});
        let refused = client.refused(&format!("PATCH {VAULT}/kv1"), Some(&patch));
        assert_eq!(refused, (400, code.into()), "{patch}");
    }
    assert_eq!(ask(&managed).status, 200, "nothing has changed");
}

#[test]
fn the_command_line_has_them_too() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    vault_with_key(&managed, &client, "kv1");
    let host = &managed.host;
    let updated = host.json("keyvault update kv1 --default-action Deny");
    assert_eq!(
        updated["properties"]["networkAcls"]["defaultAction"],
        "Deny"
    );
    assert_refused(&ask(&managed), "ForbiddenByFirewall");
    host.ok("keyvault network-rule add kv1 --ip-address 127.0.0.1 192.0.2.9/24");
    host.ok("keyvault network-rule add kv1 --ip-address 127.0.0.1");
    let listed = host.json("keyvault network-rule list kv1");
    assert_eq!(
        listed,
        json!([{"value": "127.0.0.1/32"}, {"value": "192.0.2.0/24"}])
    );
    assert_eq!(ask(&managed).status, 200);
    let shown = client.ok(&format!("GET {VAULT}/kv1"), None);
    assert_eq!(shown["properties"]["networkAcls"]["ipRules"], listed);
    host.ok("keyvault network-rule remove kv1 --ip-address 127.0.0.1");
    assert_refused(&ask(&managed), "ForbiddenByFirewall");
    host.ok("keyvault update kv1 --public-network-access Disabled --default-action Allow");
    assert_refused(&ask(&managed), "ForbiddenByConnection");
    host.refused_with(
        "InvalidArgument",
        "keyvault network-rule add kv1 --ip-address 10.0.0.0/40",
    );
    host.refused_with("VaultNotFound", "keyvault network-rule list none");
}
