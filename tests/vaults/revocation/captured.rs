//! A data plane that a guest has taken over: what it says does not keep its key.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use test_support::{Customer, Daemon, PATIENCE, await_end, children, kill, stop};

use super::{FAIL, MIB};

/// The end of the command channel that the data plane has, as its captor has it.
fn voice(daemon: &Daemon) -> UnixStream {
    let pid = Pid::from_raw(daemon.data_plane().cast_signed()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let number = protocol::COMMAND_FD;
    pidfd_getfd(process, number, PidfdGetfdFlags::empty())
        .unwrap()
        .into()
}

#[test]
fn half_a_line_holds_neither_the_guard_up_nor_a_signal() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    customer.wait_served();
    voice(&daemon).write_all(b"storage-fu").unwrap();
    customer.enable(false);
    let end = Instant::now() + PATIENCE;
    while !customer.events().contains(&"KeyRevoked".to_owned()) {
        assert!(Instant::now() < end, "the key is not guarded any more");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

#[test]
fn what_is_no_text_does_not_end_the_guard() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    customer.wait_served();
    voice(&daemon).write_all(b"\xff\xfe\n").unwrap();
    customer.enable(false);
    customer.wait_stopped();
    assert!(daemon.terminate().success(), "{}", daemon.log());
}

#[test]
fn a_flood_of_lines_does_not_keep_the_key() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    let mut voice = voice(&daemon);
    // It ends with the other end of the socket.
    let flood = thread::spawn(move || while voice.write_all(&[b'\n'; 512]).is_ok() {});
    customer.enable(false);
    customer.wait_stopped();
    drop(daemon);
    flood.join().unwrap();
}

/// A message in its frame.
fn frame(json: &str) -> String {
    format!("{:05} {json}\n", json.len())
}

#[test]
fn an_event_that_no_version_has_is_refused_by_name() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    customer.wait_served();
    let event = frame(r#"{"event":"on-\u001b[2Jfire"}"#);
    voice(&daemon).write_all(event.as_bytes()).unwrap();
    customer.enable(false);
    customer.wait_stopped();
    assert!(daemon.terminate().success(), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("unknown variant `on-[2Jfire`"), "{log}");
}

#[test]
fn an_answer_that_nobody_asked_for_is_the_data_planes_end() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    let pid = daemon.data_plane();
    let answer = frame(r#"{"reply":{"number":1,"reply":"key-destroyed"}}"#);
    voice(&daemon).write_all(answer.as_bytes()).unwrap();
    wait_killed(&daemon, pid);
}

/// The launcher, which would kill it, is dead: the attach process does.
#[test]
fn a_data_plane_whose_launcher_is_dead_is_killed_all_the_same() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    let pid = daemon.data_plane();
    kill(children(daemon.pid())[0]);
    let end = Instant::now() + PATIENCE;
    while !customer.events().contains(&"LauncherEnded".to_owned()) {
        assert!(Instant::now() < end, "{}", daemon.log());
        thread::sleep(Duration::from_millis(20));
    }
    let answer = frame(r#"{"reply":{"number":1,"reply":"key-destroyed"}}"#);
    voice(&daemon).write_all(answer.as_bytes()).unwrap();
    wait_killed(&daemon, pid);
}

/// Nor does it keep a revoked key by doing nothing.
#[test]
fn a_data_plane_that_does_nothing_is_killed_without_its_launcher() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    customer.wait_served();
    let pid = daemon.data_plane();
    kill(children(daemon.pid())[0]);
    stop(pid);
    customer.enable(false);
    // Half a minute after the revocation.
    await_end(pid);
    assert!(!daemon.wait().success(), "{}", daemon.log());
}

fn wait_killed(daemon: &Daemon, pid: u32) {
    await_end(pid);
    // It is told before it is killed.
    let log = daemon.log();
    assert!(log.contains("says what none does"), "{log}");
}

#[test]
fn a_line_without_an_end_is_the_data_planes_end() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    let (pid, mut voice) = (daemon.data_plane(), voice(&daemon));
    let flood = thread::spawn(move || while voice.write_all(&[b'x'; 4096]).is_ok() {});
    wait_killed(&daemon, pid);
    flood.join().unwrap();
}
