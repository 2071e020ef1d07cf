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
