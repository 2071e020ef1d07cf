//! Disk encryption sets with the identity of a user, here and in the vault of another installation.

use std::fs;

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::vaults::{SET, VAULT, group, policy, set_body, vault_body, vault_with_key};

const IDENTITY: &str =
    "~/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities";
const DISK: &str = "~/resourceGroups/rg/providers/Microsoft.Compute/disks";

/// Makes an identity of a user; its answer.
fn identity(client: &Client<'_>, name: &str) -> Value {
    client.ok(
        &format!("PUT {IDENTITY}/{name}"),
        Some(&json!({"location": "local"})),
    )
}

fn of_user(mut body: Value, identity: &Value) -> Value {
    let id = identity["id"].as_str().unwrap();
    body["identity"] = json!({"type": "UserAssigned", "userAssignedIdentities": {id: {}}});
    body
}

fn principal(identity: &Value) -> &str {
    identity["properties"]["principalId"].as_str().unwrap()
}

fn grant(managed: &Managed, client: &Client<'_>, principals: &[&str]) {
    grant_in(managed, client, "kv1", principals);
}

fn grant_in(managed: &Managed, client: &Client<'_>, vault: &str, principals: &[&str]) {
    let mut policies = vec![policy(managed, &managed.admin.object_id, &["all"])];
    for principal in principals {
        policies.push(policy(managed, principal, &["get", "wrapKey", "unwrapKey"]));
    }
    client.ok(
        &format!("PUT {VAULT}/{vault}"),
        Some(&vault_body(managed, false, json!(policies))),
    );
}

fn disk_under(client: &Client<'_>, set: &str) -> Value {
    let id = SET.replacen('~', &client.managed.subscription(), 1) + "/" + set;
    json!({"location": "local", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
        "encryption": {"diskEncryptionSetId": id},
    }})
}

#[test]
fn a_set_has_the_identity_of_a_user() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let id1 = identity(&client, "Id1");
    let des = &format!("{SET}/des1");
    let body = of_user(set_body(&client, "kv1", &key), &id1);
    let made = client.ok(&format!("PUT {des}"), Some(&body));
    assert_eq!(made["identity"]["type"], "UserAssigned");
    assert_eq!(made["identity"].get("principalId"), None);
    let shown = &made["identity"]["userAssignedIdentities"][id1["id"].as_str().unwrap()];
    assert_eq!(shown["principalId"], id1["properties"]["principalId"]);
    assert_eq!(shown["clientId"], id1["properties"]["clientId"]);
    let shown = managed.host.json("disk-encryption-set show des1");
    assert_eq!(shown["identity"]["type"], "UserAssigned");
    assert_eq!(shown["identity"]["principalId"], principal(&id1));

    // What counts is what the identity may do.
    let disk = disk_under(&client, "des1");
    let (status, code) = client.refused(&format!("PUT {DISK}/d1"), Some(&disk));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    grant(&managed, &client, &[principal(&id1)]);
    client.ok(&format!("PUT {DISK}/d1"), Some(&disk));
    // It stays while the set has it, whoever wants it gone.
    let (status, code) = client.refused(&format!("DELETE {IDENTITY}/id1"), None);
    assert_eq!((status, code.as_str()), (409, "IdentityInUse"));
    managed
        .host
        .refused_with("IdentityInUse", "identity delete Id1 --yes");

    // Another one that may use the key takes its place, and one that may not does not.
    let id2 = identity(&client, "id2");
    let other = of_user(body.clone(), &id2);
    let (status, code) = client.refused(&format!("PUT {des}"), Some(&other));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    let own = set_body(&client, "kv1", &key);
    let (status, code) = client.refused(&format!("PUT {des}"), Some(&own));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    let still = client.ok(&format!("GET {des}"), None);
    assert_eq!(still["identity"], made["identity"]);
    grant(&managed, &client, &[principal(&id1), principal(&id2)]);
    let patch = json!({"identity": other["identity"]});
    let patched = client.ok(&format!("PATCH {des}"), Some(&patch));
    let users = patched["identity"]["userAssignedIdentities"]
        .as_object()
        .unwrap();
    assert_eq!(
        users.keys().collect::<Vec<_>>(),
        [id2["id"].as_str().unwrap()]
    );
    client.ok(&format!("DELETE {IDENTITY}/id1"), None);
    managed.host.ok("disk decrypt d1");
    // Its policy taken away cuts off the disk.
    grant(&managed, &client, &[]);
    managed.host.refused_with("Forbidden", "disk decrypt d1");
    grant(&managed, &client, &[principal(&id2)]);
    client.ok(&format!("DELETE {DISK}/d1"), None);
    // To one of the set's own, which is new, and none.
    let own = client.ok(&format!("PUT {des}"), Some(&own));
    assert_eq!(own["identity"]["type"], "SystemAssigned");
    assert_ne!(own["identity"]["principalId"], principal(&id2));
    client.ok(
        &format!("PATCH {des}"),
        Some(&json!({"identity": {"type": "None"}})),
    );
    let back = client.ok(&format!("PUT {des}"), Some(&other));
    assert_eq!(back["identity"]["type"], "UserAssigned");
    client.ok(&format!("DELETE {des}"), None);
    client.ok(&format!("DELETE {IDENTITY}/id2"), None);
}

/// The DEKs of before are unwrapped in the name of the identity that takes over.
#[test]
fn an_identity_that_cannot_use_the_key_of_a_disk_does_not_take_over() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let keys = ["kv1", "kv2"].map(|vault| vault_with_key(&managed, &client, vault));
    let (id1, id2) = (identity(&client, "id1"), identity(&client, "id2"));
    grant_in(&managed, &client, "kv1", &[principal(&id1)]);
    grant_in(&managed, &client, "kv2", &[principal(&id2)]);
    let des = &format!("{SET}/des1");
    let body = |vault: &str, key: &str, id: &Value| of_user(set_body(&client, vault, key), id);
    let first = body("kv1", &keys[0], &id1);
    client.ok(&format!("PUT {des}"), Some(&first));
    let disk = disk_under(&client, "des1");
    client.ok(&format!("PUT {DISK}/d1"), Some(&disk));
    let before = client.ok(&format!("GET {des}"), None);

    let both = body("kv2", &keys[1], &id2);
    let (status, code) = client.refused(&format!("PATCH {des}"), Some(&both));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    let after = client.ok(&format!("GET {des}"), None);
    assert_eq!(after["identity"], before["identity"]);
    assert_eq!(after["properties"], before["properties"]);
    managed.host.ok("disk decrypt d1");
    // With the old key granted too both change at once.
    let granted = [principal(&id1), principal(&id2)];
    grant_in(&managed, &client, "kv1", &granted);
    let changed = client.ok(&format!("PATCH {des}"), Some(&both));
    assert_eq!(changed["properties"].get("autoKeyRotationError"), None);
    managed.host.ok("disk decrypt d1");

    // What stays under the old key, because that one refuses, is told, and not only once.
    let enable = |enabled: bool| {
        let key = "keyvault key set-attributes k --vault-name kv2 --enabled";
        managed.host.ok(&format!("{key} {enabled} --yes"));
    };
    enable(false);
    let back = body("kv1", &keys[0], &id2);
    let answer = client.ask(&format!("PATCH {des}"), Some(&back));
    assert_eq!(answer.status, 403, "{answer:?}");
    let said = answer.body["error"]["message"].as_str().unwrap();
    assert!(
        said.contains("is changed, but the disk 'd1' is still wrapped by"),
        "{said}"
    );
    let again = client.ask(&format!("PATCH {des}"), Some(&back));
    assert_eq!((again.status, again.code()), (403, answer.code()));
    let tags = json!({"tags": {"a": "b"}});
    let tagged = client.ok(&format!("PATCH {des}"), Some(&tags));
    assert_eq!(tagged["tags"], tags["tags"]);
    let error = &tagged["properties"]["autoKeyRotationError"];
    assert_eq!(error["code"], "KeyRotationIncomplete", "{tagged}");
    enable(true);
    let mended = client.ok(&format!("PATCH {des}"), Some(&back));
    assert_eq!(mended["properties"].get("autoKeyRotationError"), None);
    enable(false);
    managed.host.ok("disk decrypt d1");
}

/// Of a header that cannot be read nobody knows which keys the identity has to be granted.
#[test]
fn no_identity_takes_over_while_a_header_cannot_be_read() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let (id1, id2) = (identity(&client, "id1"), identity(&client, "id2"));
    grant(&managed, &client, &[principal(&id1), principal(&id2)]);
    let des = &format!("{SET}/des1");
    let first = of_user(set_body(&client, "kv1", &key), &id1);
    client.ok(&format!("PUT {des}"), Some(&first));
    let disk = disk_under(&client, "des1");
    client.ok(&format!("PUT {DISK}/d1"), Some(&disk));
    let before = client.ok(&format!("GET {des}"), None);

    let header = managed.host.disks().join("d1/header");
    let away = managed.host.disks().join("d1/away");
    fs::rename(&header, &away).unwrap();
    let other = json!({"identity": of_user(json!({}), &id2)["identity"]});
    for times in 1..=3 {
        let answer = client.ask(&format!("PATCH {des}"), Some(&other));
        assert_eq!(answer.status, 409, "{times}: {answer:?}");
        let said = answer.body["error"]["message"].as_str().unwrap();
        assert!(
            said.contains("the header of the disk 'd1' cannot be read"),
            "{said}"
        );
        assert!(!said.contains("/d1"), "no path: {said}");
        let after = client.ok(&format!("GET {des}"), None);
        assert_eq!(after["identity"], before["identity"], "{times}");
    }
    fs::rename(&away, &header).unwrap();
    let changed = client.ok(&format!("PATCH {des}"), Some(&other));
    assert_ne!(changed["identity"], before["identity"]);
    managed.host.ok("disk decrypt d1");
}

/// The roles of an identity are its own, not those of a set that has it.
#[test]
fn a_set_takes_no_role_of_a_user_along() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let id1 = identity(&client, "id1");
    let id2 = identity(&client, "id2");
    managed.host.ok(&format!(
        "role assignment create --assignee {} --role Reader",
        principal(&id1)
    ));
    let roles = || {
        let all = managed.host.json("role assignment list");
        let all = all.as_array().unwrap().clone();
        all.iter()
            .filter(|role| role["principalId"] == principal(&id1))
            .count()
    };
    assert_eq!(roles(), 1);
    let des = &format!("{SET}/des1");
    let body = set_body(&client, "kv1", &key);
    client.ok(&format!("PUT {des}"), Some(&of_user(body.clone(), &id1)));
    client.ok(&format!("PUT {des}"), Some(&of_user(body.clone(), &id2)));
    assert_eq!(roles(), 1);
    client.ok(&format!("PUT {des}"), Some(&of_user(body, &id1)));
    client.ok(&format!("DELETE {des}"), None);
    assert_eq!(roles(), 1);
    client.ok(&format!("DELETE {IDENTITY}/id1"), None);
    assert_eq!(roles(), 0);
}

#[test]
fn an_identity_that_cannot_be_is_refused() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let id1 = identity(&client, "id1");
    let id2 = identity(&client, "id2");
    let body = set_body(&client, "kv1", &key);
    let with = |identity: Value| {
        let mut body = body.clone();
        body["identity"] = identity;
        body
    };
    let users =
        |users: Value| with(json!({"type": "UserAssigned", "userAssignedIdentities": users}));
    let (id1, id2) = (id1["id"].as_str().unwrap(), id2["id"].as_str().unwrap());
    let federated = |mut body: Value, client: &str| {
        body["properties"]["federatedClientId"] = json!(client);
        body
    };
    let app = "0d4f3c44-8c0e-4f0b-9b5e-0c9d1f1f3c11";
    for (body, refusal) in [
        (
            with(json!({"type": "UserAssigned"})),
            (400, "InvalidParameter"),
        ),
        (users(json!({})), (400, "InvalidParameter")),
        (users(json!([])), (400, "InvalidParameter")),
        (users(json!({id1: null})), (400, "InvalidParameter")),
        (users(json!({id1: {}, id2: {}})), (400, "InvalidParameter")),
        (users(json!({"id1": {}})), (400, "InvalidParameter")),
        (
            users(json!({id1.replace("id1", "none"): {}})),
            (404, "ResourceNotFound"),
        ),
        (
            users(json!({id1.replace("/rg/", "/none/"): {}})),
            (404, "ResourceNotFound"),
        ),
        (
            users(
                json!({body["properties"]["activeKey"]["sourceVault"]["id"].as_str().unwrap(): {}}),
            ),
            (400, "InvalidParameter"),
        ),
        (
            with(
                json!({"type": "SystemAssigned, UserAssigned", "userAssignedIdentities": {id1: {}}}),
            ),
            (400, "FeatureNotOffered"),
        ),
        // A federated client is for a vault elsewhere, and trusts an identity of a user.
        (federated(body.clone(), app), (400, "InvalidParameter")),
        (
            federated(users(json!({id1: {}})), "nobody"),
            (400, "InvalidParameter"),
        ),
        (
            federated(users(json!({id1: {}})), app),
            (409, "OperationNotAllowed"),
        ),
    ] {
        let (status, code) = client.refused(&format!("PUT {SET}/des1"), Some(&body));
        assert_eq!((status, code.as_str()), refusal, "{body}");
        assert_eq!(client.refused(&format!("GET {SET}/des1"), None).0, 404);
    }
    // Whoever gives an identity to a set lets the set do what it may.
    let bob = managed.user("bob");
    client.ok(
        "PUT ~/resourcegroups/rg2",
        Some(&json!({"location": "local"})),
    );
    let elsewhere = IDENTITY.replace("/rg/", "/rg2/");
    let id3 = client.ok(
        &format!("PUT {elsewhere}/id3"),
        Some(&json!({"location": "local"})),
    );
    managed.host.ok(&format!(
        "role assignment create --assignee bob --role Contributor --scope {}/resourceGroups/rg",
        managed.subscription()
    ));
    let bobs = managed.client(&bob);
    let of_id3 = of_user(body.clone(), &id3);
    let (status, code) = bobs.refused(&format!("PUT {SET}/des1"), Some(&of_id3));
    assert_eq!((status, code.as_str()), (403, "LinkedAuthorizationFailed"));
    managed.host.ok(&format!(
        "role assignment create --assignee bob --scope {} --role {}",
        id3["id"].as_str().unwrap(),
        "f1a07417-d97a-45cb-824c-7a7467783830"
    ));
    bobs.ok(&format!("PUT {SET}/des1"), Some(&of_id3));
    // From then on he may change the set without being allowed that again.
    bobs.ok(
        &format!("PATCH {SET}/des1"),
        Some(&json!({"tags": {"a": "b"}})),
    );
}

/// The identities of the host are its operator's.
#[test]
fn who_writes_sets_acts_for_nobody_in_a_vault_elsewhere() {
    let managed = Managed::new();
    let admin = managed.client(&managed.admin);
    group(&admin);
    managed.host.ok(&format!(
        "keyvault connect far --url https://far.vault.example.net:8443 --ca-file {}",
        managed.served.ca_file.display()
    ));
    let key = vault_with_key(&managed, &admin, "kv1");
    let id1 = identity(&admin, "id1");
    let body = of_user(set_body(&admin, "kv1", &key), &id1);
    let des = &format!("{SET}/des1");
    admin.ok(&format!("PUT {des}"), Some(&body));
    // Connected or not, the answer is the same.
    for vault in ["far", "none"] {
        let url = format!("https://{vault}.vault.example.net:8443/keys/k");
        let remote = json!({"location": "local", "identity": {"type": "SystemAssigned"},
            "properties": {"activeKey": {"keyUrl": url}}});
        for (set, body) in [("des2", &remote), ("des1", &remote)] {
            let (status, code) = admin.refused(&format!("PUT {SET}/{set}"), Some(body));
            assert_eq!((status, code.as_str()), (400, "InvalidParameter"));
        }
    }
    // Who may write this set only has its identity act for no other client.
    let bob = managed.user("bob");
    managed.host.ok(&format!(
        "role assignment create --assignee bob --role Contributor --scope {}",
        des.replacen('~', &managed.subscription(), 1)
    ));
    let bob = managed.client(&bob);
    let client = "0d4f3c44-8c0e-4f0b-9b5e-0c9d1f1f3c11";
    let patch = json!({"properties": {"federatedClientId": client}});
    let (status, code) = bob.refused(&format!("PATCH {des}"), Some(&patch));
    assert_eq!((status, code.as_str()), (403, "LinkedAuthorizationFailed"));
    // Who may give the identity is told what else is wrong.
    let (status, code) = admin.refused(&format!("PATCH {des}"), Some(&patch));
    assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
}

/// Whose installation has the vault, and whose has the disks.
struct Two {
    vaults: Managed,
    disks: Managed,
    /// Object id of the identity there that acts as `app` here.
    subject: String,
    app: Value,
}

/// Two installations that know each other: the vault `kv1` of one is connected to the other.
fn two() -> Two {
    let (vaults, disks) = (Managed::new(), Managed::new());
    group(&vaults.client(&vaults.admin));
    group(&disks.client(&disks.admin));
    let subject = identity(&disks.client(&disks.admin), "disks");
    let app = vaults.host.json("identity create app");
    connect(
        &vaults,
        &disks,
        "--token-endpoint",
        "/adfs/oauth2/v2.0/token",
    );
    Two {
        subject: principal(&subject).to_owned(),
        vaults,
        disks,
        app,
    }
}

fn connect(vaults: &Managed, disks: &Managed, option: &str, path: &str) {
    disks.host.ok(&format!(
        "keyvault connect far --url https://{} --ca-file {} {option} {}{path}",
        vaults.served.host_of("kv1"),
        vaults.served.ca_file.display(),
        vaults.base(),
    ));
}

impl Two {
    /// Has `app` trust the identity of the other installation.
    fn trust(&self) {
        let trust = self.disks.host.file("trust.json");
        fs::write(&trust, self.disks.host.ok("identity trust -o json")).unwrap();
        self.vaults.host.ok(&format!(
            "identity federated-credential create theirs --identity-name app --trust {trust} --subject {}",
            self.subject
        ));
    }

    fn grant_app(&self) {
        let client = self.vaults.client(&self.vaults.admin);
        grant(
            &self.vaults,
            &client,
            &[self.app["principalId"].as_str().unwrap()],
        );
    }

    fn set_body(&self, key: &str) -> Value {
        let id = IDENTITY.replacen('~', &self.disks.subscription(), 1) + "/disks";
        json!({
            "location": "local",
            "identity": {"type": "UserAssigned", "userAssignedIdentities": {id: {}}},
            "properties": {
                "activeKey": {"keyUrl": key},
                "federatedClientId": self.app["clientId"],
            },
        })
    }
}

#[test]
fn the_key_of_a_set_is_in_another_installation_that_trusts_its_identity() {
    let two = two();
    let key = vault_with_key(&two.vaults, &two.vaults.client(&two.vaults.admin), "kv1");
    let client = two.disks.client(&two.disks.admin);
    let des = &format!("{SET}/des1");
    let body = two.set_body(&key);
    // Nobody there trusts it yet; then it is nobody who may do anything.
    let (status, code) = client.refused(&format!("PUT {des}"), Some(&body));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    assert_eq!(client.refused(&format!("GET {des}"), None).0, 404);
    two.trust();
    let made = client.ok(&format!("PUT {des}"), Some(&body));
    assert_eq!(made["properties"]["federatedClientId"], two.app["clientId"]);
    assert_eq!(made["properties"]["activeKey"]["keyUrl"], key.as_str());
    let disk = disk_under(&client, "des1");
    let (status, code) = client.refused(&format!("PUT {DISK}/d1"), Some(&disk));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    two.grant_app();
    client.ok(&format!("PUT {DISK}/d1"), Some(&disk));
    two.disks.host.ok("disk decrypt d1");
    // The owner of the vault sees who has used the key, and whose tokens were given.
    let log = two.vaults.host.text("audit list --vault kv1 -o json");
    assert!(
        log.contains(two.app["principalId"].as_str().unwrap()),
        "{log}"
    );
    let log = two.vaults.host.text("audit list -o json");
    assert!(
        log.contains("FederatedCredentialCreate") && log.contains(&two.subject),
        "{log}"
    );

    // The vault's owner decides: the permission, the trust, and the identity.
    let owner = two.vaults.client(&two.vaults.admin);
    grant(&two.vaults, &owner, &[]);
    two.disks.host.refused_with("Forbidden", "disk decrypt d1");
    two.grant_app();
    two.disks.host.ok("disk decrypt d1");
    two.vaults
        .host
        .ok("identity federated-credential delete theirs --identity-name app --yes");
    two.disks
        .host
        .refused_with("Unauthorized", "disk decrypt d1");
    two.trust();
    two.disks.host.ok("disk decrypt d1");
    two.vaults.host.ok("identity delete app --yes");
    two.disks
        .host
        .refused_with("Unauthorized", "disk decrypt d1");
}

#[test]
fn an_assertion_is_for_one_installation_identity_and_endpoint() {
    let two = two();
    two.trust();
    let ask = |client: &str, assertion: &str| {
        let body = format!(
            "grant_type=client_credentials&client_id={client}&client_assertion={assertion}&\
             client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&\
             scope=https%3A%2F%2Fvault.localhost%2F.default"
        );
        let answer = two.vaults.raw("POST", "/adfs/oauth2/v2.0/token", "", &body);
        (answer.status, answer.body["error"].clone())
    };
    let app = two.app["clientId"].as_str().unwrap();
    let refused = (401, json!("invalid_client"));
    // A token of the other installation is no assertion, and neither is one of this.
    let theirs = two.disks.token(&two.disks.admin, &two.disks.base());
    let ours = two.vaults.token(&two.vaults.admin, &two.vaults.base());
    for assertion in [
        theirs.as_str(),
        ours.as_str(),
        "",
        "a.b.c",
        &"x".repeat(9000),
    ] {
        assert_eq!(ask(app, assertion), refused, "{assertion}");
    }
    assert_eq!(ask("nobody", &theirs), refused);
    // Whoever has no assertion needs a secret, and an assertion of a kind that is known.
    let body =
        format!("grant_type=client_credentials&client_id={app}&scope=x&client_assertion=a.b.c");
    let answer = two.vaults.raw("POST", "/adfs/oauth2/v2.0/token", "", &body);
    assert_eq!(
        (answer.status, &answer.body["error"]),
        (400, &json!("invalid_request"))
    );

    // What is to be trusted is checked, and connected over TLS only.
    let host = &two.vaults.host;
    let ours = host.file("ours.json");
    fs::write(&ours, host.ok("identity trust -o json")).unwrap();
    let add = |file: &str, name: &str| {
        format!(
            "identity federated-credential create other --identity-name {name} --trust {file} --subject {}",
            two.subject
        )
    };
    host.refused_with("BadParameter", &add(&ours, "app"));
    let trust = two.disks.host.file("trust.json");
    host.refused_with("ResourceNotFound", &add(&trust, "nobody"));
    fs::write(&ours, "{}").unwrap();
    host.refused_with("InvalidArgument", &add(&ours, "app"));
    host.refused_with(
        "ResourceNotFound",
        "identity federated-credential delete none --identity-name app --yes",
    );
    let listed = host.json("identity federated-credential list --identity-name app");
    assert_eq!(listed[0]["subject"], two.subject.as_str());
    let http = format!(
        "keyvault connect far --url https://{} --token-endpoint http://localhost/token",
        two.vaults.served.host_of("kv1")
    );
    two.disks.host.refused_with("BadParameter", &http);
}
