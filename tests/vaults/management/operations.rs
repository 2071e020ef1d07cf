//! Operations that outlive their requests, and the server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use installation::catalog::{OperationRecord, OperationState, Touch};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::client::{Managed, serve};
use super::vaults::group;

const COMPUTE: &str = "~/resourceGroups/rg/providers/Microsoft.Compute";
const PATIENCE: Duration = Duration::from_secs(120);

/// Has somebody ask, and kills the server after a while.
fn killed_during(managed: &mut Managed, line: &str, body: Option<&Value>, after: Duration) {
    let client = managed.client(&managed.admin);
    std::thread::scope(|scope| {
        let client = &client;
        let asked = scope.spawn(move || {
            let _cut_off = catch_unwind(AssertUnwindSafe(|| client.ask(line, body)));
        });
        std::thread::sleep(after);
        kill_process(managed.served.pid(), Signal::KILL).unwrap();
        asked.join().unwrap();
    });
    managed.served = serve(&managed.host);
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_group_that_was_being_deleted_goes_with_all_of_it() {
    let mut managed = Managed::new();
    let client = managed.client(&managed.admin);
    group(&client);
    for at in 0..40 {
        let body = json!({"location": "local", "properties": {
            "creationData": {"createOption": "Empty"}, "diskSizeGB": 1}});
        client.ok(&format!("PUT {COMPUTE}/disks/d{at}"), Some(&body));
    }
    killed_during(
        &mut managed,
        "DELETE ~/resourcegroups/rg",
        None,
        Duration::from_millis(250),
    );
    let client = managed.client(&managed.admin);
    eventually("the group goes", || {
        client.ask("HEAD ~/resourcegroups/rg", None).status == 404
    });
    assert_eq!(managed.host.json("disk list"), json!([]));
}

const D: &str = "~/resourceGroups/default/providers/Microsoft.Compute/disks/d";

/// An operation of the owner, as the catalog has it.
fn noted(managed: &Managed, state: OperationState, answer: Value) -> Uuid {
    let record = OperationRecord {
        id: Uuid::new_v4(),
        deployment: None,
        target: D.replacen('~', &managed.subscription(), 1),
        state,
        started: Touch {
            at: OffsetDateTime::now_utc(),
            by: managed.admin.object_id.parse().unwrap(),
        },
        changed: OffsetDateTime::now_utc(),
        request: json!({}),
        answer,
    };
    let installation = managed.host.installation();
    installation.catalog().put_operation(&record).unwrap();
    record.id
}

#[test]
fn an_operation_is_told_to_whoever_began_it_and_to_readers() {
    let managed = Managed::new();
    let owner = managed.client(&managed.admin);
    managed.host.ok("disk create d --size 1GiB");
    let bob = managed.user("bob");
    let bobs = managed.client(&bob);
    let error = json!({"code": "KeyVaultAccessForbidden", "message": "No."});
    let failed = noted(
        &managed,
        OperationState::Failed,
        json!({"status": 403, "error": error}),
    );
    let done = noted(&managed, OperationState::Succeeded, json!({}));
    let runs = noted(&managed, OperationState::Running, json!({}));
    let status = |id: Uuid| format!("GET ~/operationStatuses/{id}");
    let result = |id: Uuid| format!("GET ~/operationresults/{id}");
    let told = owner.ok(&status(failed), None);
    assert_eq!(
        (&told["status"], &told["error"]),
        (&json!("Failed"), &error)
    );
    assert!(told["endTime"].is_string(), "{told}");
    assert_eq!(
        owner.refused(&result(failed), None),
        (403, "KeyVaultAccessForbidden".into())
    );
    assert_eq!(owner.ok(&status(done), None)["status"], "Succeeded");
    assert_eq!(
        owner.ok(&result(done), None),
        owner.ok(&format!("GET {D}"), None)
    );
    assert_eq!(owner.ok(&status(runs), None)["status"], "InProgress");
    let waits = owner.ask(&result(runs), None);
    assert_eq!(waits.status, 202, "{waits:?}");
    assert_eq!(waits.header("retry-after"), Some("1"));
    assert!(
        waits
            .header("location")
            .unwrap()
            .contains(&runs.to_string())
    );
    for line in [status(failed), result(done), status(runs)] {
        assert_eq!(bobs.refused(&line, None), (404, "OperationNotFound".into()));
    }
    for id in ["00000000-0000-0000-0000-000000000001", "x", "..", "%25"] {
        let (status, _) = owner.refused(&format!("GET ~/operationstatuses/{id}"), None);
        assert!([400, 404].contains(&status), "{id}");
    }
    managed
        .host
        .ok("role assignment create --assignee bob --role Reader");
    let reader = managed.client(&bob);
    assert_eq!(reader.ok(&status(done), None)["status"], "Succeeded");
    // One that nobody goes on with ends when the server begins again.
    let mut managed = managed;
    kill_process(managed.served.pid(), Signal::KILL).unwrap();
    managed.served = serve(&managed.host);
    let told = managed.client(&managed.admin).ok(&status(runs), None);
    assert_eq!(told["status"], "Failed", "{told}");
}
