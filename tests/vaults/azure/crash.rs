//! A server that is killed or finds the disk full, with clients that create, rotate and purge: what
//! was answered is kept, what was not is there or is not, and nothing is half there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_support::{Host, Server};

use super::client::{Answer, Client};
use super::served::{User, host_with_vault, serve_with_full_disk};

/// A server that makes no key in that time makes none.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a client was told about a key.
#[derive(Default)]
struct Acknowledged {
    /// Versions that were made.
    versions: Vec<String>,
    /// Whether its purge was begun, and whether it was confirmed.
    purge_begun: bool,
    purged: bool,
}

type Ledger = Mutex<BTreeMap<String, Acknowledged>>;

/// Makes, rotates and purges keys until the server is gone.
fn work(client: &Client<'_>, number: usize, round: usize, ledger: &Ledger) {
    for n in 0.. {
        let name = format!("r{round}-c{number}-{n}");
        let body = json!({"kty": "RSA"});
        let told = |change: &dyn Fn(&mut Acknowledged)| {
            change(ledger.lock().unwrap().entry(name.clone()).or_default());
        };
        for line in ["create", "rotate", "rotate"] {
            match client.try_ask(&format!("POST /keys/{name}/{line}"), Some(&body)) {
                Ok(Answer {
                    status: 200, body, ..
                }) => {
                    let kid = body["key"]["kid"].as_str().unwrap();
                    let version = kid.rsplit_once('/').unwrap().1.to_owned();
                    told(&|t| t.versions.push(version.clone()));
                }
                // A full disk; or no answer.
                Ok(Answer { status: 500, .. }) | Err(_) => return,
                Ok(other) => panic!("{line}: {other:?}"),
            }
        }
        if n % 2 == 1 {
            continue;
        }
        told(&|t| t.purge_begun = true);
        for (line, status) in [("DELETE /keys/", 200), ("DELETE /deletedkeys/", 204)] {
            match client.try_ask(&format!("{line}{name}"), None) {
                Ok(answer) if answer.status == status => {}
                Ok(Answer { status: 500, .. }) | Err(_) => return,
                Ok(other) => panic!("{line}: {other:?}"),
            }
        }
        told(&|t| t.purged = true);
    }
}

/// Compares what is there with what was told.
fn check(served: &Server, user: &User, ledger: &Ledger) {
    let client = Client::new(served, user);
    for (name, told) in ledger.lock().unwrap().iter() {
        let answer = client.ask(&format!("GET /keys/{name}/versions"), None);
        if told.purged {
            assert_eq!(answer.status, 404, "{name} is back: {answer:?}");
            let answer = client.ask(&format!("GET /deletedkeys/{name}"), None);
            assert_eq!(answer.status, 404, "{name} is back: {answer:?}");
            continue;
        }
        if told.purge_begun && answer.status == 404 {
            continue;
        }
        assert_eq!(answer.status, 200, "{name} is lost: {answer:?}");
        let there: Vec<&str> = answer.body["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["kid"].as_str().unwrap().rsplit_once('/').unwrap().1)
            .collect();
        for version in &told.versions {
            assert!(
                there.contains(&version.as_str()),
                "{name}/{version} is lost"
            );
        }
        for version in there {
            works(&client, name, version);
        }
    }
}

fn works(client: &Client<'_>, name: &str, version: &str) {
    let ask = |operation: &str, value: &Value| {
        let line = format!("POST /keys/{name}/{version}/{operation}");
        let body = json!({"alg": "RSA-OAEP-256", "value": value});
        let answer = client.ask(&line, Some(&body));
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        answer.body["value"].clone()
    };
    let secret = json!("c2VjcmV0");
    let wrapped = ask("wrapkey", &secret);
    assert_eq!(ask("unwrapkey", &wrapped), secret);
}

fn load(served: &Server, user: &User, round: usize, ledger: &Ledger, meanwhile: impl FnOnce()) {
    let clients: Vec<Client<'_>> = (0..4).map(|_| Client::new(served, user)).collect();
    scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            scope.spawn(move || work(client, number, round, ledger));
        }
        meanwhile();
    });
}

/// How many versions clients know of.
fn answered(ledger: &Ledger) -> usize {
    let ledger = ledger.lock().unwrap();
    ledger.values().map(|told| told.versions.len()).sum()
}

fn audit_verifies(host: &Host) {
    let output = host.run("audit verify");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn nothing_is_lost_by_kill_9() {
    let (host, alice) = host_with_vault();
    let ledger = Ledger::default();
    for round in 0..6 {
        let served = host.serve("");
        let pid = served.pid();
        let before = answered(&ledger);
        load(&served, &alice, round, &ledger, || {
            // Some answers into the round, at no moment in particular.
            let started = Instant::now();
            while answered(&ledger) < before + 3 * round && started.elapsed() < PATIENCE {
                sleep(Duration::from_millis(5));
            }
            sleep(Duration::from_millis(rand::random_range(0..100)));
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        drop(served);
        audit_verifies(&host);
    }
    assert!(answered(&ledger) > 30, "the clients did next to nothing");
    let served = host.serve("");
    check(&served, &alice, &ledger);
}

#[test]
fn nothing_is_lost_on_a_full_disk() {
    let (host, alice) = host_with_vault();
    let ledger = Ledger::default();
    // 512 KiB for each file of the database.
    let served = serve_with_full_disk(&host, 1024);
    load(&served, &alice, 0, &ledger, || {});
    // It is still there, refuses with an error of its own, and what needs no space works.
    let client = Client::new(&served, &alice);
    let answer = client.ask("POST /keys/full/create", Some(&json!({"kty": "RSA"})));
    assert_eq!(
        (answer.status, answer.code()),
        (500, "InternalServerError"),
        "{answer:?}"
    );
    drop(served);
    audit_verifies(&host);
    let served = host.serve("");
    check(&served, &alice, &ledger);
    assert!(!ledger.lock().unwrap().is_empty(), "nothing was made");
    Client::new(&served, &alice).create("after");
}
