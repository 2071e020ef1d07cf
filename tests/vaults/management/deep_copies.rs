//! Deep copies (`createOption: CopyStart`): they share nothing in the end, go on without their client and after a
//! `kill -9` of the server, and end in order.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use disks::{CloneRequest, DeepCopyRequest};
use installation::catalog::{DEFAULT_GROUP, LOCATION, OperationState, PlacementRecord, Touch};
use installation::envelope::ResourceKind;
use serde_json::{Value, json};
use test_support::{Host, noise};
use time::OffsetDateTime;
use uuid::Uuid;

use super::client::{Client, Managed};
use super::deployments::{self, DEPLOYMENTS, deploy, disk, request, send};
use super::double::{COMPUTE, ONCE, TWICE, encryption};
use super::moves::{begun, ended, eventually, killed_during, running, status, watched, with_sets};

const DISK: ResourceKind = ResourceKind::Disk;
const SNAPSHOT: ResourceKind = ResourceKind::Snapshot;

/// A kind and a name.
type Thing<'a> = (ResourceKind, &'a str);

/// An installation with the sets `once` and `twice`, the disk `d`, which is full, and its snapshot `s`.
fn with_source(host: Host) -> (Managed, Vec<u8>) {
    let (managed, _) = with_sets(host);
    let mut content = vec![0; 24 << 20];
    noise(&mut content);
    let raw = managed.host.path("full.raw");
    fs::write(&raw, &content).unwrap();
    let host = &managed.host;
    host.ok("disk delete d --yes");
    host.ok(&["disk", "create", "d", "--source", raw.to_str().unwrap()]);
    host.ok("snapshot create s --source d");
    (managed, content)
}

fn at((kind, name): Thing<'_>) -> String {
    format!("{COMPUTE}/{kind}s/{name}")
}

fn put(thing: Thing<'_>) -> String {
    format!("PUT {}", at(thing))
}

/// The body of a deep copy of `disks/d` or `snapshots/s`, say.
fn copy_of(managed: &Managed, source: &str) -> Value {
    let id = COMPUTE.replacen('~', &managed.subscription(), 1) + "/" + source;
    json!({"location": "local", "properties": {"creationData": {
        "createOption": "CopyStart", "sourceResourceId": id,
    }}})
}

/// Under a set.
fn under(managed: &Managed, mut body: Value, (kind, set): (&str, &str)) -> Value {
    let wanted = encryption(managed, kind, Some(set));
    body["properties"]["encryption"] = wanted["properties"]["encryption"].clone();
    body
}

/// Makes a deep copy of the snapshot `s` as a server does that dies right after that. Its data is copied slowly, for some
/// seconds: the same request goes on so.
fn slow(managed: &Managed, (kind, name): Thing<'_>, body: &Value, set: Option<&str>, rate: u64) {
    let installation = managed.host.installation();
    let now = Touch {
        at: OffsetDateTime::now_utc(),
        by: Uuid::nil(),
    };
    let placed = PlacementRecord {
        kind: kind.into(),
        name: name.into(),
        group: DEFAULT_GROUP.into(),
        location: LOCATION.into(),
        tags: BTreeMap::new(),
        settings: json!({"creationData": body["properties"]["creationData"]}),
        created: now,
        changed: now,
    };
    installation.catalog().put_placement(&placed).unwrap();
    let request = DeepCopyRequest {
        kind,
        request: CloneRequest {
            name: name.into(),
            source: (SNAPSHOT, "s".into()),
            size: None,
            disk_encryption_set: set.map(|set| Some(set.into())),
            sector_size: None,
            data_dir: None,
        },
        incremental: false,
        rate: Some(rate),
    };
    disks::deep_copy(&installation, &request).unwrap();
}

/// Asks until nothing is copied any more, as clients do.
fn settled(client: &Client<'_>, thing: Thing<'_>) -> Value {
    eventually("it is complete", || {
        let answer = client.ask(&format!("GET {}", at(thing)), None);
        let state = answer.body["properties"]["provisioningState"].clone();
        if state == "Succeeded" {
            return Some(answer.body);
        }
        // The second one is shown between the end of the copy and that of its operation.
        assert!(state == "Creating" || state == "Updating", "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        None
    })
}

/// Waits until a copy is in its middle.
fn in_its_middle(client: &Client<'_>, thing: Thing<'_>) {
    eventually("it is in its middle", || {
        let shown = client.ok(&format!("GET {}", at(thing)), None);
        let properties = &shown["properties"];
        assert_eq!(properties["provisioningState"], "Creating", "{shown}");
        let percent = properties["completionPercent"].as_f64()?;
        (percent > 0.0 && percent < 100.0).then_some(())
    });
}

fn content_of(host: &Host, (kind, name): Thing<'_>) -> Vec<u8> {
    if kind == DISK {
        return host.ok(&format!("disk decrypt {name}"));
    }
    host.ok(&format!("disk create of-{name} --source {name}"));
    let content = host.ok(&format!("disk decrypt of-{name}"));
    host.ok(&format!("disk delete of-{name} --yes"));
    content
}

/// Whether a copy is whole, and shares nothing with anything.
fn assert_complete(managed: &Managed, thing: Thing<'_>, content: &[u8]) -> Value {
    let (kind, name) = thing;
    let shown = settled(&managed.client(&managed.admin), thing);
    assert_eq!(shown["properties"]["completionPercent"], 100.0, "{shown}");
    let option = &shown["properties"]["creationData"]["createOption"];
    assert_eq!(option, "CopyStart", "{shown}");
    let by_hand = managed.host.json(&format!("{kind} show {name}"));
    assert_eq!(by_hand["job"], Value::Null, "{by_hand}");
    assert_eq!(by_hand["source"], Value::Null, "{by_hand}");
    let layers = by_hand["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1, "{by_hand}");
    assert_eq!(layers[0]["shared"], false, "{by_hand}");
    assert!(content_of(&managed.host, thing) == content, "{thing:?}");
    if kind == DISK {
        managed.host.is_clean(name);
    }
    shown
}

#[test]
fn a_deep_copy_shares_nothing_and_its_source_may_go() {
    let (managed, content) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    let copies = [
        ((DISK, "c1"), "disks/d", "snapshots/s"),
        ((DISK, "c2"), "snapshots/s", "disks/d"),
        ((SNAPSHOT, "k1"), "disks/d", "snapshots/s"),
        ((SNAPSHOT, "k2"), "snapshots/s", "disks/d"),
    ];
    for (thing, source, other) in copies {
        let (line, body) = (put(thing), copy_of(&managed, source));
        let made = client.ok(&line, Some(&body));
        assert_eq!(
            made["properties"]["creationData"],
            body["properties"]["creationData"]
        );
        let shown = assert_complete(&managed, thing, &content);
        // The same again, as it was sent and as it is shown.
        for body in [&body, &shown] {
            let again = client.ok(&line, Some(body));
            assert_eq!(
                again["properties"]["uniqueId"],
                made["properties"]["uniqueId"]
            );
        }
        let mut shallow = body.clone();
        shallow["properties"]["creationData"]["createOption"] = json!("Copy");
        for wanted in [copy_of(&managed, other), shallow] {
            let (status, code) = client.refused(&line, Some(&wanted));
            assert_eq!((status, code.as_str()), (409, "PropertyChangeNotAllowed"));
        }
    }
    client.ok(&format!("DELETE {COMPUTE}/snapshots/s"), None);
    client.ok(&format!("DELETE {COMPUTE}/disks/d"), None);
    for (thing, ..) in copies {
        assert_complete(&managed, thing, &content);
    }
    assert!(running(&managed).is_empty());
}

#[test]
fn a_deep_copy_may_be_encrypted_another_number_of_times() {
    let (managed, content) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    for (thing, source, kind, set) in [
        ((DISK, "c1"), "disks/d", TWICE, "twice"),
        ((SNAPSHOT, "k1"), "snapshots/s", TWICE, "twice"),
        ((DISK, "c2"), "snapshots/k1", ONCE, "once"),
        ((SNAPSHOT, "k2"), "disks/c1", ONCE, "once"),
    ] {
        let body = under(&managed, copy_of(&managed, source), (kind, set));
        client.ok(&put(thing), Some(&body));
        let shown = assert_complete(&managed, thing, &content);
        assert_eq!(shown["properties"]["encryption"]["type"], kind, "{shown}");
        let by_hand = managed.host.json(&format!("{} show {}", thing.0, thing.1));
        let platform = &by_hand["layers"][0]["platformKeyUrl"];
        assert_eq!(platform.is_string(), kind == TWICE, "{by_hand}");
        client.ok(&put(thing), Some(&body));
    }
}

#[test]
fn what_cannot_be_copied_leaves_nothing() {
    let (managed, _) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    managed.host.ok("image create i --source s");
    for (thing, source, refused) in [
        ((DISK, "c"), "disks/none", (404, "ResourceNotFound")),
        ((SNAPSHOT, "k"), "snapshots/none", (404, "ResourceNotFound")),
        ((SNAPSHOT, "k"), "images/i", (400, "FeatureNotOffered")),
    ] {
        let (status, code) = client.refused(&put(thing), Some(&copy_of(&managed, source)));
        assert_eq!((status, code.as_str()), refused, "{thing:?}");
    }
    managed
        .host
        .ok("disk grant-access d --duration-in-seconds 600");
    for thing in [(DISK, "c"), (SNAPSHOT, "k")] {
        let (status, code) = client.refused(&put(thing), Some(&copy_of(&managed, "disks/d")));
        assert_eq!((status, code.as_str()), (409, "OperationNotAllowed"));
        let missing = client.refused(&format!("GET {}", at(thing)), None);
        assert_eq!(missing.0, 404);
    }
    assert!(running(&managed).is_empty());
    assert_eq!(managed.host.json("disk list").as_array().unwrap().len(), 1);
    let snapshots = managed.host.json("snapshot list");
    assert_eq!(snapshots.as_array().unwrap().len(), 1, "{snapshots}");
}

#[test]
fn one_that_was_killed_in_its_middle_goes_on_by_itself() {
    let (mut managed, content) = with_source(Host::new());
    let body = copy_of(&managed, "snapshots/s");
    for thing in [(DISK, "c"), (SNAPSHOT, "k")] {
        slow(&managed, thing, &body, None, 4 << 20);
        let id = killed_during(&managed, &put(thing), &body, || {
            let id = begun(&managed).id;
            in_its_middle(&managed.client(&managed.admin), thing);
            id
        });
        managed.serve_again();
        let record = ended(&managed, id);
        assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
        assert_complete(&managed, thing, &content);
        let client = managed.client(&managed.admin);
        assert_eq!(status(&client, id)["status"], "Succeeded");
    }
    assert!(running(&managed).is_empty());
}

#[test]
fn one_that_was_killed_at_any_moment_is_whole_or_not_begun() {
    let (mut managed, content) = with_source(Host::new());
    let mut met = 0;
    for (number, after) in [2, 20, 60, 120, 250, 500].into_iter().enumerate() {
        let name = format!("c{number}");
        let thing = (if number % 2 == 0 { DISK } else { SNAPSHOT }, name.as_str());
        let source = match number % 3 {
            0 => "snapshots/s",
            _ => "disks/d",
        };
        let (line, body) = (put(thing), copy_of(&managed, source));
        killed_during(&managed, &line, &body, || {
            thread::sleep(Duration::from_millis(after));
        });
        managed.serve_again();
        for left in running(&managed) {
            met += 1;
            // Of what was not made yet nothing is there to be copied.
            let record = ended(&managed, left.id);
            let ends = [OperationState::Succeeded, OperationState::Canceled];
            assert!(ends.contains(&record.state), "{record:?}");
        }
        let client = managed.client(&managed.admin);
        client.ok(&line, Some(&body));
        assert_complete(&managed, thing, &content);
    }
    eprintln!("{met} of 6 kills met an operation at work");
    for (list, directory) in [("disk list", "disks"), ("snapshot list", "snapshots")] {
        let listed = managed.host.json(list).as_array().unwrap().len();
        let there = fs::read_dir(managed.host.state().join(directory)).unwrap();
        assert_eq!(there.count(), listed, "nothing half made is left");
    }
}

#[test]
fn a_key_that_is_withdrawn_in_its_middle_fails_it_and_the_same_request_goes_on() {
    let (managed, content) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    let enable = |enabled: bool| {
        managed.host.ok(&format!(
            "keyvault key set-attributes k --vault-name kv1 --enabled {enabled}"
        ));
    };
    let thing = (SNAPSHOT, "k");
    let body = copy_of(&managed, "snapshots/s");
    let body = under(&managed, body, (ONCE, "once"));
    slow(&managed, thing, &body, Some("once"), 1 << 20);
    let answer = client.ask(&put(thing), Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["properties"]["provisioningState"], "Creating");
    let id = watched(&answer);
    in_its_middle(&client, thing);
    enable(false);
    assert_eq!(ended(&managed, id).state, OperationState::Failed);
    let told = status(&client, id);
    assert_eq!(told["error"]["code"], "KeyVaultAccessForbidden", "{told}");
    assert_eq!(told["error"]["details"][0]["code"], "KeyDisabled", "{told}");
    let shown = client.ok(&format!("GET {}", at(thing)), None);
    let properties = &shown["properties"];
    assert_eq!(properties["provisioningState"], "Failed", "{shown}");
    assert_eq!(properties["completionPercent"], Value::Null, "{shown}");
    // Whatever else is asked of it is done.
    let deny = json!({"properties": {"networkAccessPolicy": "DenyAll"}});
    let denied = client.ok(&format!("PATCH {}", at(thing)), Some(&deny));
    assert_eq!(denied["properties"]["networkAccessPolicy"], "DenyAll");
    assert_eq!(denied["properties"]["provisioningState"], "Failed");
    // It is there, and needs its source, and nothing is made of it.
    enable(true);
    let source = client.refused(&format!("DELETE {COMPUTE}/snapshots/s"), None);
    assert_eq!(source, (409, "OperationNotAllowed".into()));
    for wanted in [(DISK, "of-k"), (SNAPSHOT, "k2")] {
        let refused = client.refused(&put(wanted), Some(&copy_of(&managed, "snapshots/k")));
        assert_eq!(refused, (409, "OperationNotAllowed".into()));
    }
    client.ok(&put(thing), Some(&body));
    assert_complete(&managed, thing, &content);
    client.ok(&format!("DELETE {COMPUTE}/snapshots/s"), None);
}

#[test]
fn a_deletion_ends_one_and_frees_its_source() {
    let (managed, content) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    let body = copy_of(&managed, "snapshots/s");
    for thing in [(DISK, "c"), (SNAPSHOT, "k")] {
        slow(&managed, thing, &body, None, 256 << 10);
        let answer = client.ask(&put(thing), Some(&body));
        assert_eq!(answer.status, 200, "{answer:?}");
        let id = watched(&answer);
        // The same is the one that goes on.
        assert_eq!(watched(&client.ask(&put(thing), Some(&body))), id);
        let source = client.refused(&format!("DELETE {COMPUTE}/snapshots/s"), None);
        assert_eq!(source, (409, "OperationNotAllowed".into()));
        let deleted = client.ask(&format!("DELETE {}", at(thing)), None);
        assert_eq!(deleted.status, 200, "{deleted:?}");
        // One that rests for a moment finds then that what it copied is gone.
        ended(&managed, id);
        let told = status(&client, id);
        assert_eq!(told["status"], "Canceled", "{told}");
        assert_eq!(told["error"]["code"], "OperationPreempted", "{told}");
        let missing = client.refused(&format!("GET {}", at(thing)), None);
        assert_eq!(missing.0, 404);
    }
    client.ok(&format!("DELETE {COMPUTE}/snapshots/s"), None);
    // The layer that it leaves is merged in the background.
    eventually("the layers are merged", || {
        let shown = managed.host.json("disk show d");
        (shown["layers"].as_array().unwrap().len() == 1).then_some(())
    });
    assert!(content_of(&managed.host, (DISK, "d")) == content);
}

/// Who has the copy attached copies; and a disk that is attached is copied as it is at one moment.
#[test]
fn copies_and_their_sources_may_be_attached() {
    let (managed, content) = with_source(Host::that_attaches());
    let client = managed.client(&managed.admin);
    let (thing, body) = ((DISK, "c"), copy_of(&managed, "snapshots/s"));
    slow(&managed, thing, &body, None, 2 << 20);
    let daemon = managed.host.attach("c");
    client.ok(&put(thing), Some(&body));
    in_its_middle(&client, thing);
    let shown = settled(&client, thing);
    assert_eq!(shown["properties"]["diskState"], "Attached");
    daemon.stop();
    assert_complete(&managed, thing, &content);

    let daemon = managed.host.attach("d");
    for thing in [(DISK, "e"), (SNAPSHOT, "k")] {
        let body = copy_of(&managed, "disks/d");
        client.ok(&put(thing), Some(&body));
        assert_complete(&managed, thing, &content);
    }
    daemon.stop();
    managed.host.is_clean("d");
}

#[test]
fn a_template_makes_a_deep_copy_and_again_changes_nothing() {
    let (managed, content) = with_source(Host::new());
    let client = managed.client(&managed.admin);
    let mut copy = disk("c");
    copy["properties"] = copy_of(&managed, "snapshots/s")["properties"].clone();
    let template = json!({"resources": [copy]});
    let is = |expected: &str| {
        let body = request(&template.to_string(), &json!({}));
        let told = send(&client, &format!("POST {DEPLOYMENTS}/dep/whatIf"), &body);
        let change = &told.body["properties"]["changes"][0];
        assert_eq!(change["changeType"], expected, "{told:?}");
    };
    is("Create");
    for name in ["first", "again"] {
        deploy(&client, name, &template, &json!({}));
        let body = deployments::ended(&client, name);
        let state = &body["properties"]["provisioningState"];
        assert_eq!(state, "Succeeded", "{body}");
        is("NoChange");
    }
    assert!(content_of(&managed.host, (DISK, "c")) == content);
}
