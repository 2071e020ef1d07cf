//! Deployments of templates, as az sends them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::vaults::{SET, VAULT, group, vault_with_key};
use crate::azure::client::{Answer, Connection};

pub const DEPLOYMENTS: &str = "~/resourceGroups/rg/providers/Microsoft.Resources/deployments";
pub const DISKS: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks";
const CONTRIBUTOR: &str = "b24988ac-6180-42a0-ab88-20f7382dd24c";
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The template of a disk encryption set, as it is documented.
pub const SET_TEMPLATE: &str = include_str!("set-template.json");

/// A request as az makes it: the file of the template is in it as it is, behind a name without quotes.
pub fn request(template: &str, parameters: &Value) -> String {
    let values = parameters.as_object().unwrap().iter();
    let values: serde_json::Map<String, Value> = values
        .map(|(name, value)| (name.clone(), json!({"value": value})))
        .collect();
    let values = Value::Object(values);
    format!(
        r#"{{"properties": {{"parameters": {values}, "mode": "Incremental", template:{template}}}}}"#
    )
}

/// Sends a body as it is.
pub fn send(client: &Client<'_>, line: &str, body: &str) -> Answer {
    let (method, path) = line.split_once(' ').unwrap();
    let path = path.replacen('~', &client.managed.subscription(), 1);
    let headers = format!("Authorization: Bearer {}\r\n", client.token);
    let path = format!("{path}?api-version=2025-04-01");
    client.managed.raw(method, &path, &headers, body)
}

pub fn deploy(client: &Client<'_>, name: &str, template: &Value, parameters: &Value) -> Answer {
    let body = request(&template.to_string(), parameters);
    send(client, &format!("PUT {DEPLOYMENTS}/{name}"), &body)
}

/// Waits for a deployment that goes on.
pub fn ended(client: &Client<'_>, name: &str) -> Value {
    let begun = Instant::now();
    loop {
        let body = client.ok(&format!("GET {DEPLOYMENTS}/{name}"), None);
        if body["properties"]["provisioningState"] != "Running" {
            return body;
        }
        assert!(begun.elapsed() < PATIENCE, "{body}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn disk(name: &str) -> Value {
    json!({
        "type": "Microsoft.Compute/disks", "apiVersion": "2025-01-02", "name": name,
        "location": "[resourceGroup().location]",
        "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 1},
    })
}

fn grant(client: &Client<'_>, number: u32, principal: &str) {
    let role =
        format!("/subscriptions/x/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}");
    let body = json!({"properties": {"roleDefinitionId": role, "principalId": principal}});
    let at = "~/resourceGroups/rg/providers/Microsoft.Authorization/roleAssignments";
    client.ok(
        &format!("PUT {at}/00000000-0000-0000-0000-{number:012}"),
        Some(&body),
    );
}

#[test]
fn the_documented_template_makes_a_set_and_again_changes_nothing() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let vault = VAULT.replacen('~', &managed.subscription(), 1) + "/kv1";
    let parameters = json!({
        "diskEncryptionSetName": "des1", "keyVaultId": vault, "keyVaultKeyUrl": key, "region": "local",
    });
    let body = request(SET_TEMPLATE, &parameters);
    let validated = send(&client, &format!("POST {DEPLOYMENTS}/des/validate"), &body);
    assert_eq!(validated.status, 200, "{validated:?}");
    let set = SET.replacen('~', &managed.subscription(), 1) + "/des1";
    assert_eq!(
        validated.body["properties"]["validatedResources"],
        json!([{"id": set}])
    );
    assert_eq!(client.refused(&format!("GET {SET}/des1"), None).0, 404);
    assert_eq!(
        client.refused(&format!("GET {DEPLOYMENTS}/des"), None).1,
        "DeploymentNotFound"
    );
    assert_eq!(
        client.ask(&format!("HEAD {DEPLOYMENTS}/des"), None).status,
        404
    );

    let line = &format!("PUT {DEPLOYMENTS}/des");
    let made = send(&client, line, &body);
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["properties"]["provisioningState"], "Succeeded");
    let principal = client.ok(&format!("GET {SET}/des1"), None)["identity"]["principalId"].clone();
    assert_eq!(
        made.body["properties"]["outputs"]["principalId"]["value"],
        principal
    );
    assert_eq!(
        made.body["properties"]["outputResources"],
        json!([{"id": set}])
    );
    let again = send(&client, line, &body);
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(
        again.body["properties"]["outputs"]["principalId"]["value"],
        principal
    );

    let shown = client.ok(&format!("GET {DEPLOYMENTS}/DES"), None);
    assert_eq!(shown, again.body);
    assert_eq!(
        shown["properties"]["parameters"]["region"],
        json!({"type": "String", "value": "local"})
    );
    let listed = client.ok(&format!("GET {DEPLOYMENTS}"), None);
    assert_eq!(listed["value"], json!([shown]));
    let failed = client.ok(
        &format!("GET {DEPLOYMENTS}?$filter=provisioningState%20eq%20'Failed'"),
        None,
    );
    assert_eq!(failed["value"], json!([]));
    let exported = client.ok(&format!("POST {DEPLOYMENTS}/des/exportTemplate"), None);
    assert_eq!(
        exported["template"]["resources"][0]["type"],
        "Microsoft.Compute/diskEncryptionSets"
    );
    let (status, code) = client.refused(&format!("POST {DEPLOYMENTS}/des/cancel"), None);
    assert_eq!(
        (status, code.as_str()),
        (409, "DeploymentCannotBeCancelled")
    );
    for status in [204, 204] {
        assert_eq!(
            client
                .ask(&format!("DELETE {DEPLOYMENTS}/des"), None)
                .status,
            status
        );
    }
    client.ok(&format!("GET {SET}/des1"), None);
}

/// Vault, key, set, role, disk and identity, each from what the one before has become.
fn everything(managed: &Managed) -> Value {
    let service = "e147488a-f6f5-4113-8e2d-b22465e65bf6";
    let vault = "[resourceId('Microsoft.KeyVault/vaults', 'kv9')]";
    json!({
        "variables": {"set": "[resourceId('Microsoft.Compute/diskEncryptionSets', 'des9')]"},
        "resources": [
            {
                "type": "Microsoft.Compute/disks", "apiVersion": "2025-01-02", "name": "d9", "location": "local",
                "dependsOn": ["[extensionResourceId(resourceId('Microsoft.KeyVault/vaults', 'kv9'), \
                               'Microsoft.Authorization/roleAssignments', guid('kv9', 'des9'))]"],
                "properties": {
                    "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
                    "encryption": {"diskEncryptionSetId": "[variables('set')]"},
                },
            },
            {
                "type": "Microsoft.Authorization/roleAssignments", "apiVersion": "2022-04-01",
                "name": "[guid('kv9', 'des9')]", "scope": vault, "dependsOn": [vault],
                "properties": {
                    "roleDefinitionId":
                        format!("[subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '{service}')]"),
                    "principalId": "[reference(variables('set'), '2025-01-02', 'full').identity.principalId]",
                    "principalType": "ServicePrincipal",
                },
            },
            {
                "type": "Microsoft.Compute/diskEncryptionSets", "apiVersion": "2025-01-02", "name": "des9",
                "location": "local", "identity": {"type": "SystemAssigned"},
                "properties": {"activeKey": {
                    "keyUrl": "[reference(resourceId('Microsoft.KeyVault/vaults/keys', 'kv9', 'k')).keyUriWithVersion]",
                    "sourceVault": {"id": vault},
                }},
            },
            {
                "type": "Microsoft.KeyVault/vaults/keys", "apiVersion": "2023-07-01", "name": "kv9/k",
                "location": "local", "dependsOn": [vault],
                "properties": {"kty": "RSA", "keySize": 2048, "keyOps": ["wrapKey", "unwrapKey"]},
            },
            {
                "type": "Microsoft.KeyVault/vaults", "apiVersion": "2023-07-01", "name": "kv9", "location": "local",
                "properties": {
                    "tenantId": managed.tenant(), "sku": {"name": "standard", "family": "A"},
                    "enableRbacAuthorization": true,
                },
            },
            {
                "type": "Microsoft.ManagedIdentity/userAssignedIdentities", "apiVersion": "2023-01-31",
                "name": "id9", "location": "local",
            },
        ],
        "outputs": {
            "url": {"type": "string", "value": "[reference('kv9').vaultUri]"},
            "state": {"type": "string", "value": "[reference('d9').diskState]"},
        },
    })
}

#[test]
fn a_template_makes_all_of_it_in_the_order_of_its_references() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let template = everything(&managed);
    for round in 0..2 {
        deploy(&client, "all", &template, &json!({}));
        let body = ended(&client, "all");
        let properties = &body["properties"];
        assert_eq!(properties["provisioningState"], "Succeeded", "{body}");
        let vault = format!("https://{}/", managed.served.host_of("kv9"));
        assert_eq!(properties["outputs"]["url"]["value"], vault.as_str());
        assert_eq!(properties["outputs"]["state"]["value"], "Unattached");
        assert_eq!(
            properties["outputResources"].as_array().unwrap().len(),
            6,
            "{round}"
        );
    }
    let made = client.ok(&format!("GET {DISKS}/d9"), None);
    let set = SET.replacen('~', &managed.subscription(), 1) + "/des9";
    assert_eq!(
        made["properties"]["encryption"]["diskEncryptionSetId"],
        set.as_str()
    );
    assert_eq!(managed.host.json("disk list").as_array().unwrap().len(), 1);
    let keys = client.ok(&format!("GET {VAULT}/kv9/keys"), None);
    assert_eq!(keys["value"].as_array().unwrap().len(), 1, "{keys}");
    let steps = client.ok(&format!("GET {DEPLOYMENTS}/all/operations"), None);
    let steps = steps["value"].as_array().unwrap().clone();
    assert_eq!(steps.len(), 6);
    let listed = client.ok("GET ~/resourcegroups/rg/deployments/all/operations", None);
    assert_eq!(listed["value"], json!(steps), "as az asks");
    let id = steps[0]["operationId"].as_str().unwrap();
    assert_eq!(
        client.ok(&format!("GET {DEPLOYMENTS}/all/operations/{id}"), None),
        steps[0]
    );
}

#[test]
fn what_cannot_be_deployed_is_refused_before_anything_is_made() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut first = disk("d1");
    first["dependsOn"] = json!(["d2"]);
    let mut second = disk("d2");
    second["dependsOn"] = json!(["d1"]);
    let mut unknown = disk("d1");
    unknown["properties"]["diskSizeGB"] = json!("[nonsense(1)]");
    let mut other = disk("d1");
    other["type"] = json!("Microsoft.Compute/virtualMachines");
    let nested = json!({"type": "Microsoft.Resources/deployments", "apiVersion": "2025-04-01", "name": "n",
        "properties": {"mode": "Incremental", "template": {}}});
    for (resources, code, said) in [
        (
            json!([first, second]),
            "InvalidTemplate",
            "Circular dependency",
        ),
        (
            json!([unknown]),
            "InvalidTemplate",
            "'nonsense' is not valid",
        ),
        (
            json!([other]),
            "InvalidTemplateDeployment",
            "virtualMachines",
        ),
        (
            json!([nested]),
            "InvalidTemplateDeployment",
            "within a deployment",
        ),
    ] {
        let body = request(&json!({"resources": resources}).to_string(), &json!({}));
        for line in [
            format!("POST {DEPLOYMENTS}/d/validate"),
            format!("PUT {DEPLOYMENTS}/d"),
        ] {
            let answer = send(&client, &line, &body);
            assert_eq!((answer.status, answer.code()), (400, code), "{answer:?}");
            let message = answer.body["error"]["message"].as_str().unwrap();
            assert!(message.contains(said), "{message}");
        }
    }
    let complete = request("{}", &json!({})).replace("Incremental", "Complete");
    let line = format!("PUT {DEPLOYMENTS}/d");
    assert_eq!(send(&client, &line, &complete).code(), "FeatureNotOffered");
    assert_eq!(
        send(&client, &line, "{template:").code(),
        "InvalidRequestContent"
    );
    let long = format!("PUT {DEPLOYMENTS}/{}", "d".repeat(65));
    assert_eq!(
        send(&client, &long, &complete).code(),
        "InvalidDeploymentName"
    );
    let nowhere = "PUT ~/resourceGroups/no/providers/Microsoft.Resources/deployments/d";
    assert_eq!(
        send(&client, nowhere, &complete).code(),
        "ResourceGroupNotFound"
    );
    // As much as Azure takes.
    let large = format!("{{/* {} */ \"resources\": []}}", "a".repeat(3 << 20));
    let validate = format!("POST {DEPLOYMENTS}/d/validate");
    let validated = send(&client, &validate, &request(&large, &json!({})));
    assert_eq!(validated.status, 200, "{}", validated.body);
    // What is announced is not even read.
    let mut connection = Connection::open(&managed.served).unwrap();
    let path = line.replacen('~', &managed.subscription(), 1);
    let head = format!(
        "{path}?api-version=2025-04-01 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        managed.authority(),
        client.token,
        10 << 20
    );
    connection.write(head.as_bytes()).unwrap();
    let large = connection.read().unwrap();
    assert_eq!(large.status, 413, "{large:?}");
    assert!(large.body["error"]["message"].is_string(), "{large:?}");
    assert_eq!(
        client.ok(&format!("GET {DEPLOYMENTS}"), None)["value"],
        json!([])
    );
    assert_eq!(managed.host.json("disk list"), json!([]));
}

#[test]
fn a_template_does_nothing_that_whoever_deploys_may_not_do() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let bob = managed.user("bob");
    let client = managed.client(&bob);
    let one = json!({"resources": [disk("d1")]});
    assert_eq!(deploy(&client, "d", &one, &json!({})).status, 403);
    assert_eq!(client.refused(&format!("GET {DEPLOYMENTS}"), None).0, 403);
    grant(&owner, 1, &bob.object_id);
    let owner_role = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635";
    let elevated = json!({"resources": [disk("d2"), {
        "type": "Microsoft.Authorization/roleAssignments", "apiVersion": "2022-04-01", "name": "[guid('me')]",
        "properties": {"principalId": bob.object_id, "roleDefinitionId":
            format!("[subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '{owner_role}')]")},
    }]});
    let refused = deploy(&client, "d", &elevated, &json!({}));
    assert_eq!(
        (refused.status, refused.code()),
        (403, "InvalidTemplateDeployment"),
        "{refused:?}"
    );
    assert_eq!(
        refused.body["error"]["details"][0]["code"],
        "AuthorizationFailed"
    );
    assert_eq!(managed.host.json("disk list"), json!([]));
    // A key that only others may use, and the state of what only others may read.
    let key = vault_with_key(&managed, &owner, "kv1");
    owner.ok(
        "PUT ~/resourcegroups/rg2",
        Some(&json!({"location": "local"})),
    );
    let vault = VAULT
        .replacen('~', &managed.subscription(), 1)
        .replace("/rg/", "/rg2/")
        + "/kv2";
    let theirs = json!({"location": "local", "properties": {"tenantId": managed.tenant(),
        "sku": {"name": "standard"}}});
    owner.ok(&format!("PUT {vault}"), Some(&theirs));
    let peeking = json!({"resources": [disk("d1")], "outputs": {
        "url": {"type": "string", "value": format!("[reference('{vault}', '2023-07-01').vaultUri]")}}});
    deploy(&client, "peek", &peeking, &json!({}));
    let body = ended(&client, "peek");
    assert_eq!(body["properties"]["provisioningState"], "Failed", "{body}");
    assert_eq!(
        body["properties"]["error"]["details"][0]["code"], "AuthorizationFailed",
        "{body}"
    );
    assert_eq!(body["properties"]["outputs"], json!({}));
    let set = json!({"resources": [{
        "type": "Microsoft.Compute/diskEncryptionSets", "apiVersion": "2025-01-02", "name": "des1", "location": "local",
        "properties": {"activeKey": {"keyUrl": key.replace("kv1", "kv2")}},
    }]});
    deploy(&client, "set", &set, &json!({}));
    let body = ended(&client, "set");
    assert_eq!(
        body["properties"]["error"]["details"][0]["code"], "LinkedAuthorizationFailed",
        "{body}"
    );
}

#[test]
fn deployments_are_listed_by_pages() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    for name in ["x1", "x2", "x3"] {
        deploy(&client, name, &json!({"resources": []}), &json!({}));
        ended(&client, name);
    }
    let mut path = format!("{DEPLOYMENTS}?$top=2");
    let mut names = Vec::new();
    for _ in 0..2 {
        let page = client.ok(&format!("GET {path}"), None);
        let found = page["value"].as_array().unwrap().iter();
        names.extend(found.map(|one| one["name"].as_str().unwrap().to_owned()));
        let next = page["nextLink"].as_str().unwrap_or_default();
        path = next.replacen(&managed.base(), "", 1);
    }
    names.sort();
    assert_eq!((names.join(" ").as_str(), path.as_str()), ("x1 x2 x3", ""));
}
