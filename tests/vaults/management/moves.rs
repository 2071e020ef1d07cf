//! Moves between single and double encryption are operations: they go on without their client, and after a `kill -9` of
//! the server, and end in order.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use installation::catalog::{OperationRecord, OperationState};
use installation::envelope::ResourceKind;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::{Host, PATIENCE, await_end, noise};
use uuid::Uuid;

use super::client::{Client, Managed};
use super::deployments::{disk, send};
use super::double::{COMPUTE, ONCE, TWICE, encryption, grant, settled, with_disk};
use crate::azure::client::Answer;

/// An installation with the sets `once` and `twice`, and the disk `d` with data.
pub fn with_sets(host: Host) -> (Managed, Vec<u8>) {
    let managed = Managed::on(host);
    let (client, content) = with_disk(&managed);
    grant(&managed, &client, &["once", "twice"]);
    drop(client);
    (managed, content)
}

/// Begins the move of a disk to a set as a server does that dies soon. It is copied slowly, for some seconds: the same
/// request goes on so.
fn slow(managed: &Managed, disk: &str, set: &str, rate: &str) {
    let installation = managed.host.installation();
    disks::update(&installation, ResourceKind::Disk, disk, Some(set)).unwrap();
    managed
        .host
        .ok(&format!("disk rotate-dek {disk} --no-wait --rate {rate}"));
}

pub fn running(managed: &Managed) -> Vec<OperationRecord> {
    let installation = managed.host.installation();
    installation.catalog().running_operations().unwrap()
}

fn record(managed: &Managed, id: Uuid) -> OperationRecord {
    let installation = managed.host.installation();
    installation.catalog().operation(id).unwrap().unwrap()
}

pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What becomes of an operation, about which nobody asks again.
pub fn ended(managed: &Managed, id: Uuid) -> OperationRecord {
    eventually("an operation ends", || {
        let found = record(managed, id);
        (found.state != OperationState::Running).then_some(found)
    })
}

fn kill(managed: &Managed) {
    let pid = managed.served.pid();
    kill_process(pid, Signal::KILL).unwrap();
    await_end(pid.as_raw_nonzero().get().unsigned_abs());
}

/// Has somebody ask, and kills the server when `meanwhile` returns.
pub fn killed_during<T>(
    managed: &Managed,
    line: &str,
    body: &Value,
    meanwhile: impl FnOnce() -> T,
) -> T {
    let client = managed.client(&managed.admin);
    std::thread::scope(|scope| {
        let client = &client;
        scope.spawn(move || {
            let _cut_off = catch_unwind(AssertUnwindSafe(|| client.ask(line, Some(body))));
        });
        let seen = meanwhile();
        kill(managed);
        seen
    })
}

/// The one operation that goes on, once it does.
pub fn begun(managed: &Managed) -> OperationRecord {
    eventually("an operation begins", || running(managed).pop())
}

/// Whether the disk `d` is whole, under so many DEKs and nothing else.
fn assert_moved(managed: &Managed, kind: &str, content: &[u8]) -> Value {
    let client = managed.client(&managed.admin);
    let body = settled(&client, "d");
    assert_eq!(body["properties"]["encryption"]["type"], kind);
    let shown = managed.host.json("disk show d");
    assert_eq!(shown["job"], Value::Null, "{shown}");
    let layers = shown["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1, "{shown}");
    assert_eq!(
        layers[0]["platformKeyUrl"].is_string(),
        kind == TWICE,
        "{shown}"
    );
    assert!(managed.host.ok("disk decrypt d") == content, "{kind}");
    shown
}

fn patch(disk: &str) -> String {
    format!("PATCH {COMPUTE}/disks/{disk}")
}

/// The id of the operation that an answer says is to be asked for.
pub fn watched(answer: &Answer) -> Uuid {
    let url = answer.header("azure-asyncoperation").unwrap();
    let (path, _) = url.split_once("?api-version=").unwrap();
    path.rsplit('/').next().unwrap().parse().unwrap()
}

pub fn status(client: &Client<'_>, id: Uuid) -> Value {
    client.ok(&format!("GET ~/operationstatuses/{id}"), None)
}

#[test]
fn one_that_was_killed_in_its_middle_goes_on_by_itself() {
    let (mut managed, content) = with_sets(Host::new());
    for (set, kind, after) in [
        ("twice", TWICE, Duration::ZERO),
        ("once", ONCE, Duration::from_millis(500)),
        ("twice", TWICE, Duration::from_millis(2500)),
    ] {
        slow(&managed, "d", set, "1MiB");
        let generation = managed.host.json("disk show d")["generation"].clone();
        let wanted = encryption(&managed, kind, Some(set));
        let id = killed_during(&managed, &patch("d"), &wanted, || {
            let id = begun(&managed).id;
            std::thread::sleep(after);
            id
        });
        managed.serve_again();
        let record = ended(&managed, id);
        assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
        let shown = assert_moved(&managed, kind, &content);
        assert_eq!(shown["generation"], generation, "it has one DEK more");
        let client = managed.client(&managed.admin);
        assert_eq!(status(&client, id)["status"], "Succeeded");
    }
    assert!(running(&managed).is_empty());
}

#[test]
fn one_that_was_killed_at_any_moment_is_done_or_not_begun() {
    let (mut managed, _) = with_sets(Host::new());
    let mut content = vec![0; 48 << 20];
    noise(&mut content);
    let raw = managed.host.path("large.raw");
    fs::write(&raw, &content).unwrap();
    managed.host.ok("disk delete d --yes");
    let create = ["disk", "create", "d", "--source", raw.to_str().unwrap()];
    managed
        .host
        .ok(&[&create[..], &["--disk-encryption-set", "once"]].concat());
    let (mut is, mut met) = (ONCE, 0);
    for after in [20, 60, 120, 200, 350, 600] {
        let (set, kind) = match is {
            ONCE => ("twice", TWICE),
            _ => ("once", ONCE),
        };
        let wanted = encryption(&managed, kind, Some(set));
        killed_during(&managed, &patch("d"), &wanted, || {
            std::thread::sleep(Duration::from_millis(after));
        });
        managed.serve_again();
        // Either it is in the catalog, or it is done, or nobody has begun it.
        let left = running(&managed).pop();
        let client = managed.client(&managed.admin);
        if let Some(left) = left {
            met += 1;
            assert_eq!(ended(&managed, left.id).state, OperationState::Succeeded);
            is = kind;
        }
        let shown = settled(&client, "d");
        let now = &shown["properties"]["encryption"]["type"];
        is = if now == kind { kind } else { is };
        assert_moved(&managed, is, &content);
    }
    eprintln!("{met} of 6 kills met a move at work");
}

/// An operation as it would be had the server been killed at another moment: of a disk that was so before.
fn noted(managed: &Managed, of: &OperationRecord, generation: u64, set: &str) -> Uuid {
    let record = OperationRecord {
        id: Uuid::new_v4(),
        state: OperationState::Running,
        answer: json!({"before": {"generation": generation, "set": set}}),
        ..of.clone()
    };
    let installation = managed.host.installation();
    installation.catalog().put_operation(&record).unwrap();
    record.id
}

/// Each step finds what the one before has left, and nothing is done twice or against what somebody has wanted since.
#[test]
fn one_that_is_finished_or_superseded_is_not_done_again() {
    let (mut managed, content) = with_sets(Host::new());
    let twice = encryption(&managed, TWICE, Some("twice"));
    let once = encryption(&managed, ONCE, Some("once"));
    slow(&managed, "d", "twice", "1MiB");
    let first = std::thread::scope(|scope| {
        scope.spawn(|| managed.client(&managed.admin).ok(&patch("d"), Some(&twice)));
        begun(&managed)
    });
    let generation = |managed: &Managed| managed.host.json("disk show d")["generation"].as_u64();
    let restarted = |managed: &mut Managed, before: u64, set: &str| {
        let id = noted(managed, &first, before, set);
        kill(managed);
        managed.serve_again();
        ended(managed, id)
    };
    ended(&managed, first.id);
    let moved = generation(&managed).unwrap();

    // It was finished, but for the note of it.
    let record = restarted(&mut managed, moved - 1, "once");
    assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
    assert_eq!(generation(&managed), Some(moved));

    // Somebody has moved the disk back since.
    managed.client(&managed.admin).ok(&patch("d"), Some(&once));
    assert_moved(&managed, ONCE, &content);
    let record = restarted(&mut managed, moved - 1, "once");
    assert_eq!(record.state, OperationState::Canceled, "{record:?}");
    assert_eq!(record.answer["error"]["code"], "OperationPreempted");
    assert_eq!(generation(&managed), Some(moved + 1));
    assert_moved(&managed, ONCE, &content);

    // Nothing was done but the note, and then one step more.
    let record = restarted(&mut managed, moved + 1, "once");
    assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
    assert_eq!(generation(&managed), Some(moved + 2));
    assert_moved(&managed, TWICE, &content);
    managed.client(&managed.admin).ok(&patch("d"), Some(&once));
    settled(&managed.client(&managed.admin), "d");
    let installation = managed.host.installation();
    disks::update(&installation, ResourceKind::Disk, "d", Some("twice")).unwrap();
    let record = restarted(&mut managed, moved + 3, "once");
    assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
    assert_moved(&managed, TWICE, &content);

    // Of two about one disk the newer one counts; and another disk of the same name is another.
    managed.client(&managed.admin).ok(&patch("d"), Some(&once));
    settled(&managed.client(&managed.admin), "d");
    let older = noted(&managed, &first, moved + 5, "once");
    let mut newer = first.clone();
    newer.started.at += Duration::from_secs(1);
    newer.request["work"]["moveDisk"]["disk"] = json!(Uuid::new_v4());
    let newer = noted(&managed, &newer, moved + 5, "once");
    kill(&managed);
    managed.serve_again();
    for id in [older, newer] {
        assert_eq!(ended(&managed, id).state, OperationState::Canceled);
    }
    assert_moved(&managed, ONCE, &content);
}

#[test]
fn a_paused_one_stays_paused_over_a_restart() {
    let (mut managed, content) = with_sets(Host::new());
    let twice = encryption(&managed, TWICE, Some("twice"));
    slow(&managed, "d", "twice", "1MiB");
    let id = killed_during(&managed, &patch("d"), &twice, || {
        let id = begun(&managed).id;
        managed.host.ok("disk rotate-dek d --pause");
        id
    });
    managed.serve_again();
    let ended = ended(&managed, id);
    assert_eq!(ended.state, OperationState::Canceled, "{ended:?}");
    let client = managed.client(&managed.admin);
    let told = status(&client, id);
    assert_eq!(told["status"], "Canceled", "{told}");
    let why = told["error"]["message"].as_str().unwrap();
    assert!(why.contains("rotate-dek d --resume"), "{told}");
    let is_paused = || {
        let shown = managed.host.json("disk show d");
        assert_eq!(shown["job"]["paused"], true, "{shown}");
        assert_eq!(shown["encryption"]["type"], ONCE, "in its layers");
    };
    is_paused();
    // The same request does not resume it either.
    let again = client.ok(&patch("d"), Some(&twice));
    assert_eq!(again["properties"]["provisioningState"], "Succeeded");
    is_paused();
    managed.host.ok("disk rotate-dek d --resume");
    assert_moved(&managed, TWICE, &content);
}

#[test]
fn the_operation_says_what_has_failed() {
    let (mut managed, content) = with_sets(Host::new());
    let twice = encryption(&managed, TWICE, Some("twice"));
    slow(&managed, "d", "twice", "1MiB");
    let id = killed_during(&managed, &patch("d"), &twice, || begun(&managed).id);
    let enable = |managed: &Managed, enabled: bool| {
        managed.host.ok(&format!(
            "keyvault key set-attributes k --vault-name kv1 --enabled {enabled}"
        ));
    };
    enable(&managed, false);
    managed.serve_again();
    assert_eq!(ended(&managed, id).state, OperationState::Failed);
    let client = managed.client(&managed.admin);
    let told = status(&client, id);
    assert_eq!(told["status"], "Failed", "{told}");
    assert_eq!(told["error"]["code"], "KeyVaultAccessForbidden", "{told}");
    assert_eq!(told["error"]["details"][0]["code"], "KeyDisabled", "{told}");
    let result = client.refused(&format!("GET ~/operationresults/{id}"), None);
    assert_eq!(result, (403, "KeyVaultAccessForbidden".into()));
    // What failed is not tried again by itself, and goes on where somebody asks for it.
    enable(&managed, true);
    managed.serve_again();
    assert!(running(&managed).is_empty());
    let client = managed.client(&managed.admin);
    client.ok(&patch("d"), Some(&twice));
    assert_moved(&managed, TWICE, &content);
}

#[test]
fn four_at_once_are_copied_and_a_deletion_ends_one() {
    let (mut managed, _) = with_sets(Host::new());
    let twice = encryption(&managed, TWICE, Some("twice"));
    let raw = managed.host.path("disk.raw");
    let disks: Vec<String> = (0..4).map(|at| format!("d{at}")).collect();
    for disk in &disks {
        managed.host.ok(&[
            "disk",
            "create",
            disk.as_str(),
            "--source",
            raw.to_str().unwrap(),
        ]);
        slow(&managed, disk, "twice", "16KiB");
    }
    let client = managed.client(&managed.admin);
    let ids: Vec<Uuid> = std::thread::scope(|scope| {
        let (client, twice) = (&client, &twice);
        let asked: Vec<_> = disks
            .iter()
            .map(|disk| scope.spawn(move || client.ask(&patch(disk), Some(twice))))
            .collect();
        let answers = asked.into_iter().map(|asked| asked.join().unwrap());
        let id = |answer: Answer| {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body["properties"]["provisioningState"], "Updating");
            assert_eq!(answer.header("retry-after"), Some("1"));
            watched(&answer)
        };
        answers.map(id).collect()
    });
    let is_full = |managed: &Managed| {
        let client = managed.client(&managed.admin);
        let refused = client.ask(&patch("d"), Some(&twice));
        assert_eq!((refused.status, refused.code()), (429, "TooManyRequests"));
        assert_eq!(refused.header("retry-after"), Some("10"));
        // The same is the one that goes on, and another about the same disk is refused.
        let again = client.ask(&patch("d0"), Some(&twice));
        assert_eq!(watched(&again), ids[0]);
        let once = encryption(managed, ONCE, Some("once"));
        let other = client.ask(&patch("d0"), Some(&once));
        assert_eq!(other.status, 409, "{other:?}");
    };
    is_full(&managed);
    kill(&managed);
    managed.serve_again();
    eventually("all go on", || {
        let client = managed.client(&managed.admin);
        let shown = client.ok(&format!("GET {COMPUTE}/disks/d3"), None);
        (shown["properties"]["provisioningState"] == "Updating").then_some(())
    });
    is_full(&managed);
    let client = managed.client(&managed.admin);
    for (disk, id) in disks.iter().zip(&ids) {
        let deleted = client.ask(&format!("DELETE {COMPUTE}/disks/{disk}"), None);
        assert_eq!(deleted.status, 200, "{deleted:?}");
        let told = status(&client, *id);
        assert_eq!(told["status"], "Canceled", "{told}");
        assert_eq!(told["error"]["code"], "OperationPreempted", "{told}");
    }
    client.ok(&patch("d"), Some(&twice));
    settled(&client, "d");
    assert_eq!(managed.host.json("disk list").as_array().unwrap().len(), 1);
}

/// A deployment waits for the move of its disk, and finds it again.
#[test]
fn a_deployment_goes_on_with_its_move() {
    let (mut managed, content) = with_sets(Host::new());
    slow(&managed, "d", "twice", "1MiB");
    let (mut moved, mut after) = (disk("d"), disk("e"));
    let wanted = encryption(&managed, TWICE, Some("twice"));
    moved["properties"]["encryption"] = wanted["properties"]["encryption"].clone();
    after["dependsOn"] = json!(["d"]);
    let body = json!({"properties": {"mode": "Incremental", "template": {
        "resources": [moved, after],
    }}});
    let at = "~/resourceGroups/default/providers/Microsoft.Resources/deployments/moves";
    let client = managed.client(&managed.admin);
    let both = std::thread::scope(|scope| {
        let client = &client;
        scope.spawn(move || {
            let put = || send(client, &format!("PUT {at}"), &body.to_string());
            let _cut_off = catch_unwind(AssertUnwindSafe(put));
        });
        let both = eventually("it moves", || {
            let both = running(&managed);
            (both.len() == 2).then_some(both)
        });
        kill(&managed);
        both
    });
    managed.serve_again();
    for operation in &both {
        let record = ended(&managed, operation.id);
        assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
    }
    assert!(running(&managed).is_empty(), "one move, before and after");
    assert_moved(&managed, TWICE, &content);
    let client = managed.client(&managed.admin);
    client.ok(&format!("GET {COMPUTE}/disks/e"), None);
    let body = client.ok(&format!("GET {at}"), None);
    assert_eq!(
        body["properties"]["provisioningState"], "Succeeded",
        "{body}"
    );
}

/// Who has the disk attached copies; when they let go of it the server does.
#[test]
fn a_move_of_an_attached_disk_is_done_by_its_attach_until_that_ends() {
    let (mut managed, content) = with_sets(Host::that_attaches());
    for (set, kind, is_detached) in [("twice", TWICE, false), ("once", ONCE, true)] {
        slow(&managed, "d", set, "1MiB");
        let daemon = managed.host.attach("d");
        let wanted = encryption(&managed, kind, Some(set));
        let id = killed_during(&managed, &patch("d"), &wanted, || begun(&managed).id);
        let daemon = match is_detached {
            true => {
                daemon.stop();
                None
            }
            false => Some(daemon),
        };
        managed.serve_again();
        let record = ended(&managed, id);
        assert_eq!(record.state, OperationState::Succeeded, "{record:?}");
        if let Some(daemon) = daemon {
            daemon.stop();
        }
        assert_moved(&managed, kind, &content);
    }
}
