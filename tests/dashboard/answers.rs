//! What is answered to whoever is let in.

use std::path::Path;

use installation::catalog::{DiskRecord, DiskState};
use installation::envelope::ResourceKind;
use serde_json::{Value, json};
use test_support::{Customer, Disk, Host};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Dashboard;

const MIB: u64 = 1 << 20;

/// Something of the catalog that has no files: its name may be any.
pub fn insert_named(host: &Host, name: &str) {
    let installation = host.installation();
    let record = DiskRecord {
        id: Uuid::new_v4(),
        kind: ResourceKind::Disk,
        name: name.into(),
        directory: Path::new("/nowhere").into(),
        size: MIB,
        disk_encryption_set: None,
        key_url: format!("https://platform.vault.localhost/keys/{name}"),
        layers: Vec::new(),
        created: OffsetDateTime::now_utc(),
        state: DiskState::Ready,
    };
    installation.catalog().insert_disk(&record).unwrap();
}

fn values(section: &Value) -> Vec<&Value> {
    section
        .as_object()
        .map_or_else(Vec::new, |all| all.values().collect())
}

#[test]
fn who_depends_on_whom_is_told_without_a_master_key() {
    let customer = Customer::new(MIB);
    customer.use_key();
    for vault in ["customer", "platform"] {
        let key = customer
            .state()
            .join("vaults")
            .join(vault)
            .join("master.key");
        std::fs::rename(&key, key.with_extension("away")).unwrap();
    }
    let before = std::fs::metadata(customer.state().join("vaults/customer/vault.db")).unwrap();
    let dashboard = Dashboard::of(&customer);
    let state = dashboard.await_json("/api/state", |state| {
        !state["sections"]["resources"].is_null()
    });
    let sections = &state["sections"];
    let disk = values(&sections["resources"]["put"])[0];
    assert_eq!(
        (&disk["name"], &disk["set"]),
        (&json!("disk"), &json!("set"))
    );
    assert_eq!(disk["state"], "Unattached");
    let key = &sections["keys"]["put"][disk["key"].as_str().unwrap()];
    assert_eq!(
        (&key["name"], &key["state"]),
        (&json!("key"), &json!("enabled"))
    );
    let set = &sections["sets"]["put"]["set"];
    assert_eq!(set["key"], disk["key"]);
    let policies = sections["vaults"]["put"]["customer"]["policies"]
        .as_array()
        .unwrap();
    let policy = policies
        .iter()
        .find(|one| one["identity"] == set["principal"]);
    assert_eq!(policy.unwrap()["unwraps"], true);

    let encoded = |url: &str| url.replace(':', "%3A").replace('/', "%2F");
    let what_if = |query: String| dashboard.get(&format!("/api/what-if?{query}")).json();
    for query in [
        format!("key={}", encoded(disk["key"].as_str().unwrap())),
        "vault=customer".into(),
        format!("identity={}", set["principal"].as_str().unwrap()),
    ] {
        let cut = what_if(query.clone());
        assert_eq!(cut["safeToDisable"], "no", "{query}");
        assert_eq!(cut["resources"][0]["name"], "disk", "{query}");
        assert_eq!(cut["diskEncryptionSets"], json!(["set"]), "{query}");
    }
    let no_key = encoded("https://customer.vault.localhost/keys/none");
    for query in [
        format!("key={no_key}"),
        "vault=nosuch".into(),
        format!("identity={}", Uuid::new_v4()),
    ] {
        let cut = what_if(query.clone());
        assert_eq!(cut["safeToDisable"], "unknown", "{query}");
        let why = cut["reasons"].to_string();
        assert!(why.contains("is known here"), "{query}: {why}");
    }
    for bad in ["disk=x", "identity=abc"] {
        let path = format!("/api/what-if?{bad}");
        assert_eq!(dashboard.get(&path).status, 400, "{bad}");
    }
    // To look is no use of a key, and nothing is written.
    let after = std::fs::metadata(customer.state().join("vaults/customer/vault.db")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
}

#[test]
fn only_what_has_changed_is_told_again() {
    let customer = Customer::new(MIB);
    let dashboard = Dashboard::of(&customer);
    let state = dashboard.await_json("/api/state", |state| !state["sections"]["keys"].is_null());
    assert_eq!(state["full"], true);
    let cursor = state["cursor"].as_str().unwrap();
    customer.enable(false);
    let path = format!("/api/state?since={cursor}");
    let changes = dashboard.await_json(&path, |state| !state["sections"]["keys"].is_null());
    assert_eq!(changes["full"], false);
    let keys = values(&changes["sections"]["keys"]["put"]);
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert_eq!(keys[0]["state"], "disabled");
    assert!(changes["sections"]["vaults"].is_null(), "{changes}");
}

#[test]
fn an_attached_disk_is_told_of_while_it_works_and_when_its_key_goes() {
    let customer = Customer::new(16 * MIB);
    let daemon = customer.attach(&["--key-check-interval", "1"]);
    let dashboard = Dashboard::of(&customer);
    let row = |live: &Value| {
        values(&live["rows"]["sections"]["rows"]["put"])
            .first()
            .map(|row| (*row).clone())
    };
    let mut frontend = daemon.connect();
    let busy = dashboard.await_json("/api/live", |live| {
        for sector in 0..64 {
            frontend.queues[0].write(8 * sector, &[7; 4096]).unwrap();
        }
        row(live).is_some_and(|row| row["writes"].as_f64() > Some(0.0))
    });
    let told = row(&busy).unwrap();
    assert_eq!(
        (&told["name"], &told["standing"]),
        (&json!("disk"), &json!("served"))
    );
    assert!(told["p99"].as_f64() > Some(0.0), "{told}");
    let total = busy["totals"].as_array().unwrap().last().unwrap();
    assert!(total[1]["writeBytes"].as_f64() > Some(0.0), "{total}");
    let resources = dashboard.await_section("resources", |section| {
        values(section)
            .iter()
            .any(|disk| disk["state"] == "Attached")
    });
    assert!(values(&resources)[0]["attachedSince"].is_number());

    customer.enable(false);
    dashboard.await_json("/api/live", |live| {
        row(live).is_some_and(|row| row["standing"] == "keyRevoked")
    });
    let alarms = dashboard.await_section("alarms", |alarms| {
        values(alarms)
            .iter()
            .any(|alarm| alarm["code"] == "KeyRevoked")
    });
    assert!(alarms.to_string().contains("disk"), "{alarms}");
    let timeline = dashboard.await_json("/api/timeline", |timeline| {
        let text = timeline.to_string();
        text.contains("DekDestroy") && text.contains("KeyRevoked")
    });
    let entries = timeline["entries"].as_array().unwrap();
    let update = entries
        .iter()
        .find(|entry| entry["what"] == "KeyUpdate")
        .unwrap();
    assert_eq!(
        (&update["topic"], &update["log"]),
        (&json!("key"), &json!("vault/customer"))
    );
    let event = entries
        .iter()
        .find(|entry| entry["topic"] == "event")
        .unwrap();
    assert_eq!(event["disk"], "disk");
    assert!(event["log"].is_null());
}

#[test]
fn a_log_that_was_tampered_with_is_told_to_be_broken() {
    let customer = Customer::new(MIB);
    let dashboard = Dashboard::of(&customer);
    let logs = dashboard.await_section("logs", |logs| values(logs).len() >= 3);
    for log in values(&logs) {
        assert_eq!(
            (&log["intact"], &log["finding"]),
            (&json!(true), &json!(null))
        );
        assert!(log["verified"].as_u64() > Some(0), "{log}");
    }
    let db = rusqlite::Connection::open(customer.vault().join("vault.db")).unwrap();
    db.execute("UPDATE audit SET caller = 'mallory' WHERE seq = 2", [])
        .unwrap();
    let logs = dashboard.await_section("logs", |logs| logs["vault/customer"]["intact"] == false);
    assert_eq!(logs["vault/customer"]["firstBad"], 2);
    assert_eq!(logs["vault/platform"]["intact"], true);
}

/// That a log was put back as a whole is only shown by what was kept elsewhere.
#[test]
fn a_log_that_was_put_back_is_shown_by_a_checkpoint() {
    let customer = Customer::new(MIB);
    let vault = customer.vault().join("vault.db");
    let copy = customer.path("copy.db");
    let db = rusqlite::Connection::open(&vault).unwrap();
    db.execute("VACUUM INTO ?", [copy.to_str().unwrap()])
        .unwrap();
    drop(db);
    customer.create_key();
    let checkpoint = customer.file("checkpoint.jsonl");
    customer.ok([
        "audit",
        "export",
        "--checkpoints-only",
        "--output-file",
        &checkpoint,
    ]
    .as_slice());
    let dashboard = Dashboard::with(&customer, &format!("--checkpoint {checkpoint}"));
    let compared = |log: &Value| log["checkpoints"].as_u64() > Some(0);
    let logs = dashboard.await_section("logs", |logs| compared(&logs["vault/customer"]));
    assert_eq!(logs["vault/customer"]["intact"], true);
    drop(dashboard);
    for companion in ["vault.db-wal", "vault.db-shm"] {
        let _ = std::fs::remove_file(customer.vault().join(companion));
    }
    std::fs::copy(&copy, &vault).unwrap();
    let dashboard = Dashboard::with(&customer, &format!("--checkpoint {checkpoint}"));
    let logs = dashboard.await_section("logs", |logs| !logs.is_null());
    let log = &logs["vault/customer"];
    assert_eq!(log["intact"], false, "{log}");
    assert!(
        log["finding"].as_str().unwrap().contains("put back"),
        "{log}"
    );
}

#[test]
fn a_host_without_an_installation_is_told_to_have_none_and_gets_none() {
    let host = Host::new();
    let token = host.file("token");
    let dashboard = Dashboard::with(&host, &format!("--token-file {token}"));
    let told = dashboard.await_section("host", |host| !host.is_null());
    let failure = told["host"]["failure"].as_str().unwrap();
    assert!(failure.contains("no installation"), "{failure}");
    assert!(!host.state().exists(), "nothing was made");
}

#[test]
fn names_are_told_as_they_are_and_shared_data_once() {
    let disk = Disk::new(MIB);
    let hostile = "<img src=x onerror=alert(1)>\u{202e}\u{1b}[31m";
    insert_named(&disk, hostile);
    disk.write("disk", 0, &[1; 64 * 1024]);
    disk.ok("snapshot create snap --source disk");
    for clone in ["one", "two"] {
        disk.ok(["disk", "create", clone, "--source", "snap"].as_slice());
    }
    let dashboard = Dashboard::of(&disk);
    let state = dashboard.await_json("/api/state", |state| {
        values(&state["sections"]["resources"]["put"]).len() == 5
    });
    let resources = values(&state["sections"]["resources"]["put"]);
    let named = resources.iter().find(|one| one["name"] == hostile).unwrap();
    assert_eq!(named["state"], "Damaged");
    let layers = values(&state["sections"]["layers"]["put"]);
    assert_eq!(layers.len(), 1, "{layers:?}");
    assert_eq!(layers[0]["users"], 4);
    assert_eq!(
        (&layers[0]["name"], &layers[0]["data"]),
        (&json!("snap"), &json!(64 * 1024))
    );
}
