//! Moves of disks between single and double encryption.

use std::fs;
use std::time::{Duration, Instant};

use installation::envelope::ResourceKind;
use serde_json::{Value, json};
use test_support::key_search::{may_read_memory, needles, search_what_stays};
use test_support::{Host, PATIENCE};

use super::client::{Client, Managed};
use super::vaults::{SET, VAULT, group, policy, set_body, vault_body, vault_with_key};

pub const COMPUTE: &str = "~/resourceGroups/default/providers/Microsoft.Compute";
pub const ONCE: &str = "EncryptionAtRestWithCustomerKey";
pub const TWICE: &str = "EncryptionAtRestWithPlatformAndCustomerKeys";
const PLATFORM: &str = "EncryptionAtRestWithPlatformKey";

/// The sets `once` and `twice` of one key, which `twice` may not use yet, and a disk with data.
pub fn with_disk(managed: &Managed) -> (Client<'_>, Vec<u8>) {
    let client = managed.client(&managed.admin);
    group(&client);
    let key = vault_with_key(managed, &client, "kv1");
    for (name, kind) in [("once", ONCE), ("twice", TWICE)] {
        let mut body = set_body(&client, "kv1", &key);
        body["properties"]["encryptionType"] = json!(kind);
        client.ok(&format!("PUT {SET}/{name}"), Some(&body));
    }
    grant(managed, &client, &["once"]);
    let raw = managed.host.raw_image("disk.raw");
    let content = fs::read(&raw).unwrap();
    managed
        .host
        .ok(&["disk", "create", "d", "--source", raw.to_str().unwrap()]);
    (client, content)
}

pub fn grant(managed: &Managed, client: &Client<'_>, sets: &[&str]) {
    let mut policies = vec![policy(managed, &managed.admin.object_id, &["all"])];
    for set in sets {
        let set = client.ok(&format!("GET {SET}/{set}"), None);
        let principal = set["identity"]["principalId"].as_str().unwrap();
        policies.push(policy(managed, principal, &["get", "wrapKey", "unwrapKey"]));
    }
    let body = vault_body(managed, false, json!(policies));
    client.ok(&format!("PUT {VAULT}/kv1"), Some(&body));
}

pub fn encryption(managed: &Managed, kind: &str, set: Option<&str>) -> Value {
    let id = set.map(|set| SET.replacen('~', &managed.subscription(), 1) + "/" + set);
    json!({"properties": {"encryption": {"type": kind, "diskEncryptionSetId": id}}})
}

/// Asks until nothing goes on any more, as clients do.
pub fn settled(client: &Client<'_>, disk: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = client.ask(&format!("GET {COMPUTE}/disks/{disk}"), None);
        if answer.body["properties"]["provisioningState"] == "Succeeded" {
            assert_eq!(answer.header("retry-after"), None);
            return answer.body;
        }
        assert_eq!(answer.body["properties"]["provisioningState"], "Updating");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(Instant::now() < end, "{answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_disk_moves_into_it_and_out_of_it() {
    let managed = Managed::new();
    let (client, content) = with_disk(&managed);
    let line = &format!("PATCH {COMPUTE}/disks/d");
    let twice = encryption(&managed, TWICE, Some("twice"));
    // Before the grant nothing changes.
    let (status, code) = client.refused(line, Some(&twice));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    let shown = managed.host.json("disk show d");
    assert_eq!(shown["encryption"]["type"], PLATFORM);
    assert_eq!(shown["job"], Value::Null);
    grant(&managed, &client, &["once", "twice"]);

    for (kind, set) in [
        (TWICE, Some("twice")),
        (ONCE, Some("once")),
        (TWICE, Some("twice")),
        (PLATFORM, None),
    ] {
        let wanted = encryption(&managed, kind, set);
        let answer = client.ask(line, Some(&wanted));
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = settled(&client, "d");
        assert_eq!(body["properties"]["encryption"]["type"], kind);
        let shown = managed.host.json("disk show d");
        assert_eq!(shown["encryption"]["type"], kind);
        assert_eq!(shown["encryption"]["diskEncryptionSetId"], json!(set));
        assert_eq!(shown["job"], Value::Null);
        assert!(managed.host.ok("disk decrypt d") == content, "{kind}");
        // Asked for again, and as a whole, it gives the disk no other DEK.
        client.ok(line, Some(&wanted));
        client.ok(&format!("PUT {COMPUTE}/disks/d"), Some(&body));
        let again = managed.host.json("disk show d");
        assert_eq!(again["generation"], shown["generation"]);
    }
    // A type that is not that of the set is refused as before.
    for (kind, set) in [(ONCE, "twice"), (TWICE, "once")] {
        let (status, code) = client.refused(line, Some(&encryption(&managed, kind, Some(set))));
        assert_eq!((status, code.as_str()), (400, "InvalidParameter"));
    }
}

#[test]
fn what_is_frozen_does_not_move() {
    let managed = Managed::new();
    let (client, content) = with_disk(&managed);
    grant(&managed, &client, &["once", "twice"]);
    let disk = COMPUTE.replacen('~', &managed.subscription(), 1) + "/disks/d";
    let copy = |encryption: &Value| {
        let mut body = json!({"location": "local", "properties": {"creationData": {
            "createOption": "Copy", "sourceResourceId": disk,
        }}});
        body["properties"]["encryption"] = encryption["properties"]["encryption"].clone();
        body
    };
    let (once, twice) = (
        encryption(&managed, ONCE, Some("once")),
        encryption(&managed, TWICE, Some("twice")),
    );
    let snapshot = &format!("{COMPUTE}/snapshots/s");
    let (status, code) = client.refused(&format!("PUT {snapshot}"), Some(&copy(&twice)));
    assert_eq!((status, code.as_str()), (400, "InvalidParameter"));
    assert_eq!(managed.host.json("snapshot list"), json!([]));
    client.ok(&format!("PUT {snapshot}"), Some(&copy(&once)));
    let answer = client.ask(&format!("PATCH {snapshot}"), Some(&twice));
    assert_eq!((answer.status, answer.code()), (400, "InvalidParameter"));
    let message = answer.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("make a disk of it"), "{message}");

    // Nor a copy of the disk itself, whose layers are shared as they are.
    let line = &format!("PUT {COMPUTE}/disks/c");
    let answer = client.ask(line, Some(&copy(&twice)));
    assert_eq!((answer.status, answer.code()), (400, "InvalidParameter"));
    let message = answer.body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("Move the disk") || message.contains("move the disk"),
        "{message}"
    );
    assert_eq!(managed.host.json("disk list").as_array().unwrap().len(), 1);
    let made = client.ok(line, Some(&copy(&once)));
    assert_eq!(made["properties"]["encryption"]["type"], ONCE);
    client.ok(&format!("DELETE {COMPUTE}/disks/c"), None);

    // A disk of it shares what is encrypted once, until that is copied.
    let mut whole = copy(&twice);
    whole["properties"]["creationData"]["sourceResourceId"] =
        json!(disk.replace("/disks/d", "/snapshots/s"));
    let clone = &format!("{COMPUTE}/disks/clone");
    let made = client.ok(&format!("PUT {clone}"), Some(&whole));
    assert_eq!(made["properties"]["encryption"]["type"], ONCE);
    // As a client sends it back that changes something else.
    let mut tagged = made.clone();
    tagged["tags"] = json!({"a": "b"});
    let tagged = client.ok(&format!("PUT {clone}"), Some(&tagged));
    assert_eq!(tagged["tags"], json!({"a": "b"}));
    client.ok(&format!("PATCH {clone}"), Some(&twice));
    let shown = client.ok(&format!("GET {clone}"), None);
    assert_eq!(shown["properties"]["encryption"]["type"], ONCE);
    managed.host.ok("disk flatten clone");
    let shown = client.ok(&format!("GET {clone}"), None);
    assert_eq!(shown["properties"]["encryption"]["type"], TWICE);
    assert!(managed.host.ok("disk decrypt clone") == content);
    assert!(managed.host.ok("disk decrypt d") == content);
}

#[test]
fn an_attached_disk_moves_too() {
    let managed = Managed::on(Host::that_attaches());
    let (client, content) = with_disk(&managed);
    grant(&managed, &client, &["once", "twice"]);
    let daemon = managed.host.attach("d");
    let line = &format!("PATCH {COMPUTE}/disks/d");
    for (kind, set) in [(TWICE, "twice"), (ONCE, "once")] {
        client.ok(line, Some(&encryption(&managed, kind, Some(set))));
        let body = settled(&client, "d");
        assert_eq!(body["properties"]["encryption"]["type"], kind);
        assert_eq!(body["properties"]["diskState"], "Attached");
    }
    daemon.stop();
    assert!(managed.host.ok("disk decrypt d") == content);
}

/// What a command that died has begun, the same request brings to its end.
#[test]
fn a_move_that_was_cut_off_is_gone_on_with() {
    let managed = Managed::new();
    let (client, content) = with_disk(&managed);
    grant(&managed, &client, &["once", "twice"]);
    let line = &format!("PATCH {COMPUTE}/disks/d");
    let twice = encryption(&managed, TWICE, Some("twice"));
    // A job of something else is waited for by who asked for it, and is no move.
    managed.host.ok("disk rotate-dek d --no-wait");
    settled(&client, "d");
    let answer = client.ask(line, Some(&twice));
    assert_eq!(answer.status, 409, "{answer:?}");
    managed.host.ok("disk rotate-dek d --resume");

    // Under the key of the other set, and then with the new layer too.
    let installation = managed.host.installation();
    disks::update(&installation, ResourceKind::Disk, "d", Some("twice")).unwrap();
    let begun = managed.host.json("disk show d");
    assert_eq!(begun["encryption"]["type"], ONCE, "in its layers");
    client.ok(line, Some(&twice));
    settled(&client, "d");
    assert!(managed.host.ok("disk decrypt d") == content);

    disks::update(&installation, ResourceKind::Disk, "d", Some("once")).unwrap();
    managed.host.ok("disk rotate-dek d --no-wait");
    let begun = managed.host.json("disk show d");
    assert_eq!(begun["job"]["kind"], "rotate", "{begun}");
    client.ok(line, Some(&encryption(&managed, ONCE, Some("once"))));
    let body = settled(&client, "d");
    assert_eq!(body["properties"]["encryption"]["type"], ONCE);
    let done = managed.host.json("disk show d");
    assert_eq!(done["job"], Value::Null, "{done}");
    assert_eq!(done["layers"].as_array().unwrap().len(), 1, "{done}");
    assert!(managed.host.ok("disk decrypt d") == content);
}

/// Every DEK of a disk as it is now.
fn deks(host: &Host) -> Vec<Vec<u8>> {
    let installation = host.installation();
    let disk = disks::Disk::find(&installation, "d").unwrap();
    let header = disk.header_file().unwrap().read().unwrap();
    let (_, deks) = disk.unlock_all(&installation, header).unwrap();
    let both = |dek: &keys::Dek| {
        let outer = dek.outer().map(|outer| outer.expose().to_vec());
        [Some(dek.expose().to_vec()), outer]
    };
    deks.iter().flat_map(both).flatten().collect()
}

#[test]
fn a_server_that_has_moved_a_disk_keeps_no_key_of_it() {
    if !may_read_memory() {
        return;
    }
    let managed = Managed::new();
    let (client, _) = with_disk(&managed);
    grant(&managed, &client, &["once", "twice"]);
    let line = &format!("PATCH {COMPUTE}/disks/d");
    let mut had = deks(&managed.host);
    for (kind, set) in [(TWICE, "twice"), (ONCE, "once")] {
        client.ask(line, Some(&encryption(&managed, kind, Some(set))));
        settled(&client, "d");
        had.extend(deks(&managed.host));
    }
    assert_eq!(had.len(), 4, "one, two of another, and one again");
    let server = managed.served.pid().as_raw_nonzero().get() as u32;
    for dek in had {
        let found = search_what_stays(server, &needles(&dek));
        assert!(found.is_empty(), "in the server: {found:#?}");
    }
}
