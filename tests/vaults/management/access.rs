//! Roles: who may do what, over the API and with the keys of vaults.

use serde_json::{Value, json};

use super::client::Managed;
use super::vaults::{VAULT, ask_vault, group, vault_body, vault_with_key};

const OWNER: &str = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635";
pub const CONTRIBUTOR: &str = "b24988ac-6180-42a0-ab88-20f7382dd24c";
pub const OFFICER: &str = "14b46e9e-c2b7-41b4-b07b-48a6ebf60603";

pub fn assignment(role: &str, principal: &str) -> Value {
    json!({"properties": {
        "roleDefinitionId": format!("/subscriptions/x/providers/Microsoft.Authorization/roleDefinitions/{role}"),
        "principalId": principal,
        "principalType": "ServicePrincipal",
    }})
}

pub fn line(method: &str, scope: &str, number: u32) -> String {
    format!(
        "{method} {scope}/providers/Microsoft.Authorization/roleAssignments/00000000-0000-0000-0000-{number:012}"
    )
}

#[test]
fn a_role_holds_at_its_scope_and_below() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    let client = managed.client(&bob);
    for name in ["rg", "rg2"] {
        owner.ok(
            &format!("PUT ~/resourcegroups/{name}"),
            Some(&json!({"location": "local"})),
        );
    }
    let disk =
        |group: &str| format!("~/resourceGroups/{group}/providers/Microsoft.Compute/disks/d");
    let body = json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }});
    assert_eq!(
        client
            .refused(&format!("PUT {}", disk("rg")), Some(&body))
            .0,
        403
    );
    let made = owner.ask(
        &line("PUT", "~/resourceGroups/RG", 1),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    assert_eq!(made.status, 201, "{made:?}");
    client.ok(&format!("PUT {}", disk("rg")), Some(&body));
    let refused = client.refused(&format!("PUT {}", disk("rg2")), Some(&body));
    assert_eq!(
        refused,
        (403, "AuthorizationFailed".into()),
        "another group"
    );
    assert_eq!(
        client.ok("GET /subscriptions", None)["value"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let groups = client.ok("GET ~/resourceGroups", None);
    assert_eq!(
        groups["value"].as_array().unwrap().len(),
        1,
        "others are not seen"
    );
    // A contributor grants nobody anything, and the audit log says who was refused.
    let grant = line("PUT", "~/resourceGroups/rg", 2);
    let refused = client.refused(&grant, Some(&assignment(OWNER, &bob.object_id)));
    assert_eq!(refused, (403, "AuthorizationFailed".into()));

    for (number, body, refusal) in [
        (
            1,
            assignment(OWNER, &bob.object_id),
            (409, "RoleAssignmentUpdateNotPermitted"),
        ),
        (
            3,
            assignment(CONTRIBUTOR, &bob.object_id),
            (409, "RoleAssignmentExists"),
        ),
        (
            3,
            assignment("00000000-0000-0000-0000-000000000000", &bob.object_id),
            (400, "RoleDefinitionDoesNotExist"),
        ),
        (
            3,
            assignment(OWNER, "00000000-0000-0000-0000-000000000001"),
            (400, "PrincipalNotFound"),
        ),
        (3, assignment(OWNER, "bob"), (400, "InvalidPrincipalId")),
        (3, json!({}), (400, "InvalidParameter")),
    ] {
        let (status, code) =
            owner.refused(&line("PUT", "~/resourceGroups/rg", number), Some(&body));
        assert_eq!((status, code.as_str()), refusal, "{body}");
    }
    let again = owner.ask(
        &line("PUT", "~/resourceGroups/rg", 1),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    assert_eq!(again.status, 200, "a retried create");
    let at =
        "~/resourceGroups/rg/providers/Microsoft.Authorization/roleAssignments?$filter=atScope()";
    let listed = owner.ok(&format!("GET {at}"), None);
    assert_eq!(listed["value"].as_array().unwrap().len(), 2, "{listed}");
    let named =
        "~/providers/Microsoft.Authorization/roleDefinitions?$filter=roleName%20eq%20'Reader'";
    let found = owner.ok(&format!("GET {named}"), None);
    assert_eq!(found["value"][0]["properties"]["roleName"], "Reader");
    let shown = managed.host.json("role assignment list").to_string();
    assert!(
        shown.contains("bob") && shown.contains("Contributor"),
        "{shown}"
    );

    owner.ok(&line("DELETE", "~/resourceGroups/rg", 1), None);
    assert_eq!(
        owner
            .ask(&line("DELETE", "~/resourceGroups/rg", 1), None)
            .status,
        204
    );
    assert_eq!(client.refused(&format!("GET {}", disk("rg")), None).0, 403);
}

#[test]
fn roles_govern_the_keys_of_a_vault() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    owner.ok(
        &format!("PUT {VAULT}/kv1"),
        Some(&vault_body(&managed, true, json!([]))),
    );
    let key = json!({"kty": "RSA"});
    let create = || {
        ask_vault(
            &managed,
            &managed.admin,
            "kv1",
            "POST /keys/k/create",
            Some(&key),
        )
    };
    assert_eq!(create().status, 403, "an owner has no key role");
    let scope = &format!("{VAULT}/kv1");
    let body = assignment(OFFICER, &managed.admin.object_id);
    owner.ok(&line("PUT", scope, 1), Some(&body));
    assert_eq!(create().status, 200);
    // A new vault below an older assignment follows it too.
    let bob = managed.user("bob");
    owner.ok(
        &line("PUT", "~/resourceGroups/rg", 2),
        Some(&assignment(OFFICER, &bob.object_id)),
    );
    owner.ok(
        &format!("PUT {VAULT}/kv2"),
        Some(&vault_body(&managed, true, json!([]))),
    );
    for vault in ["kv1", "kv2"] {
        assert_eq!(
            ask_vault(&managed, &bob, vault, "GET /keys", None).status,
            200,
            "{vault}"
        );
    }
    // The command line does not overrule roles.
    let refused = managed.host.refused(&format!(
        "keyvault set-policy kv1 --object-id {} --key-permissions all",
        bob.object_id
    ));
    assert!(refused.contains("role assignment create"), "{refused}");
    owner.ok(&line("DELETE", "~/resourceGroups/rg", 2), None);
    assert_eq!(
        ask_vault(&managed, &bob, "kv1", "GET /keys", None).status,
        403
    );
    // One that goes takes its roles along.
    managed
        .host
        .ok("role assignment create --assignee bob --role Owner");
    managed.host.ok("identity delete bob --yes");
    let left = managed.host.json("role assignment list");
    assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
}

#[test]
fn identities_are_those_of_the_command_line() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let id = "~/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1";
    let body = json!({"location": "local"});
    let made = client.ask(&format!("PUT {id}"), Some(&body));
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(client.ask(&format!("PUT {id}"), Some(&body)).status, 200);
    let shown = managed.host.json("identity show id1");
    assert_eq!(shown["principalId"], made.body["properties"]["principalId"]);
    let admin = client.ok(
        &format!(
            "GET {}",
            id.replace("/rg/", "/default/").replace("id1", "admin")
        ),
        None,
    );
    assert_eq!(
        admin["properties"]["clientId"],
        managed.admin.client_id.as_str()
    );
    client.ok(&format!("DELETE {id}"), None);
    let all = managed.host.json("identity list").to_string();
    assert!(!all.contains("id1"), "{all}");
}

/// A contributor of the group `rg`, who has nothing in `rg2` and in `default`.
#[test]
fn a_contributor_of_a_group_gets_nothing_of_another_by_a_detour() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    let client = managed.client(&bob);
    for name in ["rg", "rg2"] {
        owner.ok(
            &format!("PUT ~/resourcegroups/{name}"),
            Some(&json!({"location": "local"})),
        );
    }
    let line_of = |number| line("PUT", "~/resourceGroups/rg", number);
    let made = owner.ask(&line_of(1), Some(&assignment(CONTRIBUTOR, &bob.object_id)));
    assert_eq!(made.status, 201);

    // A vault of the command line that is deleted softly stays whose it was.
    managed.host.ok("keyvault create cliv");
    managed.host.ok("keyvault delete cliv --yes");
    let tenant = owner.ok("GET /tenants", None)["value"][0]["tenantId"].clone();
    let recover = json!({"location": "local", "properties": {
        "tenantId": tenant, "sku": {"name": "standard", "family": "A"}, "createMode": "recover",
        "enableRbacAuthorization": false, "accessPolicies": [
            {"tenantId": tenant, "objectId": bob.object_id, "permissions": {"keys": ["all"]}},
        ],
    }});
    let vault = |group: &str, name: &str| {
        format!("~/resourceGroups/{group}/providers/Microsoft.KeyVault/vaults/{name}")
    };
    let (status, code) = client.refused(&format!("PUT {}", vault("rg", "cliv")), Some(&recover));
    assert_eq!((status, code.as_str()), (409, "Conflict"));

    // What governs a vault is for those who write roles.
    let own = json!({"location": "local", "properties": {
        "tenantId": tenant, "sku": {"name": "standard", "family": "A"}, "accessPolicies": [],
        "enableRbacAuthorization": true,
    }});
    client.ok(&format!("PUT {}", vault("rg", "bobs")), Some(&own));
    let switched = json!({"properties": {"enableRbacAuthorization": false}});
    let line_of_vault = format!("PATCH {}", vault("rg", "bobs"));
    let refused = client.refused(&line_of_vault, Some(&switched));
    assert_eq!(refused, (403, "AuthorizationFailed".into()));
    owner.ok(&line_of_vault, Some(&switched));

    // A set of a key keeps its vault from being deleted, so it takes a right there.
    let key = vault_with_key(&managed, &owner, "kv1");
    let set = "~/resourceGroups/rg2/providers/Microsoft.Compute/diskEncryptionSets/s";
    let body = json!({"location": "local", "identity": {"type": "SystemAssigned"}, "properties": {
        "activeKey": {"keyUrl": key},
    }});
    let carol = managed.user("carol");
    let made = owner.ask(
        &line("PUT", "~/resourceGroups/rg2", 3),
        Some(&assignment(CONTRIBUTOR, &carol.object_id)),
    );
    assert_eq!(made.status, 201);
    let refused = managed
        .client(&carol)
        .refused(&format!("PUT {set}"), Some(&body));
    assert_eq!(refused, (403, "LinkedAuthorizationFailed".into()));
    owner.ok(&format!("PUT {set}"), Some(&body));
    let platform = json!({"location": "local", "identity": {"type": "SystemAssigned"}, "properties": {
        "activeKey": {"keyUrl": "https://platform.vault.localhost/keys/platform-key"},
    }});
    assert_eq!(
        owner.refused(&format!("PUT {set}2"), Some(&platform)).0,
        400
    );

    // An identity goes with its roles, which is for those who take roles away.
    let identities =
        "~/resourceGroups/default/providers/Microsoft.ManagedIdentity/userAssignedIdentities";
    let made = owner.ask(
        &line("PUT", "~/resourceGroups/default", 4),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    assert_eq!(made.status, 201);
    let refused = client.refused(&format!("DELETE {identities}/bob"), None);
    assert_eq!(refused.0, 403, "{refused:?}");
}

/// Whoever had a role at something that is deleted has none at what is made in its place.
#[test]
fn a_role_goes_with_its_scope() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let bob = managed.user("bob");
    let client = managed.client(&bob);
    let group = "~/resourcegroups/rg";
    let made = || owner.ok(&format!("PUT {group}"), Some(&json!({"location": "local"})));
    made();
    let role = owner.ask(
        &line("PUT", "~/resourceGroups/rg", 1),
        Some(&assignment(CONTRIBUTOR, &bob.object_id)),
    );
    assert_eq!(role.status, 201);
    client.ok(&format!("GET {group}"), None);
    owner.ok(&format!("DELETE {group}"), None);
    made();
    assert_eq!(client.refused(&format!("GET {group}"), None).0, 403);
}
