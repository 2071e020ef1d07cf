//! How deployments end: by a failure, by somebody's wish, and with the server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::postgres::PostgresServer;
use test_support::{Host, Server, contains, content_of, files_below};

use super::client::{Client, Managed, serve};
use super::deployments::{DEPLOYMENTS, DISKS, PATIENCE, deploy, disk, ended};
use super::vaults::group;

#[test]
fn what_was_made_before_a_failure_stays_and_is_told() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut bad = disk("d2");
    bad["dependsOn"] = json!(["d1"]);
    bad["properties"]["encryption"] = json!({"diskEncryptionSetId": "[resourceId('Microsoft.Compute/diskEncryptionSets', 'none')]"});
    let mut after = disk("d3");
    after["dependsOn"] = json!(["d2"]);
    let template = json!({"resources": [after, bad, disk("d1")]});
    let answer = deploy(&client, "d", &template, &json!({}));
    assert_eq!(answer.status, 201, "{answer:?}");
    let url = answer.header("azure-asyncoperation").unwrap().to_owned();
    assert_eq!(answer.header("retry-after"), Some("1"));
    let body = ended(&client, "d");
    let properties = &body["properties"];
    assert_eq!(properties["provisioningState"], "Failed");
    let id = |name: &str| format!("{}/{name}", DISKS.replacen('~', &managed.subscription(), 1));
    assert_eq!(properties["outputResources"], json!([{"id": id("d1")}]));
    let error = &properties["error"];
    assert_eq!(error["code"], "DeploymentFailed");
    assert_eq!(error["details"][0]["code"], "ResourceNotFound", "{error}");
    assert_eq!(error["details"][0]["target"], id("d2").as_str());
    let path = url.split_once(&managed.base()).unwrap().1;
    let (path, query) = path.split_once('?').unwrap();
    assert!(query.starts_with("api-version="), "{url}");
    let polled = client.ok(&format!("GET {path}"), None);
    assert_eq!(
        (&polled["status"], &polled["error"]),
        (&json!("Failed"), error)
    );
    client.ok(&format!("GET {DISKS}/d1"), None);
    assert_eq!(client.refused(&format!("GET {DISKS}/d3"), None).0, 404);
    let steps = client.ok(&format!("GET {DEPLOYMENTS}/d/operations"), None);
    let states: Vec<_> = steps["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| {
            step["properties"]["provisioningState"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(states, ["Failed", "Succeeded"]);
    // Once the reason is gone, the same goes through.
    let template = json!({"resources": [disk("d1"), disk("d2")]});
    assert_eq!(deploy(&client, "d", &template, &json!({})).status, 200);
    assert_eq!(
        ended(&client, "d")["properties"]["provisioningState"],
        "Succeeded"
    );
}

/// The files of the installation that have a text in them, but those of disks, which are ciphertext.
fn files_with(managed: &Managed, text: &str) -> Vec<String> {
    let disks = managed.host.disks();
    let files = files_below(&managed.host.state()).into_iter();
    files
        .filter(|file| !file.starts_with(&disks))
        .filter(|file| contains(&content_of(file), text.as_bytes()))
        .map(|file| file.display().to_string())
        .collect()
}

#[test]
fn secure_parameters_are_kept_nowhere_and_told_to_nobody() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    // The last two are the first one in base64, and that as locations are written.
    let secrets = [
        "given-5f1c",
        "nested-5f1c",
        "default-5f1c",
        "Z2l2ZW4tNWYxYw",
        "z2l2zw4tnwyxyw",
    ];
    let mut failing = disk("d2");
    failing["location"] = json!("[base64(parameters('given'))]");
    failing["dependsOn"] = json!(["d1"]);
    let template = json!({
        "parameters": {
            "given": {"type": "securestring"}, "object": {"type": "secureObject"},
            "unsaid": {"type": "securestring", "defaultValue": secrets[2]},
            "open": {"type": "string", "defaultValue": "[concat(parameters('given'), 'open-5f1d')]"},
            "fails": {"type": "bool"},
        },
        "variables": {"made": "[parameters('given')]"},
        "resources": [disk("d1"), failing],
        "outputs": {
            "said": {"type": "string", "value": "[parameters('given')]"},
            "coded": {"type": "string", "value": "[base64(variables('made'))]"},
            "more": {"type": "object", "value": "[parameters('object')]"},
            "last": {"type": "securestring", "value": "[parameters('unsaid')]"},
        },
    });
    let mut good = template.clone();
    good["resources"] = json!([disk("d1")]);
    for (name, template, state) in [("bad", &template, "Failed"), ("good", &good, "Succeeded")] {
        let values = json!({"given": secrets[0], "object": {"a": [secrets[1]]}, "fails": true});
        let put = deploy(&client, name, template, &values);
        let body = ended(&client, name);
        assert_eq!(body["properties"]["provisioningState"], state, "{body}");
        let steps = client.ok(&format!("GET {DEPLOYMENTS}/{name}/operations"), None);
        let exported = client.ok(&format!("POST {DEPLOYMENTS}/{name}/exportTemplate"), None);
        assert!(
            exported["template"]["parameters"]["given"].is_object(),
            "{exported}"
        );
        let told = format!("{put:?} {body} {steps} {exported}");
        for secret in secrets {
            assert!(!told.contains(secret), "{secret}: {told}");
        }
    }
    for secret in secrets {
        assert_eq!(
            files_with(&managed, secret),
            Vec::<String>::new(),
            "{secret}"
        );
    }
    assert!(
        !files_with(&managed, "Microsoft.Resources/deployments").is_empty(),
        "files are read"
    );
    // A name is in ids and logs, so it is made with none.
    let mut named = template.clone();
    named["resources"] = json!([disk("[parameters('given')]")]);
    let values = json!({"given": secrets[0], "object": {}, "fails": true});
    let refused = deploy(&client, "named", &named, &values);
    assert_eq!((refused.status, refused.code()), (400, "InvalidTemplate"));
    assert!(!refused.body.to_string().contains("5f1c"), "{refused:?}");
    let log = managed.host.text("audit list --last 1000 -o json");
    assert!(!log.contains("5f1c"), "{log}");
}

/// Whoever may read deployments may not read by them the disks that they import.
#[test]
fn signatures_of_urls_are_kept_nowhere_and_told_to_nobody() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let id = "00000000-0000-0000-0000-000000000001";
    let url = |signature: &str| {
        let base = managed.base();
        format!("{base}/sas/{id}.vhd?si={id}&sig={signature}")
    };
    let signatures = ["literal-5f1e", "default-5f1e", "given-5f1e"];
    let [literal, default, given] = signatures.map(url);
    let mut import = disk("d1");
    import["properties"]["creationData"] =
        json!({"createOption": "Import", "sourceUri": literal.as_str()});
    let part = format!("[concat('{literal}', parameters('given'))]");
    let mut template = json!({
        "parameters": {
            "given": {"type": "string"}, "default": {"type": "string", "defaultValue": default},
        },
        "variables": {"part": part},
        "resources": [import],
        "outputs": {"said": {"type": "string", "value": "[parameters('given')]"}},
    });
    for (name, state) in [("bad", "Failed"), ("good", "Succeeded")] {
        let put = deploy(&client, name, &template, &json!({"given": given.as_str()}));
        let body = ended(&client, name);
        assert_eq!(body["properties"]["provisioningState"], state, "{body}");
        let steps = client.ok(&format!("GET {DEPLOYMENTS}/{name}/operations"), None);
        let exported = client.ok(&format!("POST {DEPLOYMENTS}/{name}/exportTemplate"), None);
        let told = format!("{put:?} {body} {steps} {exported}");
        assert!(told.contains("sig=REDACTED"), "{told}");
        for signature in signatures {
            assert!(!told.contains(signature), "{signature}: {told}");
            let files = files_with(&managed, signature);
            assert_eq!(files, Vec::<String>::new(), "{signature}");
        }
        template["resources"] = json!([disk("d2")]);
    }
}

/// How many resources of a deployment are made.
fn made(client: &Client<'_>, name: &str) -> usize {
    let body = client.ask(&format!("GET {DEPLOYMENTS}/{name}"), None).body;
    let made = &body["properties"]["outputResources"];
    made.as_array().map_or(0, Vec::len)
}

/// Deploys so many disks, and kills the server when some of them are there; another one is there then.
fn killed(managed: &mut Managed, name: &str, template: &Value, parameters: &Value) {
    killed_while(managed, name, template, parameters);
    managed.served = serve(&managed.host);
}

fn killed_while(managed: &Managed, name: &str, template: &Value, parameters: &Value) {
    let client = managed.client(&managed.admin);
    std::thread::scope(|scope| {
        let client = &client;
        let put = scope.spawn(move || {
            let _cut_off = catch_unwind(AssertUnwindSafe(|| {
                deploy(client, name, template, parameters)
            }));
        });
        let begun = Instant::now();
        while made(client, name) < 3 {
            assert!(begun.elapsed() < PATIENCE);
        }
        kill_process(managed.served.pid(), Signal::KILL).unwrap();
        put.join().unwrap();
    });
}

#[test]
fn a_deployment_goes_on_after_the_server_was_killed() {
    let mut managed = Managed::new();
    group(&managed.client(&managed.admin));
    let mut many = disk("[concat('d', copyIndex())]");
    many["copy"] = json!({"name": "disks", "count": 100});
    many["tags"] = json!({"id": "[parameters('id')]"});
    let template = json!({
        "parameters": {"id": {"type": "string", "defaultValue": "[newGuid()]"}},
        "resources": [many],
        "outputs": {"id": {"type": "string", "value": "[parameters('id')]"}},
    });
    killed(&mut managed, "many", &template, &json!({}));
    let client = managed.client(&managed.admin);
    let body = ended(&client, "many");
    assert_eq!(
        body["properties"]["provisioningState"], "Succeeded",
        "{body}"
    );
    assert_eq!(
        body["properties"]["outputResources"]
            .as_array()
            .unwrap()
            .len(),
        100
    );
    let id = &body["properties"]["outputs"]["id"]["value"];
    let listed = client.ok(&format!("GET {DISKS}"), None);
    let listed = listed["value"].as_array().unwrap();
    assert_eq!(listed.len(), 100);
    assert!(
        listed.iter().all(|disk| disk["tags"]["id"] == *id),
        "one id, before and after"
    );
}

/// Of several servers each leaves to the others what they do, and one goes on with what another one has left.
#[test]
fn a_deployment_goes_on_at_another_server() {
    let Some(database) = PostgresServer::shared() else {
        return;
    };
    let mut host = Host::new();
    host.set_env("SEALDISK_CATALOG", &database.new_schema());
    let mut managed = Managed::on(host);
    group(&managed.client(&managed.admin));
    let mut many = disk("[concat('d', copyIndex())]");
    many["copy"] = json!({"name": "disks", "count": 40});
    many["tags"] = json!({"id": "[parameters('id')]"});
    let template = json!({
        "parameters": {"id": {"type": "string", "defaultValue": "[newGuid()]"}},
        "resources": [many],
    });
    let other = serve(&managed.host);
    killed_while(&managed, "many", &template, &json!({}));
    managed.served = other;
    let client = managed.client(&managed.admin);
    // Until it is known that the first is gone nothing else is done in its place.
    let again = deploy(&client, "many", &template, &json!({}));
    assert_eq!(
        (again.status, again.code()),
        (409, "DeploymentActive"),
        "{again:?}"
    );
    let body = ended(&client, "many");
    assert_eq!(
        body["properties"]["provisioningState"], "Succeeded",
        "{body}"
    );
    let listed = client.ok(&format!("GET {DISKS}"), None);
    let listed = listed["value"].as_array().unwrap();
    assert_eq!(listed.len(), 40);
    let id = &listed[0]["tags"]["id"];
    assert!(listed.iter().all(|disk| disk["tags"]["id"] == *id));
}

#[test]
fn a_deployment_with_secrets_ends_with_the_server() {
    let mut managed = Managed::new();
    group(&managed.client(&managed.admin));
    let mut many = disk("[concat('d', copyIndex())]");
    many["copy"] = json!({"name": "disks", "count": 100});
    let template = json!({"parameters": {"p": {"type": "securestring"}}, "resources": [many]});
    killed(&mut managed, "many", &template, &json!({"p": "hush-5f1c"}));
    let client = managed.client(&managed.admin);
    let body = client.ok(&format!("GET {DEPLOYMENTS}/many"), None);
    assert_eq!(body["properties"]["provisioningState"], "Failed", "{body}");
    assert_eq!(
        body["properties"]["error"]["code"], "OperationInterrupted",
        "{body}"
    );
    assert_eq!(files_with(&managed, "hush-5f1c"), Vec::<String>::new());
    // What was made is told, and whole.
    for made in body["properties"]["outputResources"].as_array().unwrap() {
        client.ok(&format!("GET {}", made["id"].as_str().unwrap()), None);
    }
    assert_eq!(
        client
            .ask(&format!("DELETE {DEPLOYMENTS}/many"), None)
            .status,
        204
    );
}

#[test]
fn a_deployment_that_goes_on_is_not_put_anew_and_can_be_cancelled() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    let mut many = disk("[concat('d', copyIndex())]");
    many["copy"] = json!({"name": "disks", "count": 800});
    let template = json!({"resources": [many]});
    std::thread::scope(|scope| {
        let put = scope.spawn(|| deploy(&client, "many", &template, &json!({})));
        let begun = Instant::now();
        while made(&client, "many") == 0 {
            assert!(begun.elapsed() < PATIENCE);
        }
        let again = deploy(&client, "many", &template, &json!({}));
        assert_eq!((again.status, again.code()), (409, "DeploymentActive"));
        let deleted = client.refused(&format!("DELETE {DEPLOYMENTS}/many"), None);
        assert_eq!(deleted, (409, "DeploymentActive".into()));
        let cancelled = client.ask(&format!("POST {DEPLOYMENTS}/many/cancel"), None);
        assert_eq!(cancelled.status, 204, "{cancelled:?}");
        let put = put.join().unwrap();
        assert_eq!(put.status, 201, "{put:?}");
        assert!(put.header("azure-asyncoperation").is_some(), "{put:?}");
    });
    let body = ended(&client, "many");
    assert_eq!(
        body["properties"]["provisioningState"], "Canceled",
        "{body}"
    );
    let listed = client.ok(&format!("GET {DISKS}"), None);
    assert_eq!(
        listed["value"].as_array().unwrap().len(),
        made(&client, "many")
    );
}

#[test]
fn a_deployment_ends_with_its_group_and_that_is_no_error() {
    const MOMENT: Duration = Duration::from_secs(2);
    let mut managed = Managed::new();
    let log = managed.host.file("serve.log");
    let mut command = managed.host.command("serve --listen 127.0.0.1:0 -o json");
    command.env("RUST_LOG", "info");
    command.stderr(std::fs::File::create(&log).unwrap());
    managed.served = Server::start(command);
    let client = managed.client(&managed.admin);
    group(&client);
    let mut many = disk("[concat('d', copyIndex())]");
    many["copy"] = json!({"name": "disks", "count": 800});
    let template = json!({"resources": [many]});
    std::thread::scope(|scope| {
        let put = scope.spawn(|| deploy(&client, "many", &template, &json!({})));
        let begun = Instant::now();
        while made(&client, "many") == 0 {
            assert!(begun.elapsed() < PATIENCE);
        }
        let group = "~/resourceGroups/rg";
        let deleted = client.ask(&format!("DELETE {group}"), None);
        assert!([200, 202].contains(&deleted.status), "{deleted:?}");
        while client.ask(&format!("GET {group}"), None).status != 404 {
            assert!(begun.elapsed() < PATIENCE);
        }
        put.join().unwrap();
    });
    // It ends as cancelled, or finds its group gone, a moment later.
    let told = || std::fs::read_to_string(&log).unwrap();
    let begun = Instant::now();
    while !told().contains("ended with its resource group") && begun.elapsed() < MOMENT {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!told().contains("ERROR"), "{}", told());
}
