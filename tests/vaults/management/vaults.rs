//! Key vaults and disk encryption sets.

use serde_json::{Value, json};

use super::client::{Client, Managed};
use crate::azure::client::{Answer, Connection};
use crate::azure::served::User;

pub const VAULT: &str = "~/resourceGroups/rg/providers/Microsoft.KeyVault/vaults";
pub const SET: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/diskEncryptionSets";

/// The body of `az keyvault create`.
pub fn vault_body(managed: &Managed, by_roles: bool, policies: Value) -> Value {
    json!({"location": "local", "properties": {
        "tenantId": managed.tenant(),
        "sku": {"name": "standard", "family": "A"},
        "accessPolicies": policies,
        "enableRbacAuthorization": by_roles,
        "enableSoftDelete": true,
        "softDeleteRetentionInDays": 90,
        "networkAcls": {"bypass": "AzureServices", "defaultAction": "Allow"},
    }})
}

pub fn policy(managed: &Managed, object_id: &str, keys: &[&str]) -> Value {
    json!({
        "tenantId": managed.tenant(),
        "objectId": object_id,
        "permissions": {"keys": keys, "secrets": ["all"], "certificates": ["all"], "storage": ["all"]},
    })
}

pub fn group(client: &Client<'_>) {
    client.ok(
        "PUT ~/resourcegroups/rg",
        Some(&json!({"location": "local"})),
    );
}

/// Asks a vault.
pub fn ask_vault(
    managed: &Managed,
    user: &User,
    vault: &str,
    line: &str,
    body: Option<&Value>,
) -> Answer {
    let token = managed.token(user, &managed.served.resource());
    let host = managed.served.host_of(vault);
    let mut connection = Connection::open(&managed.served).unwrap();
    connection.ask(&host, &token, line, body).unwrap()
}

/// A vault with a key, and the URL of its version as clients know it.
pub fn vault_with_key(managed: &Managed, client: &Client<'_>, name: &str) -> String {
    let all = json!([policy(managed, &managed.admin.object_id, &["all"])]);
    client.ok(
        &format!("PUT {VAULT}/{name}"),
        Some(&vault_body(managed, false, all)),
    );
    let body = json!({"kty": "RSA", "key_size": 2048});
    let key = ask_vault(
        managed,
        &managed.admin,
        name,
        "POST /keys/k/create",
        Some(&body),
    );
    key.body["key"]["kid"].as_str().unwrap().into()
}

pub fn set_body(client: &Client<'_>, vault: &str, key_url: &str) -> Value {
    let subscription = client.managed.subscription();
    let vault = VAULT.replacen('~', &subscription, 1) + "/" + vault;
    json!({"location": "local", "identity": {"type": "SystemAssigned"}, "properties": {
        "activeKey": {"keyUrl": key_url, "sourceVault": {"id": vault}},
    }})
}

#[test]
fn a_vault_with_access_policies_lives_and_dies() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let kv = &format!("{VAULT}/kv1");
    assert_eq!(
        client.refused(&format!("GET {kv}"), None),
        (404, "ResourceNotFound".into())
    );
    let mine = policy(&managed, &managed.admin.object_id, &["all"]);
    let body = vault_body(&managed, false, json!([mine]));
    let made = client.ask(&format!("PUT {kv}"), Some(&body));
    assert_eq!(made.status, 201, "{made:?}");
    let uri = format!("https://{}/", managed.served.host_of("kv1"));
    assert_eq!(made.body["properties"]["vaultUri"], uri.as_str());
    assert_eq!(
        client.ask(&format!("PUT {kv}"), Some(&body)).status,
        200,
        "again"
    );
    let key = json!({"kty": "RSA"});
    let created = ask_vault(
        &managed,
        &managed.admin,
        "kv1",
        "POST /keys/k/create",
        Some(&key),
    );
    assert_eq!(created.status, 200, "{created:?}");
    // As set-policy does: the whole vault with one more; and what the command line then shows.
    let other = managed.user("other");
    let mut whole = client.ok(&format!("GET {kv}"), None);
    let policies = whole["properties"]["accessPolicies"]
        .as_array_mut()
        .unwrap();
    policies.push(policy(
        &managed,
        &other.object_id,
        &["wrapKey", "unwrapKey", "get"],
    ));
    client.ok(&format!("PUT {kv}"), Some(&whole));
    let shown = managed.host.json("keyvault show kv1").to_string();
    assert!(shown.contains(&other.object_id), "{shown}");
    let refused = ask_vault(&managed, &other, "kv1", "POST /keys/l/create", Some(&key));
    assert_eq!(refused.status, 403);
    let one = json!({"properties": {"accessPolicies": [policy(&managed, &other.object_id, &["create"])]}});
    client.ok(&format!("PUT {kv}/accessPolicies/add"), Some(&one));
    let allowed = ask_vault(&managed, &other, "kv1", "POST /keys/l/create", Some(&key));
    assert_eq!(allowed.status, 200, "{allowed:?}");
    // Who is named loses all, also where no permission is named.
    let bare = json!({"properties": {"accessPolicies": [policy(&managed, &other.object_id, &[])]}});
    client.ok(&format!("PUT {kv}/accessPolicies/remove"), Some(&bare));
    assert_eq!(
        ask_vault(&managed, &other, "kv1", "GET /keys/k", None).status,
        403
    );

    let found = client.ok(
        "GET ~/resources?$filter=resourceType%20eq%20'Microsoft.KeyVault/vaults'%20and%20name%20eq%20'KV1'",
        None,
    );
    assert_eq!(found["value"][0]["name"], "kv1", "{found}");
    client.ok(&format!("DELETE {kv}"), None);
    assert_eq!(client.ask(&format!("DELETE {kv}"), None).status, 204);
    assert_eq!(client.refused(&format!("GET {kv}"), None).0, 404);
    let deleted = client.ok("GET ~/providers/Microsoft.KeyVault/deletedVaults", None);
    let id = deleted["value"][0]["id"].as_str().unwrap().to_owned();
    assert!(id.contains("/locations/local/deletedVaults/kv1"), "{id}");
    let (status, code) = client.refused(&format!("PUT {kv}"), Some(&body));
    assert_eq!((status, code.as_str()), (409, "ConflictError"));
    let mut recover = body.clone();
    recover["properties"] = json!({"createMode": "recover", "tenantId": managed.tenant(),
        "sku": {"name": "standard", "family": "A"}});
    let back = client.ask(&format!("PUT {kv}"), Some(&recover));
    assert!(back.status < 300, "{back:?}");
    assert_eq!(back.body["properties"]["enableRbacAuthorization"], false);
    assert_eq!(
        ask_vault(&managed, &managed.admin, "kv1", "GET /keys/k", None).status,
        200
    );
    client.ok(&format!("DELETE {kv}"), None);
    client.ok(&format!("POST {id}/purge"), None);
    assert_eq!(
        client.refused(&format!("GET {id}"), None),
        (404, "DeletedVaultNotFound".into())
    );
    let listed = client.ok(&format!("GET {VAULT}"), None);
    assert_eq!(listed["value"], json!([]));
}

#[test]
fn a_vault_is_refused_what_it_does_not_have() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let body = vault_body(&managed, true, json!([]));
    let with = |pointer: &str, value: Value| {
        let mut body = body.clone();
        body["properties"][pointer] = value;
        body
    };
    for (name, body, refusal) in [
        (
            "kv1",
            with(
                "networkAcls",
                json!({"virtualNetworkRules": [{"id": "/x"}]}),
            ),
            (400, "FeatureNotOffered"),
        ),
        (
            "kv1",
            with("publicNetworkAccess", json!("SecuredByPerimeter")),
            (400, "FeatureNotOffered"),
        ),
        (
            "kv1",
            with("sku", json!({"name": "premium"})),
            (400, "FeatureNotOffered"),
        ),
        (
            "kv1",
            with("enableSoftDelete", json!(false)),
            (400, "InvalidParameter"),
        ),
        (
            "kv1",
            with("tenantId", json!("00000000-0000-0000-0000-000000000000")),
            (400, "InvalidParameter"),
        ),
        (
            "kv1",
            with("softDeleteRetentionInDays", json!(3)),
            (400, "InvalidParameter"),
        ),
        (
            "kv1",
            with("flies", json!(true)),
            (400, "FeatureNotOffered"),
        ),
        ("kv1", json!({"properties": {}}), (400, "LocationRequired")),
        ("kv1", json!([]), (400, "InvalidRequestContent")),
        ("k", body.clone(), (400, "InvalidParameter")),
        ("platform", body.clone(), (409, "VaultAlreadyExists")),
    ] {
        let (status, code) = client.refused(&format!("PUT {VAULT}/{name}"), Some(&body));
        assert_eq!((status, code.as_str()), refusal, "{name} {body}");
    }
    let nowhere = VAULT.replace("/rg/", "/none/");
    let (status, code) = client.refused(&format!("PUT {nowhere}/kv1"), Some(&body));
    assert_eq!((status, code.as_str()), (404, "ResourceGroupNotFound"));
    // What the command line has made is in the group default, and its name is taken.
    managed.host.ok("keyvault create kv1");
    let (status, code) = client.refused(&format!("PUT {VAULT}/kv1"), Some(&body));
    assert_eq!((status, code.as_str()), (409, "Conflict"));
    client.ok(
        &format!("GET {}/kv1", VAULT.replace("/rg/", "/default/")),
        None,
    );
    assert_eq!(client.refused(&format!("GET {VAULT}/kv1"), None).0, 404);
}

#[test]
fn a_set_is_made_changed_and_deleted() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let des = &format!("{SET}/des1");
    let body = set_body(&client, "kv1", &key);
    let made = client.ok(&format!("PUT {des}"), Some(&body));
    let principal = made["identity"]["principalId"].clone();
    assert_eq!(made["properties"]["activeKey"]["keyUrl"], key.as_str());
    assert_eq!(
        client.ok(&format!("PUT {des}"), Some(&body))["identity"]["principalId"],
        principal
    );
    let shown = managed.host.json("disk-encryption-set show des1");
    assert_eq!(shown["identity"]["principalId"], principal, "{shown}");
    // As `az disk-encryption-set update --enable-auto-key-rotation` sends it.
    let update = json!({"location": "local", "identity": {"type": "SystemAssigned"}, "properties": {
        "encryptionType": "EncryptionAtRestWithCustomerKey",
        "activeKey": {"keyUrl": key},
        "rotationToLatestKeyVersionEnabled": true,
    }});
    let updated = client.ok(&format!("PUT {des}"), Some(&update));
    assert_eq!(
        updated["properties"]["rotationToLatestKeyVersionEnabled"],
        true
    );
    assert_eq!(updated["identity"]["principalId"], principal);
    let tagged = client.ok(&format!("PATCH {des}"), Some(&json!({"tags": {"a": "b"}})));
    assert_eq!(tagged["tags"], json!({"a": "b"}));
    assert_eq!(
        tagged["properties"]["rotationToLatestKeyVersionEnabled"],
        true
    );

    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = body.clone();
        change(&mut body);
        body
    };
    for (body, refusal) in [
        (
            with(&|b| b["identity"]["type"] = json!("UserAssigned")),
            (400, "InvalidParameter"),
        ),
        (
            with(&|b| {
                b["properties"]["encryptionType"] = json!("ConfidentialVmEncryptedWithCustomerKey")
            }),
            (400, "FeatureNotOffered"),
        ),
        (
            with(&|b| b["properties"]["activeKey"]["keyUrl"] = json!("nonsense")),
            (400, "InvalidParameter"),
        ),
        (
            with(&|b| b["properties"]["activeKey"]["keyUrl"] = json!(key.replace("/k/", "/x/"))),
            (403, "KeyVaultAccessForbidden"),
        ),
        (
            with(&|b| b["properties"]["activeKey"]["sourceVault"]["id"] = json!("x")),
            (400, "InvalidParameter"),
        ),
        (
            with(&|b| b["properties"] = json!({})),
            (400, "InvalidParameter"),
        ),
    ] {
        let (status, code) = client.refused(&format!("PUT {SET}/des2"), Some(&body));
        assert_eq!((status, code.as_str()), refusal, "{body}");
        assert_eq!(
            client.refused(&format!("GET {SET}/des2"), None).0,
            404,
            "nothing is left"
        );
    }
    // Double encryption, which a set has or has not.
    let twice = "EncryptionAtRestWithPlatformAndCustomerKeys";
    let double = with(&|b| b["properties"]["encryptionType"] = json!(twice));
    let made = client.ok(&format!("PUT {SET}/twice"), Some(&double));
    assert_eq!(made["properties"]["encryptionType"], twice);
    assert_eq!(
        managed.host.json("disk-encryption-set show twice")["encryptionType"],
        twice
    );
    let (status, code) = client.refused(&format!("PUT {des}"), Some(&double));
    assert_eq!((status, code.as_str()), (400, "InvalidParameter"));
    let disk = "~/resourceGroups/rg/providers/Microsoft.Compute/disks/d";
    let under = |kind: &str| {
        json!({"location": "local", "properties": {
            "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
            "encryption": {"type": kind, "diskEncryptionSetId": made["id"]},
        }})
    };
    let (status, code) = client.refused(
        &format!("PUT {disk}"),
        Some(&under("EncryptionAtRestWithCustomerKey")),
    );
    assert_eq!((status, code.as_str()), (400, "InvalidParameter"));
    let identity = made["identity"]["principalId"].as_str().unwrap();
    managed.host.ok(&format!(
        "keyvault set-policy kv1 --object-id {identity} --key-permissions get wrapKey unwrapKey"
    ));
    let made = client.ok(&format!("PUT {disk}"), Some(&under(twice)));
    assert_eq!(made["properties"]["encryption"]["type"], twice);
    assert_eq!(
        managed.host.json("disk show d")["encryption"]["type"],
        twice
    );
    client.ok(&format!("DELETE {disk}"), None);
    client.ok(&format!("DELETE {SET}/twice"), None);
    // A vault whose key a set has is not deleted, as by the command line.
    let (status, code) = client.refused(&format!("DELETE {VAULT}/kv1"), None);
    assert_eq!((status, code.as_str()), (409, "VaultInUse"));
    client.ok(&format!("DELETE {des}"), None);
    assert_eq!(managed.host.json("disk-encryption-set list"), json!([]));
}

/// A vault whose database is not to be seen for a moment, while it is restored say, is not destroyed by whoever may delete
/// its group, whatever protects it from being purged.
#[test]
fn a_vault_whose_files_are_gone_is_given_up_by_the_operator_alone() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut body = vault_body(&managed, true, json!([]));
    body["properties"]["enablePurgeProtection"] = json!(true);
    let kv = format!("{VAULT}/kv1");
    client.ok(&format!("PUT {kv}"), Some(&body));
    let vaults = managed.host.state().join("vaults");
    let database = vaults.join("kv1/vault.db");
    let aside = database.with_extension("aside");
    std::fs::rename(&database, &aside).unwrap();

    for line in [format!("GET {kv}"), format!("DELETE {kv}")] {
        let answer = client.ask(&line, None);
        assert_eq!((answer.status, answer.code()), (404, "VaultNotFound"));
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(!message.contains('/'), "{message}");
    }
    let refused = client.refused("DELETE ~/resourceGroups/rg", None);
    assert_eq!(refused, (409, "ResourceGroupDeletionBlocked".into()));
    for command in ["keyvault purge kv1 --yes", "keyvault delete kv1 --yes"] {
        managed.host.refused_with("Conflict", command);
    }
    std::fs::rename(&aside, &database).unwrap();
    let shown = client.ok(&format!("GET {kv}"), None);
    assert_eq!(shown["properties"]["enablePurgeProtection"], true);

    std::fs::rename(&database, &aside).unwrap();
    managed.host.ok("keyvault delete kv1 --force --yes");
    assert!(!vaults.join("kv1").exists());
    let left: Vec<_> = std::fs::read_dir(&vaults)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains(".lost-kv1-"))
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].join("master.key").exists() && left[0].join("vault.aside").exists());
}
