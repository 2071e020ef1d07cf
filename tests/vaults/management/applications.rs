//! `az ad sp create-for-rbac`, and what else az does with applications: who may, and what it leaves.

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::vaults::group;

const APPS: &str = "/v1.0/applications";
const PRINCIPALS: &str = "/v1.0/servicePrincipals";
const READER: &str = "acdd72a7-3385-48ef-bd42-f606fba81ae7";

/// What az asks for with a password; its answer.
fn add_password(client: &Client<'_>, of: &str) -> Value {
    let body = json!({"passwordCredential": {
        "displayName": "rbac", "startDateTime": "2026-01-01T00:00:00Z", "endDateTime": "2999-01-01T00:00:00Z",
    }});
    client.ok(&format!("POST {of}/addPassword"), Some(&body))
}

/// All that `az ad sp create-for-rbac --name NAME` asks for; the service principal and its password.
fn create_for_rbac(client: &Client<'_>, name: &str) -> (Value, String) {
    let found = client.ok(
        &format!("GET {PRINCIPALS}?$filter=displayName%20eq%20%27{name}%27"),
        None,
    );
    let known = client.ok(
        &format!("GET {APPS}?$filter=startswith%28displayName%2C%27{name}%27%29"),
        None,
    );
    let mut known = known["value"].as_array().unwrap().iter();
    let app = match known.find(|app| app["displayName"] == name) {
        Some(app) => {
            let path = format!("{APPS}/{}", app["id"].as_str().unwrap());
            let patched = client.ask(
                &format!("PATCH {path}"),
                Some(&json!({"displayName": name})),
            );
            assert_eq!(patched.status, 204, "{patched:?}");
            client.ok(&format!("GET {path}"), None)
        }
        None => {
            let body = json!({"displayName": name, "keyCredentials": []});
            client.ok(&format!("POST {APPS}"), Some(&body))
        }
    };
    let path = format!("{APPS}/{}", app["id"].as_str().unwrap());
    remove_passwords(client, &path, &app);
    let password = add_password(client, &path);
    let principal = match found["value"].as_array().unwrap().first() {
        Some(found) => found.clone(),
        None => {
            let body = json!({"appId": app["appId"], "accountEnabled": true});
            client.ok(&format!("POST {PRINCIPALS}"), Some(&body))
        }
    };
    (principal, password["secretText"].as_str().unwrap().into())
}

fn remove_passwords(client: &Client<'_>, path: &str, shown: &Value) {
    for password in shown["passwordCredentials"].as_array().unwrap() {
        let body = json!({"keyId": password["keyId"]});
        let removed = client.ask(&format!("POST {path}/removePassword"), Some(&body));
        assert_eq!(removed.status, 204, "{removed:?}");
    }
}

/// Whether somebody logs in with that password.
fn logs_in(managed: &Managed, principal: &Value, password: &str) -> bool {
    let id = principal["appId"].as_str().unwrap();
    managed.login(id, password, &managed.base()).status == 200
}

/// A role by the command line, whose words have no spaces in them.
fn grant(managed: &Managed, name: &str, role: &str, scope: &str) {
    let role = role.replace(' ', "\u{a0}");
    managed.host.ok(&format!(
        "role assignment create --assignee {name} --role {role} {scope}"
    ));
}

fn filtered(client: &Client<'_>, field: &str, principal: &Value) -> Value {
    let app = principal["appId"].as_str().unwrap();
    let line = match field {
        "appId" => format!("GET {APPS}?$filter=appId%20eq%20%27{app}%27"),
        _ => format!("GET {PRINCIPALS}?$filter={field}%2Fany%28c%3Ac%20eq%20%27{app}%27%29"),
    };
    client.ok(&line, None)["value"].clone()
}

#[test]
fn a_service_principal_is_made_with_a_password_and_a_role() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let (made, first) = create_for_rbac(&owner, "pipeline");
    assert_eq!(made["displayName"], "pipeline");
    assert_eq!(made["servicePrincipalType"], "Application");
    let scope = format!("{}/resourceGroups/rg", managed.subscription());
    let role = format!("/providers/Microsoft.Authorization/roleDefinitions/{READER}");
    let body = json!({"properties": {
        "roleDefinitionId": role, "principalId": made["id"], "principalType": "ServicePrincipal",
    }});
    let name = "00000000-0000-0000-0000-000000000001";
    owner.ok(
        &format!("PUT {scope}/providers/Microsoft.Authorization/roleAssignments/{name}"),
        Some(&body),
    );

    let id = made["appId"].as_str().unwrap();
    let login = managed.login(id, &first, &managed.base());
    assert_eq!(login.status, 200, "{login:?}");
    let pipeline = Client {
        managed: &managed,
        token: login.body["access_token"].as_str().unwrap().into(),
    };
    pipeline.ok(&format!("GET {scope}"), None);
    let (status, code) = pipeline.refused(&format!("POST {APPS}"), Some(&json!({})));
    assert_eq!((status, code.as_str()), (403, "AuthorizationFailed"));
    // It gives itself no other password either.
    let own = format!("{PRINCIPALS}/{}", made["id"].as_str().unwrap());
    let (status, _) = pipeline.refused(&format!("POST {own}/addPassword"), None);
    assert_eq!(status, 403);

    // Once more, it is the same one with another password.
    let (again, second) = create_for_rbac(&owner, "pipeline");
    assert_eq!(again["id"], made["id"]);
    assert!(!logs_in(&managed, &made, &first) && logs_in(&managed, &made, &second));
    // `az ad sp show` and `credential reset`, which with --append wants two.
    let shown = filtered(&owner, "servicePrincipalNames", &made)[0].clone();
    let told = &shown["passwordCredentials"];
    assert_eq!(told.as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(told[0]["endDateTime"], "2999-01-01T00:00:00Z");
    assert!(!shown.to_string().contains(&second), "{shown}");
    let (status, code) = owner.refused(&format!("POST {own}/addPassword"), None);
    assert_eq!((status, code.as_str()), (409, "Conflict"));
    remove_passwords(&owner, &own, &shown);
    assert!(!logs_in(&managed, &made, &second));
    let third = add_password(&owner, &own)["secretText"].clone();
    assert!(logs_in(&managed, &made, third.as_str().unwrap()));

    // `az ad sp delete`: what it was granted goes too.
    let deleted = owner.ask(&format!("DELETE {own}"), None);
    assert_eq!(deleted.status, 204, "{deleted:?}");
    assert_eq!(owner.ask(&format!("DELETE {own}"), None).status, 404);
    assert!(!logs_in(&managed, &made, third.as_str().unwrap()));
    for field in ["servicePrincipalNames", "appId"] {
        assert_eq!(filtered(&owner, field, &made), json!([]), "{field}");
    }
    let roles = managed.host.json("role assignment list");
    assert!(!roles.to_string().contains(name), "{roles}");

    let log = managed.host.text("audit list --last 1000 -o json");
    let admin = managed.admin.object_id.as_str();
    for (operation, times) in [
        ("ApplicationCreate", 1),
        ("ApplicationAddPassword", 3),
        ("ApplicationRemovePassword", 2),
        ("ApplicationDelete", 1),
    ] {
        let records = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = records.filter(|record: &Value| {
            record["operation"] == operation
                && record["caller"] == admin
                && record["outcome"] == "allowed"
        });
        assert_eq!(done.count(), times, "{operation}: {log}");
    }
    // Nor is it said that the operator of the host has done it.
    for operation in ["IdentityResetSecret", "IdentityDeleteSecret"] {
        let of_it =
            |line: &&str| line.contains(operation) && line.contains(made["id"].as_str().unwrap());
        assert_eq!(log.lines().find(of_it), None);
    }
    for secret in [&first, &second] {
        assert!(!log.contains(secret.as_str()), "{log}");
    }
}

#[test]
fn who_may_only_write_identities_makes_no_passwords() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    group(&owner);
    let (made, password) = create_for_rbac(&owner, "pipeline");
    let path = format!("{APPS}/{}", made["id"].as_str().unwrap());
    let key = owner.ok(&format!("GET {path}"), None)["passwordCredentials"][0]["keyId"].clone();
    let in_group = format!("--scope {}/resourceGroups/rg", managed.subscription());
    for (name, role, scope) in [
        ("contributor", "Contributor", ""),
        ("identities", "Managed Identity Contributor", ""),
        ("reader", "Reader", ""),
        ("local", "Owner", in_group.as_str()),
    ] {
        let user = managed.user(name);
        grant(&managed, name, role, scope);
        let client = managed.client(&user);
        for (line, body) in [
            (format!("POST {APPS}"), json!({"displayName": "other"})),
            (format!("POST {path}/addPassword"), json!({})),
            (format!("POST {path}/removePassword"), json!({"keyId": key})),
            (format!("PATCH {path}"), json!({"displayName": "other"})),
            (format!("DELETE {path}"), Value::Null),
            (
                format!("POST {PRINCIPALS}"),
                json!({"appId": made["appId"]}),
            ),
        ] {
            let (status, code) = client.refused(&line, Some(&body));
            let told = (status, code.as_str());
            assert_eq!(told, (403, "AuthorizationFailed"), "{name}: {line}");
        }
    }
    assert!(logs_in(&managed, &made, &password));
    // Who may grant any role may do it.
    let user = managed.user("granter");
    grant(&managed, "granter", "User Access Administrator", "");
    let granter = managed.client(&user);
    let (again, _) = create_for_rbac(&granter, "pipeline");
    assert_eq!(again["id"], made["id"]);
    assert_eq!(granter.ask(&format!("DELETE {path}"), None).status, 204);
}

#[test]
fn identities_that_are_no_applications_keep_their_secrets() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let admin = &managed.admin;
    for path in [APPS, PRINCIPALS] {
        let path = format!("{path}/{}", admin.object_id);
        for line in [
            format!("POST {path}/addPassword"),
            format!("POST {path}/removePassword"),
            format!("PATCH {path}"),
            format!("DELETE {path}"),
        ] {
            let (status, _) = owner.refused(&line, Some(&json!({})));
            assert_eq!(status, 400, "{line}");
        }
    }
    for name in ["admin", "ADMIN"] {
        let (status, code) =
            owner.refused(&format!("POST {APPS}"), Some(&json!({"displayName": name})));
        assert_eq!((status, code.as_str()), (409, "Conflict"), "{name}");
    }
    let body = json!({"appId": admin.client_id});
    let (status, _) = owner.refused(&format!("POST {PRINCIPALS}"), Some(&body));
    assert_eq!(status, 400);
    assert_eq!(owner.ok(&format!("GET {APPS}"), None)["value"], json!([]));
    let all = owner.ok(&format!("GET {PRINCIPALS}"), None)["value"].clone();
    assert_eq!(all[0]["id"], admin.object_id.as_str());
    assert_eq!(all[0]["servicePrincipalType"], "ManagedIdentity");
    // Nobody without a role reads the whole directory.
    let nobody = managed.client(&managed.user("nobody"));
    for path in [APPS, PRINCIPALS] {
        let (status, _) = nobody.refused(&format!("GET {path}"), None);
        assert_eq!(status, 403, "{path}");
    }
    managed.client(admin);
}

/// Whoever has no role here sees itself alone, however it asks.
#[test]
fn who_has_no_role_sees_nobody_else() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    let (made, _) = create_for_rbac(&owner, "pipeline");
    let (id, app) = (
        made["id"].as_str().unwrap(),
        made["appId"].as_str().unwrap(),
    );
    let user = managed.user("somebody");
    let client = managed.client(&user);
    let by_id = format!("GET {PRINCIPALS}/{id}");
    let by_name = format!("GET {PRINCIPALS}?$filter=displayName%20eq%20%27pipeline%27");
    let by_app = format!("GET {PRINCIPALS}?$filter=appId%20eq%20%27{app}%27");
    let ids = json!({"ids": [id, user.object_id]});
    let several = |client: &Client<'_>| {
        let found = client.ok("POST /v1.0/directoryObjects/getByIds", Some(&ids));
        found["value"].as_array().unwrap().len()
    };
    assert_eq!(client.refused(&by_id, None).0, 404);
    for line in [&by_name, &by_app] {
        assert_eq!(client.ok(line, None)["value"], json!([]), "{line}");
    }
    assert_eq!(several(&client), 1);
    client.ok(&format!("GET {PRINCIPALS}/{}", user.object_id), None);
    // Whoever has one sees who the others are, as az needs it to show assignments.
    managed.host.ok("disk create d --size 1MiB");
    let scope = format!("--scope {}/resourceGroups/default", managed.subscription());
    grant(&managed, "somebody", "Reader", &scope);
    let client = managed.client(&user);
    assert_eq!(several(&client), 2);
    let shown = client.ok(&by_id, None);
    assert_eq!(shown["displayName"], "pipeline");
    assert_eq!(
        shown["passwordCredentials"],
        json!([]),
        "of the subscription's"
    );
    let shown = owner.ok(&by_id, None);
    assert_eq!(shown["passwordCredentials"].as_array().unwrap().len(), 1);
}

#[test]
fn what_an_application_does_not_have_is_refused() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    for (body, code) in [
        (json!({}), "Request_BadRequest"),
        (
            json!({"displayName": "x".repeat(129)}),
            "Request_BadRequest",
        ),
        (json!({"displayName": "a b"}), "InvalidParameter"),
        (
            json!({"displayName": "certified", "keyCredentials": [{"key": "MII"}]}),
            "FeatureNotOffered",
        ),
        (
            json!({"displayName": "web", "web": {"redirectUris": ["https://h"]}}),
            "FeatureNotOffered",
        ),
    ] {
        let (status, told) = owner.refused(&format!("POST {APPS}"), Some(&body));
        assert_eq!((status, told.as_str()), (400, code), "{body}");
    }
    assert_eq!(owner.ok(&format!("GET {APPS}"), None)["value"], json!([]));
    let (made, password) = create_for_rbac(&owner, "pipeline");
    let path = format!("{APPS}/{}", made["id"].as_str().unwrap());
    for (method, body) in [
        ("PATCH", json!({"displayName": "other"})),
        ("PATCH", json!({"keyCredentials": [{"key": "MII"}]})),
        ("PATCH", json!({"accountEnabled": false})),
    ] {
        let (status, code) = owner.refused(&format!("{method} {path}"), Some(&body));
        assert_eq!(
            (status, code.as_str()),
            (400, "FeatureNotOffered"),
            "{body}"
        );
    }
    for (name, time) in [
        ("endDateTime", "2020-01-01T00:00:00Z"),
        ("endDateTime", "tomorrow"),
        ("startDateTime", "2999-01-01T00:00:00Z"),
    ] {
        let body = json!({"passwordCredential": {name: time}});
        let (status, _) = owner.refused(&format!("POST {path}/addPassword"), Some(&body));
        assert_eq!(status, 400, "{name} {time}");
    }
    let wrong = json!({"keyId": made["id"]});
    let (status, _) = owner.refused(&format!("POST {path}/removePassword"), Some(&wrong));
    assert_eq!(status, 400);
    // A lock keeps what there is as it is.
    managed.host.ok("lock create frozen --lock-type ReadOnly");
    for line in [format!("POST {APPS}"), format!("DELETE {path}")] {
        let body = json!({"displayName": "other"});
        let (status, code) = owner.refused(&line, Some(&body));
        assert_eq!((status, code.as_str()), (409, "ScopeLocked"), "{line}");
    }
    assert!(logs_in(&managed, &made, &password));
}
