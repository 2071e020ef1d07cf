//! Targets that take what they are told, and targets that fail in every way.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::notifier::{FAREWELL, TRIES, TRY_LIMIT};
use super::process::tell;
use super::webhook::Webhook;
use super::{Notifier, Target, command, queue};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn script(dir: &TempDir, body: &str) -> Target {
    let path = dir.path().join("command");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path.to_str().unwrap().parse().unwrap()
}

fn told(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// An address that answers each request with the next of `answers`, and the last one again and again. What was
/// asked comes out of the other end.
fn server(answers: &'static [&'static str]) -> (Target, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://{}/hook?token=s3cret",
        listener.local_addr().unwrap()
    );
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let _ = sender.send(request(&mut client));
            let answer = answers[number.min(answers.len() - 1)];
            let _ = write!(
                client,
                "HTTP/1.1 {answer}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
        }
    });
    (url.parse().unwrap(), asked)
}

/// The body of a request.
fn request(client: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
        read.push(byte[0]);
    }
    let head = String::from_utf8(read).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

/// How many requests come for one event.
fn requests_for(answers: &'static [&'static str]) -> usize {
    let (target, asked) = server(answers);
    let notifier = Notifier::start(&[target]).unwrap();
    notifier.tell("{\"event\":\"E\"}");
    notifier.finish(PATIENCE);
    asked.try_iter().count()
}

#[test]
fn a_command_reads_the_event_and_has_nothing_of_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (out, env) = (dir.path().join("out"), dir.path().join("env"));
    let body = format!("cat >> {}; env > {}", out.display(), env.display());
    let notifier = Notifier::start(&[script(&dir, &body)]).unwrap();
    notifier.tell("{\"event\":\"E\",\"n\":1}");
    notifier.tell("{\"event\":\"E\",\"n\":2}");
    notifier.finish(PATIENCE);
    let told = told(&out);
    assert_eq!(
        told.iter().map(|event| &event["n"]).collect::<Vec<_>>(),
        [1, 2]
    );
    assert!(
        told[0]["host"]
            .as_str()
            .is_some_and(|host| !host.is_empty())
    );
    let names = fs::read_to_string(env).unwrap();
    assert!(!names.contains("CARGO"), "{names}");
}

/// Ways to start a process that stays: in the group of the command, in a group and session of its own, and as a daemon
/// whose parent has ended.
const STAYING: [&str; 3] = [
    "sleep 1000 & echo $! > PIDS",
    "setsid sleep 1000 & echo $! > PIDS",
    "(setsid sh -c 'echo $$ > PIDS; exec sleep 1000' &) ; until test -s PIDS; do sleep 0.01; done",
];

/// A command that starts a process in that way and goes on in that one, and the file that gets its id.
fn staying(dir: &TempDir, way: &str, then: &str) -> (Vec<String>, PathBuf) {
    let pids = dir.path().join("pids");
    let _ = fs::remove_file(&pids);
    let way = way.replace("PIDS", pids.to_str().unwrap());
    let Target::Command(words) = script(dir, &format!("{way}\n{then}")) else {
        panic!("a command");
    };
    (words, pids)
}

#[test]
fn a_command_that_hangs_is_killed_with_what_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    for way in STAYING {
        let (words, pids) = staying(&dir, way, "exec sleep 1000");
        let began = Instant::now();
        let error = command::run(&words, "{}", Duration::from_millis(500)).unwrap_err();
        assert!(error.again && error.why.contains("killed"), "{error:?}");
        assert!(began.elapsed() < PATIENCE);
        assert_ended(&pids);
    }
}

#[test]
fn what_a_command_has_started_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    for way in STAYING {
        for status in [0, 3] {
            let (words, pids) = staying(&dir, way, &format!("exit {status}"));
            let run = command::run(&words, "{}", PATIENCE);
            assert_eq!(run.is_ok(), status == 0, "{run:?}");
            if let Err(error) = run {
                assert!(error.why.contains('3'), "{error:?}");
            }
            assert_ended(&pids);
        }
    }
}

/// The process whose id is in a file is no more, and somebody has heard of its end.
fn assert_ended(file: &Path) {
    let pid = fs::read_to_string(file).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", pid.trim()));
    assert!(!proc.exists(), "{pid} is still there");
}

#[test]
fn a_command_that_was_killed_is_told_from_one_that_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let Target::Command(words) = script(&dir, "kill -9 $$") else {
        panic!("a command");
    };
    let error = command::run(&words, "{}", PATIENCE).unwrap_err();
    assert!(error.why.contains("137"), "{error:?}");
}

/// What is being tried when the end comes has its time, and no more.
#[test]
fn the_end_leaves_no_command_behind() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let body = format!("echo $$ >> {}; exec sleep 1000", pids.display());
    let notifier = Notifier::start(&[script(&dir, &body)]).unwrap();
    notifier.tell("{}");
    notifier.tell("{}");
    notifier.finish(FAREWELL);
    for pid in fs::read_to_string(&pids).unwrap().lines() {
        let gone = !PathBuf::from(format!("/proc/{pid}")).exists();
        assert!(gone, "{pid} is still there");
    }
}

#[test]
fn a_command_that_is_not_there_or_fails_is_tried_again_and_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let tries = dir.path().join("tries");
    let failing = script(&dir, &format!("echo x >> {}; exit 3", tries.display()));
    let missing: Target = "/nonexistent/command".parse().unwrap();
    let notifier = Notifier::start(&[failing, missing]).unwrap();
    notifier.tell("{}");
    notifier.finish(PATIENCE);
    let count = fs::read_to_string(tries).unwrap().lines().count();
    assert_eq!(count, TRIES as usize);
}

#[test]
fn a_webhook_gets_the_event_once() {
    let (target, asked) = server(&["204 No Content"]);
    let notifier = Notifier::start(&[target]).unwrap();
    notifier.tell("{\"event\":\"E\"}");
    notifier.finish(PATIENCE);
    let bodies: Vec<_> = asked.try_iter().collect();
    assert_eq!(bodies.len(), 1);
    let event: Value = serde_json::from_str(&bodies[0]).unwrap();
    assert_eq!(event["event"], "E");
}

#[test]
fn a_webhook_is_tried_again_where_that_may_help_and_not_followed_elsewhere() {
    assert_eq!(requests_for(&["500 Oops"]), TRIES as usize);
    assert_eq!(requests_for(&["503 Busy", "429 Slow", "200 OK"]), 3);
    assert_eq!(requests_for(&["404 Not Found"]), 1);
    assert_eq!(requests_for(&["302 Found\r\nLocation: /elsewhere"]), 1);
}

#[test]
fn a_webhook_that_never_answers_holds_up_neither_others_nor_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent: Target = format!("http://{}/", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let (target, asked) = server(&["200 OK"]);
    let notifier = Notifier::start(&[silent.clone(), target]).unwrap();
    let began = Instant::now();
    for _ in 0..10 * queue::ROOM {
        notifier.tell("{\"event\":\"E\"}");
    }
    assert!(began.elapsed() < TRY_LIMIT, "telling waits for nobody");
    assert!(asked.recv_timeout(PATIENCE).is_ok());
    notifier.finish(Duration::from_millis(200));
    assert!(began.elapsed() < PATIENCE);
    // And it is a failure after its time.
    let Target::Webhook(url) = silent else {
        panic!("a webhook");
    };
    let webhook = Webhook::new(url).unwrap();
    let error = webhook.post("{}", Duration::from_millis(100)).unwrap_err();
    assert!(error.again, "{error:?}");
}

#[test]
fn a_secret_in_an_address_is_not_in_what_is_said() {
    // Nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = url::Url::parse(&format!("http://u:s3cret@{address}/s3cret?s3cret")).unwrap();
    let webhook = Webhook::new(url).unwrap();
    let error = webhook.post("{}", PATIENCE).unwrap_err();
    assert!(!error.why.contains("s3cret"), "{}", error.why);
}

#[test]
fn the_process_tells_all_that_was_read_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let target = script(&dir, &format!("cat >> {}", out.display()));
    let long = format!("{{\"x\":\"{}\"}}", "y".repeat(10_000));
    let input = format!("{{\"n\":1}}\n{long}\n{{\"n\":2}}");
    let (mut ours, its) = UnixStream::pair().unwrap();
    ours.write_all(input.as_bytes()).unwrap();
    drop(ours);
    tell(&its, &[target], VecDeque::new(), None).unwrap();
    let told = told(&out);
    assert_eq!((told.len(), &told[2]["n"]), (3, &Value::from(2)));
}
