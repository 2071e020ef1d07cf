//! What an operator and programs see, and that those who watch hold nothing up.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::{Customer, PATIENCE};

use super::{FAIL, MIB, PAUSE};

fn control_socket(customer: &Customer) -> PathBuf {
    std::fs::read_dir(customer.disk.runtime())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "control"))
        .unwrap()
}

/// `disk events --follow`.
struct Follower {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Follower {
    fn new(customer: &Customer) -> Self {
        let mut child = customer
            .disk
            .command(&["disk", "events", "disk", "--follow"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    fn expect(&mut self, event: &str) -> Value {
        let found = self.next().expect("an event");
        assert_eq!(found["event"], event, "{found}");
        assert_eq!(found["disk"], "disk");
        found
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_come_as_they_happen_and_end_with_the_attach() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    let mut follower = Follower::new(&customer);
    follower.expect("Attached");
    customer.enable(false);
    let revoked = follower.expect("KeyRevoked");
    assert_eq!(revoked["reason"]["code"], "KeyDisabled");
    let destroyed = follower.expect("DekDestroyed");
    assert!(destroyed["time"].as_str() >= revoked["time"].as_str());
    customer.enable(true);
    follower.expect("KeyRestored");
    // Who comes later gets what was before, too.
    let kept = ["Attached", "KeyRevoked", "DekDestroyed", "KeyRestored"];
    assert_eq!(customer.events(), kept);
    assert!(daemon.terminate().success());
    follower.expect("Detached");
    assert!(follower.next().is_none());
    let gone = customer.disk.command(&["disk", "events", "disk"]).output();
    let gone = gone.unwrap();
    assert!(!gone.status.success());
    assert!(String::from_utf8_lossy(&gone.stderr).contains("not attached"));
}

#[test]
fn what_the_key_is_worth_is_shown_and_only_while_the_disk_is_attached() {
    let customer = Customer::new(4 * MIB);
    assert_eq!(customer.show()["keyAccess"], Value::Null);
    let daemon = customer.attach(PAUSE);
    let access = customer.wait_served();
    assert_eq!(access["checkIntervalSeconds"], 1);
    assert_eq!(access["graceSeconds"], 3600);
    assert_eq!(access["onRevoke"], "pause");
    let version = customer.show()["encryption"]["keyUrl"].take();
    assert_eq!(access["keyUrl"], version);
    let (first, end) = (access["lastGranted"].clone(), Instant::now() + PATIENCE);
    while customer.wait_served()["lastGranted"] == first {
        assert!(Instant::now() < end, "the key is never checked");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(customer.show()["diskState"], "Attached");
    drop(daemon);
    assert_eq!(customer.show()["keyAccess"], Value::Null);
}

/// Clients that say nothing, say nonsense, never read or went away: the guard and other clients do
/// not notice.
#[test]
fn clients_of_the_control_socket_hold_nothing_up() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    let path = control_socket(&customer);
    let silent: Vec<UnixStream> = (0..8)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let deaf: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            writeln!(client, "{{\"events\":{{\"follow\":true}}}}").unwrap();
            client
        })
        .collect();
    for nonsense in ["\n", "{}\n", "[1\n", "\"bogus\"\n", "\u{0}\n"] {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\""), "{nonsense:?}: {answer}");
    }
    let mut long = UnixStream::connect(&path).unwrap();
    let _ = long.write_all(&vec![b'x'; 100_000]);
    let started = Instant::now();
    customer.wait_served();
    assert!(started.elapsed() < Duration::from_secs(2), "held up");
    customer.enable(false);
    customer.wait_stopped();
    drop((silent, deaf));
    customer.enable(true);
    customer.wait_served();
    // More than there may be at once, one after the other: places become free again.
    let end = Instant::now() + PATIENCE;
    for _ in 0..100 {
        let mut client = UnixStream::connect(&path).unwrap();
        let _ = writeln!(client, "\"status\"");
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        if !answer.starts_with("{\"ok\"") {
            assert!(Instant::now() < end, "no client is served any more");
            thread::sleep(Duration::from_millis(100));
        }
    }
    drop(daemon);
}
