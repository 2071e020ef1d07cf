//! What a deployment would change.

use serde_json::{Value, json};

use super::client::{Client, Managed};
use super::deployments::{DEPLOYMENTS, DISKS, SET_TEMPLATE, deploy, disk, ended, request, send};
use super::vaults::{VAULT, group, vault_with_key};
use crate::azure::client::Answer;

fn ask(client: &Client<'_>, template: &Value, parameters: &Value) -> Answer {
    let body = request(&template.to_string(), parameters);
    send(client, &format!("POST {DEPLOYMENTS}/dep/whatIf"), &body)
}

/// The changes, each with the name of its resource.
fn changes(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["status"], "Succeeded");
    let changes = answer.body["properties"]["changes"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = changes.iter().map(|change| {
        let id = text(&change["resourceId"]);
        let name = id.rsplit('/').next().unwrap().to_owned();
        (name, text(&change["changeType"]))
    });
    told.collect()
}

fn are(answer: &Answer, expected: &[(&str, &str)]) {
    let expected: Vec<(String, String)> = expected
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
        .collect();
    assert_eq!(changes(answer), expected, "{answer:?}");
}

#[test]
fn it_is_told_what_would_be_made_and_changed_and_nothing_is() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut first = disk("d1");
    first["tags"] = json!({"a": "1", "b": "2"});
    let template = json!({"resources": [first, disk("other")]});
    assert_eq!(deploy(&client, "first", &template, &json!({})).status, 201);
    ended(&client, "first");

    first["tags"] = json!({"a": "x"});
    first["properties"]["diskSizeGB"] = json!(2);
    let template = json!({"resources": [first, disk("d2")]});
    let answer = ask(&client, &template, &json!({}));
    are(
        &answer,
        &[("d1", "Modify"), ("d2", "Create"), ("other", "Ignore")],
    );
    let found = answer.body["properties"]["changes"].as_array().unwrap();
    let deltas = found[0]["delta"].as_array().unwrap().iter();
    let mut deltas: Vec<&Value> = deltas.collect();
    deltas.sort_by_key(|delta| delta["path"].as_str());
    let delta = |path: &str, kind: &str, before: Value, after: Value| {
        json!({
            "path": path, "propertyChangeType": kind, "before": before, "after": after, "children": null,
        })
    };
    assert_eq!(
        deltas,
        [
            &delta("properties.diskSizeGB", "Modify", json!(1), json!(2)),
            &delta("tags.a", "Modify", json!("1"), json!("x")),
            &delta("tags.b", "Delete", json!("2"), json!(null)),
        ]
    );
    assert_eq!(found[0]["before"]["properties"]["diskSizeGB"], 1);
    assert_eq!(found[0]["after"]["properties"]["diskSizeGB"], 2);
    assert_eq!(found[0]["after"]["properties"]["diskState"], "Unattached");
    assert_eq!(found[0]["after"]["tags"], json!({"a": "x"}));
    assert_eq!(found[1]["after"]["name"], "d2");
    assert_eq!(found[1]["before"], Value::Null);
    assert_eq!(client.refused(&format!("GET {DISKS}/d2"), None).0, 404);
    assert_eq!(
        client.refused(&format!("GET {DEPLOYMENTS}/dep"), None).0,
        404
    );
    assert_eq!(
        client.ok(&format!("GET {DISKS}/d1"), None)["tags"]["a"],
        "1"
    );

    let mut ids: Value = serde_json::from_str(
        r#"{"properties": {"mode": "Incremental", "whatIfSettings": {"resultFormat": "ResourceIdOnly"}}}"#,
    )
    .unwrap();
    ids["properties"]["template"] = template.clone();
    let line = format!("POST {DEPLOYMENTS}/dep/whatIf");
    let answer = send(&client, &line, &ids.to_string());
    are(
        &answer,
        &[("d1", "Deploy"), ("d2", "Create"), ("other", "Ignore")],
    );
    assert_eq!(
        answer.body["properties"]["changes"][0]
            .as_object()
            .unwrap()
            .len(),
        2
    );

    assert_eq!(deploy(&client, "dep", &template, &json!({})).status, 201);
    ended(&client, "dep");
    let answer = ask(&client, &template, &json!({}));
    are(
        &answer,
        &[("d1", "NoChange"), ("d2", "NoChange"), ("other", "Ignore")],
    );
}

#[test]
fn a_set_that_is_made_is_no_change() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(&managed, &client, "kv1");
    let vault = VAULT.replacen('~', &managed.subscription(), 1) + "/kv1";
    let parameters = json!({
        "diskEncryptionSetName": "des1", "keyVaultId": vault, "keyVaultKeyUrl": key, "region": "local",
    });
    let body = request(SET_TEMPLATE, &parameters);
    for (kind, status) in [("Create", 201), ("NoChange", 200)] {
        let answer = send(&client, &format!("POST {DEPLOYMENTS}/des/whatIf"), &body);
        are(&answer, &[("des1", kind), ("kv1", "Ignore")]);
        let made = send(&client, &format!("PUT {DEPLOYMENTS}/des"), &body);
        assert_eq!(made.status, status, "{made:?}");
        ended(&client, "des");
    }
}

#[test]
fn what_is_not_known_before_is_said_to_be_so_and_no_secret_is_told() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let (mut secret, mut later) = (disk("d1"), disk("d2"));
    secret["tags"] = json!({"a": "[parameters('word')]"});
    let of_first =
        "[reference(resourceId('Microsoft.Compute/disks', 'd1'), '2025-01-02').uniqueId]";
    later["tags"] = json!({"of": of_first});
    let template = json!({
        "parameters": {"word": {"type": "securestring"}},
        "resources": [secret, later],
    });
    let parameters = json!({"word": "hush-hush"});
    let answer = ask(&client, &template, &parameters);
    are(&answer, &[("d1", "Create"), ("d2", "Unsupported")]);
    let second = &answer.body["properties"]["changes"][1];
    assert!(
        second["unsupportedReason"].as_str().unwrap().contains("d2"),
        "{second}"
    );
    assert!(!answer.body.to_string().contains("hush"), "{answer:?}");
    assert!(answer.body.to_string().contains("*****"), "{answer:?}");
}

/// Whatever was done to a secret might be undone.
#[test]
fn nothing_that_is_made_with_a_secret_is_told() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut made = disk("d1");
    made["tags"] = json!({
        "coded": "[base64(parameters('word'))]", "part": "[substring(variables('of'), 1, 3)]",
        "long": "[string(length(parameters('word')))]", "open": "seen",
        "chosen": "[if(equals(parameters('word'), 'no'), 'is-no', 'is-yes')]",
    });
    let template = json!({
        "parameters": {"word": {"type": "securestring"}},
        "variables": {"of": "[toUpper(parameters('word'))]"},
        "resources": [made],
    });
    let parameters = json!({"word": "hush-hush-hush-hush"});
    let told = |answer: &Answer, kind: &str| {
        are(answer, &[("d1", kind)]);
        let told = answer.body.to_string();
        for secret in ["aHVzaC", "USH", "\"19\"", "is-yes", "hush"] {
            assert!(!told.contains(secret), "{secret}: {told}");
        }
        assert!(told.contains("seen"), "{told}");
    };
    told(&ask(&client, &template, &parameters), "Create");
    let deployed = deploy(&client, "dep", &template, &parameters);
    assert_eq!(deployed.status, 201, "{deployed:?}");
    ended(&client, "dep");
    told(&ask(&client, &template, &parameters), "NoChange");
    let other = ask(
        &client,
        &template,
        &json!({"word": "other-other-other-other-"}),
    );
    are(&other, &[("d1", "Modify")]);
    assert!(!other.body.to_string().contains("b3RoZX"), "{other:?}");
}

#[test]
fn what_a_deployment_would_refuse_is_not_promised() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut there = disk("d1");
    there["properties"]["diskSizeGB"] = json!(2);
    let template = json!({"resources": [there]});
    assert_eq!(deploy(&client, "first", &template, &json!({})).status, 201);
    ended(&client, "first");
    let change = |of: &Value, path: &str, value: Value| {
        let mut changed = of.clone();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let size = "/properties/diskSizeGB";
    let option = "/properties/creationData/createOption";
    for (resource, code) in [
        (change(&there, size, json!(1)), "ResizeDiskError"),
        (change(&there, size, json!(1 << 20)), "InvalidParameter"),
        (
            change(&disk("d2"), size, json!(1 << 20)),
            "InvalidParameter",
        ),
        (change(&disk("d2"), size, json!(0)), "InvalidParameter"),
        (
            change(&there, option, json!("Upload")),
            "PropertyChangeNotAllowed",
        ),
        (
            change(&disk("d2"), "/location", json!("elsewhere")),
            "LocationNotAvailableForResourceType",
        ),
    ] {
        let refused = ask(&client, &json!({"resources": [resource]}), &json!({}));
        assert_eq!(refused.code(), "InvalidTemplateDeployment", "{refused:?}");
        let details = &refused.body["error"]["details"];
        assert_eq!(details[0]["code"], code, "{refused:?}");
    }
    // What is not there yet is made by the same template.
    let id = format!("{DISKS}/d2").replacen('~', &managed.subscription(), 1);
    let mut copy = disk("d3");
    copy["properties"] =
        json!({"creationData": {"createOption": "Copy", "sourceResourceId": id.as_str()}});
    copy["dependsOn"] = json!(["d2"]);
    let template = json!({"resources": [disk("d2"), copy]});
    let answer = ask(&client, &template, &json!({}));
    are(
        &answer,
        &[("d2", "Create"), ("d3", "Create"), ("d1", "Ignore")],
    );
}

#[test]
fn whoever_may_not_deploy_is_told_nothing() {
    let managed = Managed::new();
    let admin = managed.client(&managed.admin);
    group(&admin);
    let reader = managed.user("reader");
    managed
        .host
        .ok("role assignment create --assignee reader --role Reader");
    let reader = managed.client(&reader);
    let template = json!({"resources": [disk("d1")]});
    let refused = ask(&reader, &template, &json!({}));
    assert_eq!(
        (refused.status, refused.code()),
        (403, "AuthorizationFailed")
    );
    let wrong = json!({"resources": [{"type": "Microsoft.No/such", "name": "x", "apiVersion": "2025-01-02"}]});
    let refused = ask(&admin, &wrong, &json!({}));
    assert_eq!(
        (refused.status, refused.code()),
        (400, "InvalidTemplateDeployment")
    );
    managed.host.ok("lock create frozen --lock-type ReadOnly");
    let refused = ask(&admin, &template, &json!({}));
    assert_eq!(
        (refused.status, refused.code()),
        (409, "InvalidTemplateDeployment")
    );
    assert_eq!(refused.body["error"]["details"][0]["code"], "ScopeLocked");
}
