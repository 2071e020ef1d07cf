//! `status --watch` and `keyvault serve`, which tell of a host and of its vaults.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use test_support::Host;

use super::{count, is_alarm, page, script, wait};

/// A host with a vault and a key in it, which is looked at each second.
fn host() -> Host {
    let host = Host::new();
    host.ok("alarm update --look-interval 1 --space-warning 0 --space-critical 0");
    host.ok("keyvault create myvault");
    host.ok("keyvault key create k --vault-name myvault --size 2048");
    host
}

/// Has the key end in so many days.
fn expires(host: &Host, days: i64) {
    let time = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let time = time
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    host.ok(&format!(
        "keyvault key set-attributes k --vault-name myvault --expires {time}"
    ));
}

/// A process that ends with its test.
struct Watch(Child);

impl Watch {
    /// Has it end in order.
    fn end(mut self) -> std::process::ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watcher_prints_and_tells_each_change_once() {
    let host = host();
    let (page, out) = page(&host, "page");
    let failing = script(&host, "fail", "exit 1");
    let mut command = host.command(&["status", "--watch", "-o", "json"]);
    command.args(["--on-event", &page, "--on-event", &failing]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let watch = Watch(child);
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    expires(&host, 5);
    let raised = next();
    assert!(
        is_alarm(&raised, "AlarmRaised", "KeyNearExpiry"),
        "{raised:#}"
    );
    assert_eq!(raised["alarm"]["severity"], "Critical");
    expires(&host, 400);
    let cleared = next();
    assert!(
        is_alarm(&cleared, "AlarmCleared", "KeyNearExpiry"),
        "{cleared:#}"
    );
    wait("both are told", || count(&out, |_| true) == 2);
    // What was printed last is told before the end.
    expires(&host, 5);
    assert!(is_alarm(&next(), "AlarmRaised", "KeyNearExpiry"));
    assert!(watch.end().success());
    assert_eq!(count(&out, |event| event["event"] == "AlarmRaised"), 2);
    // Only a watcher tells.
    let refused = host.run(&["status", "--on-event", &page]);
    assert_eq!(refused.status.code(), Some(2));
}

/// An event about the watcher itself.
fn is_of_watcher(event: &Value, name: &str) -> bool {
    is_alarm(event, name, "NotKnown") && event["alarm"]["subject"]["name"] == "watcher"
}

/// What cannot be looked at is told, once, and once when it is over; nobody takes silence for safety.
#[test]
fn a_watcher_that_sees_nothing_tells_that_once_and_when_it_sees_again() {
    let host = host();
    let (page, out) = page(&host, "page");
    let mut command = host.command(&["status", "--watch", "-o", "json"]);
    command.args(["--on-event", &page]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let watch = Watch(child);
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    expires(&host, 20);
    assert!(is_alarm(&next(), "AlarmRaised", "KeyNearExpiry"));
    let (catalog, aside) = (host.state().join("catalog.db"), host.path("aside"));
    std::fs::rename(&catalog, &aside).unwrap();
    let raised = next();
    assert!(is_of_watcher(&raised, "AlarmRaised"), "{raised:#}");
    assert_eq!(raised["alarm"]["severity"], "Critical");
    // It looks some times more.
    std::thread::sleep(std::time::Duration::from_secs(3));
    std::fs::rename(&aside, &catalog).unwrap();
    let cleared = next();
    assert!(is_of_watcher(&cleared, "AlarmCleared"), "{cleared:#}");
    wait("all are told", || count(&out, |_| true) == 3);
    std::fs::rename(&catalog, &aside).unwrap();
    assert!(is_of_watcher(&next(), "AlarmRaised"));
    assert_eq!(watch.end().code(), Some(3), "nothing is known at the end");
}

#[test]
fn served_vaults_tell_that_they_are_not_looked_at() {
    let host = host();
    let (page, out) = page(&host, "page");
    let server = host.serve(&format!("--on-event {page}"));
    let (catalog, aside) = (host.state().join("catalog.db"), host.path("aside"));
    std::fs::rename(&catalog, &aside).unwrap();
    let told = |name: &str| count(&out, |event| is_of_watcher(event, name));
    wait("it is told", || told("AlarmRaised") == 1);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!catalog.exists(), "nobody makes another one");
    std::fs::rename(&aside, &catalog).unwrap();
    wait("it is over", || told("AlarmCleared") == 1);
    assert_eq!(told("AlarmRaised"), 1);
    drop(server);
}

#[test]
fn a_query_that_never_finds_anything_is_refused() {
    let host = host();
    for query in ["foo", "[?event=='AlarmRaised']", "alarm.foo"] {
        let run = host.run(&["status", "--watch", "--query", query]);
        assert_eq!(run.status.code(), Some(2), "{query}");
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(said.contains("finds nothing"), "{said}");
    }
}

#[test]
fn served_vaults_tell_of_their_keys_and_of_their_certificate() {
    let host = host();
    let (page, out) = page(&host, "page");
    let mut params = rcgen::CertificateParams::new(vec!["vault.localhost".into()]).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(10);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::write(host.path("c.pem"), pem).unwrap();
    std::fs::write(host.path("c.key"), key.serialize_pem()).unwrap();
    let files = format!("--cert {} --key {}", host.file("c.pem"), host.file("c.key"));
    let server = host.serve(&format!("{files} --on-event {page}"));
    let raised = |code: &str| count(&out, |event| is_alarm(event, "AlarmRaised", code));
    wait("the certificate", || raised("CertificateNearExpiry") == 1);
    expires(&host, 20);
    wait("the key", || raised("KeyNearExpiry") == 1);
    expires(&host, 400);
    let cleared = || {
        count(&out, |event| {
            is_alarm(event, "AlarmCleared", "KeyNearExpiry")
        })
    };
    wait("it is over", || cleared() == 1);
    assert_eq!(raised("CertificateNearExpiry"), 1);
    server.terminate();
    assert!(server.wait().success());
}
