//! Clouds, logins and tokens, groups, and what is not there.

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};

use super::client::Managed;

#[test]
fn a_cloud_is_discovered_and_a_service_principal_logs_in() {
    let managed = Managed::new();
    let base = managed.base();
    let cloud = managed.raw("GET", "//metadata/endpoints?api-version=2022-09-01", "", "");
    assert_eq!(cloud.body["resourceManager"], base.as_str());
    assert_eq!(
        cloud.body["authentication"]["loginEndpoint"],
        format!("{base}/adfs")
    );
    let port = managed.served.address.port();
    assert_eq!(
        cloud.body["suffixes"]["keyVaultDns"],
        format!("vault.localhost:{port}")
    );
    let config = managed.raw("GET", "/adfs/.well-known/openid-configuration", "", "");
    assert_eq!(
        config.body["token_endpoint"],
        format!("{base}/adfs/oauth2/v2.0/token")
    );

    let admin = &managed.admin;
    let wrong = managed.login(&admin.client_id, "bad", &base);
    assert_eq!(
        (wrong.status, &wrong.body["error"]),
        (401, &json!("invalid_client"))
    );
    assert!(wrong.body["message"].is_string() && wrong.body["statusCode"] == 401);
    let other = managed.user("other");
    let mixed = managed.login(&other.client_id, &admin.secret, &base);
    assert_eq!(mixed.status, 401, "the secret of another");
    let far = managed.login(&admin.client_id, &admin.secret, "https://elsewhere.example");
    assert_eq!(far.body["error"], "invalid_resource");
    let body = "grant_type=implicit&client_id=x&username=u&password=p";
    let answer = managed.raw("POST", "/adfs/oauth2/v2.0/token", "", body);
    assert_eq!(answer.body["error"], "unsupported_grant_type");

    let client = managed.client(admin);
    let subscriptions = client.ok("GET /subscriptions", None);
    let only = &subscriptions["value"][0];
    assert_eq!(only["id"], managed.subscription().as_str());
    assert_eq!(only["tenantId"], managed.tenant());
    // Who may do nothing sees nothing.
    let nobody = managed.client(&other);
    assert_eq!(nobody.ok("GET /subscriptions", None)["value"], json!([]));
    assert_eq!(
        nobody.refused("GET ~/resourceGroups/default", None),
        (403, "AuthorizationFailed".into())
    );
}

/// A client that is configured for something else is told so, and a token is good for what it was asked for.
#[test]
fn a_token_is_of_this_tenant_and_for_one_service() {
    let managed = Managed::new();
    let (base, admin) = (managed.base(), &managed.admin);
    let body = |resource: &str| {
        let (id, secret) = (&admin.client_id, &admin.secret);
        format!(
            "client_id={id}&grant_type=client_credentials&client_secret={secret}&resource={resource}"
        )
    };
    let ours = managed.tenant().to_ascii_uppercase();
    for tenant in ["adfs", "common", &ours, &format!("adfs/{ours}")] {
        let answer = managed.raw("POST", &format!("/{tenant}/oauth2/token"), "", &body(&base));
        assert_eq!(answer.status, 200, "{tenant}: {answer:?}");
    }
    for tenant in [
        "00000000-0000-0000-0000-000000000000",
        "adfs/x",
        "a.example",
    ] {
        let token = format!("/{tenant}/oauth2/v2.0/token");
        let refused = managed.raw("POST", &token, "", &body(&base));
        assert_eq!(refused.status, 400, "{tenant}: {refused:?}");
        assert_eq!(refused.body["error_codes"], json!([90002]), "{tenant}");
        let config = format!("/{tenant}/.well-known/openid-configuration");
        assert_eq!(managed.raw("GET", &config, "", "").status, 400, "{tenant}");
    }
    let far = managed.raw("POST", "/adfs/oauth2/token", "", &body("https://x.example"));
    let why = far.body["message"].as_str().unwrap();
    assert!(
        why.contains("https://localhost") && why.contains("https://vault.localhost"),
        "{why}"
    );

    let graph = managed.token(admin, "https://graph.microsoft.com");
    let header = format!("Authorization: Bearer {graph}\r\n");
    let refused = managed.raw("GET", "/subscriptions?api-version=2022-12-01", &header, "");
    assert_eq!(
        (refused.status, refused.code()),
        (401, "InvalidAuthenticationTokenAudience")
    );
    let known = managed.raw("GET", "/v1.0/servicePrincipals", &header, "");
    assert_eq!(known.status, 200, "{known:?}");
}

/// Anybody can verify a token by the keys that are published.
#[test]
fn tokens_are_verified_by_the_published_keys() {
    let managed = Managed::new();
    let config = managed.raw("GET", "/adfs/.well-known/openid-configuration", "", "");
    let uri = config.body["jwks_uri"].as_str().unwrap();
    let path = uri.strip_prefix(&managed.base()).unwrap();
    let keys: JwkSet = serde_json::from_value(managed.raw("GET", path, "", "").body).unwrap();
    let token = managed.token(&managed.admin, &managed.base());
    let kid = decode_header(&token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.validate_aud = false;
    let claims = decode::<Value>(&token, &key, &validation).unwrap().claims;
    assert_eq!(claims["oid"], managed.admin.object_id.as_str());
}

#[test]
fn only_a_token_for_the_api_of_somebody_who_is_there_is_taken() {
    let managed = Managed::new();
    let path = "/subscriptions?api-version=2022-12-01";
    let ask = |token: &str| {
        managed.raw(
            "GET",
            path,
            &format!("Authorization: Bearer {token}\r\n"),
            "",
        )
    };
    let none = managed.raw("GET", path, "", "");
    assert_eq!((none.status, none.code()), (401, "AuthenticationFailed"));
    let challenge = none.header("www-authenticate").unwrap_or_default();
    assert!(
        challenge.contains(&format!("{}/adfs", managed.base())),
        "{none:?}"
    );
    assert_eq!(ask("nonsense").code(), "InvalidAuthenticationToken");
    let for_vaults = managed.token(&managed.admin, &managed.served.resource());
    let wrong = ask(&for_vaults);
    assert_eq!(
        (wrong.status, wrong.code()),
        (401, "InvalidAuthenticationTokenAudience")
    );
    // And the other way round.
    managed.host.ok("keyvault create myvault");
    let for_api = managed.token(&managed.admin, &managed.base());
    let vault = managed.served.host_of("myvault");
    let mut connection = crate::azure::client::Connection::open(&managed.served).unwrap();
    let answer = connection.ask(&vault, &for_api, "GET /keys", None).unwrap();
    assert_eq!(answer.status, 401, "{answer:?}");

    let gone = managed.user("gone");
    let token = managed.token(&gone, "https://management.azure.com");
    assert_eq!(ask(&token).status, 200);
    managed.host.ok("identity delete gone --yes");
    let refused = ask(&token);
    assert_eq!(
        (refused.status, refused.code()),
        (401, "InvalidAuthenticationToken")
    );
}

#[test]
fn groups_are_made_shown_and_deleted_in_any_case() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let body = json!({"location": "local", "tags": {"a": "b"}});
    let made = client.ask("PUT ~/resourcegroups/rg1", Some(&body));
    assert_eq!(made.status, 201);
    assert_eq!(
        made.body["id"],
        format!("{}/resourceGroups/rg1", managed.subscription())
    );
    assert_eq!(
        client.ask("PUT ~/resourcegroups/RG1", Some(&body)).status,
        200
    );
    assert_eq!(client.ask("HEAD ~/resourceGroups/Rg1", None).status, 204);
    assert_eq!(client.ask("HEAD ~/resourceGroups/rg2", None).status, 404);
    let all = client.ok("GET ~/resourceGroups", None);
    let names: Vec<_> = all["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["name"])
        .collect();
    assert_eq!(names, ["default", "rg1"]);
    let tagged = client.ok("GET ~/resourceGroups?$filter=tagName%20eq%20'a'", None);
    assert_eq!(tagged["value"].as_array().unwrap().len(), 1);
    for (line, body, refusal) in [
        (
            "GET ~/resourceGroups/rg2",
            None,
            (404, "ResourceGroupNotFound"),
        ),
        (
            "PUT ~/resourceGroups/rg2",
            Some(json!({})),
            (400, "LocationRequired"),
        ),
        (
            "PUT ~/resourceGroups/rg2",
            Some(json!({"location": "westeurope"})),
            (400, "LocationNotAvailableForResourceGroup"),
        ),
        (
            "PUT ~/resourceGroups/rg1",
            Some(json!({"location": "westeurope"})),
            (409, "InvalidResourceGroupLocation"),
        ),
        (
            "PUT ~/resourceGroups/a%20b",
            Some(json!({"location": "local"})),
            (400, "InvalidResourceGroup"),
        ),
        (
            "PUT ~/resourceGroups/a%2Fb",
            Some(json!({"location": "local"})),
            (400, "InvalidRequestUri"),
        ),
        ("DELETE ~/resourceGroups/default", None, (409, "Conflict")),
        (
            "DELETE ~/resourceGroups/rg2",
            None,
            (404, "ResourceGroupNotFound"),
        ),
        (
            "GET /subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups",
            None,
            (404, "SubscriptionNotFound"),
        ),
        ("GET ~/nonsense", None, (404, "NotFound")),
        (
            "GET ~/resources?$filter=nonsense",
            None,
            (400, "InvalidFilterInQueryString"),
        ),
        (
            "GET ~/resources?$filter=sku%20eq%20'x'",
            None,
            (400, "InvalidFilterInQueryString"),
        ),
        (
            "GET ~/providers/Microsoft.Nothing",
            None,
            (404, "InvalidResourceNamespace"),
        ),
        (
            "PUT ~/resourcegroups/rg1/providers/Microsoft.Resources/templateSpecs/t",
            Some(json!({})),
            (404, "InvalidResourceType"),
        ),
        (
            "PUT ~/providers/Microsoft.Resources/deployments/d",
            Some(json!({})),
            (404, "InvalidResourceType"),
        ),
    ] {
        let (status, code) = client.refused(line, body.as_ref());
        assert_eq!((status, code.as_str()), refusal, "{line}");
    }
    let no_version = managed.raw(
        "GET",
        "/subscriptions",
        &format!("Authorization: Bearer {}\r\n", client.token),
        "",
    );
    assert_eq!(no_version.code(), "MissingApiVersionParameter");
    let registered = client.ok("POST ~/providers/microsoft.compute/register", None);
    assert_eq!(registered["registrationState"], "Registered");
    client.ok("DELETE ~/resourceGroups/rg1", None);
    assert_eq!(client.ask("HEAD ~/resourceGroups/rg1", None).status, 404);
}

#[test]
fn who_has_seen_another_state_of_a_group_changes_nothing() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let line = "PUT ~/resourceGroups/rg1";
    let body = json!({"location": "local", "tags": {"a": "b"}});
    let none = client.ask_with(line, "If-Match: *\r\n", Some(&body));
    assert_eq!(none.status, 412, "{none:?}");
    client.ok(line, Some(&json!({"location": "local"})));
    let seen = client.ask("GET ~/resourceGroups/rg1", None);
    let etag = format!("If-Match: {}\r\n", seen.header("etag").unwrap());
    assert_eq!(client.ask_with(line, &etag, Some(&body)).status, 200);
    let stale = client.ask_with(line, &etag, Some(&json!({"location": "local", "tags": {}})));
    assert_eq!((stale.status, stale.code()), (412, "PreconditionFailed"));
    let now = client.ok("GET ~/resourceGroups/rg1", None);
    assert_eq!(now["tags"], body["tags"]);
}

#[test]
fn who_may_see_nothing_is_not_told_which_names_there_are() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let (body, vault) = (
        json!({"location": "local"}),
        "~/resourceGroups/rg1/providers/Microsoft.KeyVault/vaults/kv1",
    );
    client.ok("PUT ~/resourceGroups/rg1", Some(&body));
    client.ok(&format!("PUT {vault}"), Some(&body));
    client.ok(&format!("DELETE {vault}"), None);
    let nobody = managed.client(&managed.user("nobody"));
    for below in ["resources", "providers/Microsoft.Compute/disks"] {
        for name in ["rg1", "rg2"] {
            let refusal = nobody.refused(&format!("GET ~/resourceGroups/{name}/{below}"), None);
            assert_eq!(
                refusal,
                (403, "AuthorizationFailed".into()),
                "{name}/{below}"
            );
        }
    }
    let deleted = "GET ~/providers/Microsoft.KeyVault/locations/local/deletedVaults";
    let told = |name: &str| {
        let answer = nobody.ask(&format!("{deleted}/{name}"), None);
        assert_eq!(answer.status, 403, "{answer:?}");
        answer.body.to_string().replace(name, "")
    };
    assert_eq!(told("kv1"), told("kv2"));
    // Who has a role at something in a group sees that.
    managed.host.ok("disk create d --size 1MiB");
    let somebody = managed.user("somebody");
    let id = client.ok("GET ~/resources?$filter=name%20eq%20'd'", None)["value"][0]["id"].clone();
    managed.host.ok(&format!(
        "role assignment create --assignee somebody --role Reader --scope {}",
        id.as_str().unwrap()
    ));
    let seen = managed
        .client(&somebody)
        .ok("GET ~/resourceGroups/default/resources", None);
    assert_eq!(seen["value"][0]["id"], id);
}

#[test]
fn graph_tells_who_somebody_is() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    let ask = |path: &str, body: &str| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        managed.raw(
            method,
            path,
            &format!("Authorization: Bearer {}\r\n", client.token),
            body,
        )
    };
    assert_eq!(ask("/v1.0/me", "").status, 400);
    let filter =
        "/v1.0/servicePrincipals?$filter=servicePrincipalNames%2Fany%28c%3Ac%20eq%20%27NAME%27%29";
    let admin = &managed.admin;
    for name in ["systemAssignedIdentity", &admin.client_id] {
        let found = ask(&filter.replace("NAME", name), "");
        assert_eq!(
            found.body["value"][0]["id"],
            admin.object_id.as_str(),
            "{found:?}"
        );
    }
    let none = ask(&filter.replace("NAME", "nobody"), "");
    assert_eq!(none.body["value"], json!([]));
    let ids = json!({"ids": [admin.object_id, "00000000-0000-0000-0000-000000000001", "x"], "types": ["user"]});
    let found = ask("/v1.0/directoryObjects/getByIds", &ids.to_string());
    assert_eq!(found.body["value"].as_array().unwrap().len(), 1);
    assert_eq!(ask("/v1.0/users", "").body["value"], json!([]));
    assert_eq!(ask("/v1.0/devices", "").status, 404);
}
