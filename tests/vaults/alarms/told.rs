//! `attach --on-event`: who is told what, and that whoever does not listen holds nothing up.

use std::cell::RefCell;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use test_support::{
    Customer, Daemon, PATIENCE, children, open_files, stat, stop, with_descendants,
};

use super::{count, customer, is_alarm, page, script, told, wait};

const OFTEN: [&str; 4] = ["--key-check-interval", "1s", "--on-revoke", "error"];

/// Attaches the disk, and has these told of its events.
fn attach(customer: &Customer, targets: &[&str]) -> Daemon {
    let mut options = OFTEN.to_vec();
    for target in targets {
        options.extend(["--on-event", target]);
    }
    customer.attach_with("disk", &options)
}

fn names(out: &Path) -> Vec<String> {
    let told = told(out).into_iter();
    told.map(|event| event["event"].as_str().unwrap().to_owned())
        .collect()
}

/// The names where whoever tells may be killed before it has noted that an event was told: that is told twice.
fn names_once(out: &Path) -> Vec<String> {
    let mut names = names(out);
    names.dedup();
    names
}

#[test]
fn a_program_is_told_all_events_the_last_one_too() {
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let mut daemon = attach(&customer, &[&page]);
    wait("Attached", || names(&out) == ["Attached"]);
    customer.enable(false);
    customer.wait_stopped();
    customer.enable(true);
    customer.wait_served();
    assert!(daemon.terminate().success());
    let all = [
        "Attached",
        "KeyRevoked",
        "DekDestroyed",
        "KeyRestored",
        "Detached",
    ];
    wait("Detached", || names(&out) == all);
    let told = told(&out);
    assert!(
        told.iter()
            .all(|event| event["disk"] == "disk" && event["host"].is_string()),
        "{told:#?}"
    );
    assert_eq!(told[1]["reason"]["code"], "KeyDisabled");
}

#[test]
fn a_key_near_its_end_is_told_once_and_once_when_that_is_over() {
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let daemon = attach(&customer, &[&page]);
    let expires = |days: i64| {
        let time = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let time = time
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap();
        customer.set_key(&["--expires", &time]);
    };
    let raised = || {
        count(&out, |event| {
            is_alarm(event, "AlarmRaised", "KeyNearExpiry")
        })
    };
    let cleared = || {
        count(&out, |event| {
            is_alarm(event, "AlarmCleared", "KeyNearExpiry")
        })
    };
    expires(20);
    wait("a warning", || raised() == 1);
    let looks = || std::thread::sleep(Duration::from_secs(3));
    looks();
    assert_eq!((raised(), cleared()), (1, 0), "it is told once");
    expires(5);
    wait("it is critical", || raised() == 2);
    expires(400);
    wait("it is over", || cleared() == 1);
    looks();
    assert_eq!((raised(), cleared()), (2, 1));
    // The events of the disk have the same, and so does the log.
    let events = customer.events();
    assert_eq!(
        events.iter().filter(|name| *name == "AlarmRaised").count(),
        2
    );
    assert_eq!(
        events.iter().filter(|name| *name == "AlarmCleared").count(),
        1
    );
    assert!(daemon.log().contains("KeyNearExpiry"), "{}", daemon.log());
}

#[test]
fn a_disk_that_a_rotation_has_left_behind_is_told_until_it_follows() {
    let customer = customer();
    customer.ok("alarm update --rotation-grace 0");
    customer.ok("disk-encryption-set update set --enable-auto-key-rotation true");
    let daemon = attach(&customer, &[]);
    let events = |name: &str| {
        let text = customer.text("disk events disk");
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        events
            .filter(|event| is_alarm(event, name, "OldKeyVersion"))
            .count()
    };
    customer.create_key();
    wait("it is told", || events("AlarmRaised") == 1);
    // The header is written by another process.
    customer.ok("disk-encryption-set rotate set");
    wait("it is over", || events("AlarmCleared") == 1);
    assert_eq!(events("AlarmRaised"), 1);
    drop(daemon);
}

/// A program that hangs, one that is not there, and an address that never answers.
#[test]
fn who_does_not_listen_holds_up_neither_the_disk_nor_its_key() {
    let customer = customer();
    let hanging = script(&customer, "hang", "sleep 1000");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", silent.local_addr().unwrap());
    let mut daemon = attach(&customer, &[&hanging, "/nonexistent/page", &address]);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    for _ in 0..3 {
        queue.write(0, &[7; 4096]).unwrap();
        assert_eq!(queue.read(0, 4096).unwrap(), [7; 4096]);
        let began = Instant::now();
        customer.enable(false);
        customer.wait_stopped();
        assert!(began.elapsed() < PATIENCE / 2, "the key is checked as ever");
        customer.enable(true);
        customer.wait_served();
    }
    drop(frontend);
    let began = Instant::now();
    assert!(daemon.terminate().success());
    assert!(began.elapsed() < PATIENCE / 2, "and the end does not wait");
    drop(silent);
}

#[test]
fn a_webhook_gets_events_and_who_cannot_be_told_is_refused_before() {
    let customer = customer();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/hook", listener.local_addr().unwrap());
    let daemon = attach(&customer, &[&address]);
    let (mut client, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    while !line.ends_with("\"host\"") && !line.contains("\"event\":\"Attached\"") {
        let mut more = vec![0; 1];
        reader.read_exact(&mut more).unwrap();
        line.push(char::from(more[0]));
    }
    assert!(line.starts_with("POST /hook HTTP/1.1\r\n"), "{line}");
    client
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .unwrap();
    drop((client, daemon));
    for bad in ["page", "ftp://x/"] {
        let refused = customer.run(&[
            "attach",
            "disk",
            "--socket-path",
            "/tmp/s",
            "--on-event",
            bad,
        ]);
        assert_eq!(refused.status.code(), Some(2), "{bad}");
        assert!(!refused.stderr.is_empty());
    }
}

/// Neither who is told nor what was told is forgotten when the attach process goes on as another program.
#[test]
fn an_upgrade_of_the_attach_goes_on_telling_and_tells_nothing_twice() {
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let mut daemon = attach(&customer, &[&page]);
    let near = time::OffsetDateTime::now_utc() + time::Duration::days(20);
    let near = near
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    customer.set_key(&["--expires", &near]);
    let raised = || {
        count(&out, |event| {
            is_alarm(event, "AlarmRaised", "KeyNearExpiry")
        })
    };
    wait("the alarm", || raised() == 1);
    customer.ok("upgrade disk");
    wait("the upgrade", || {
        names(&out).contains(&"AttachProcessUpgraded".to_owned())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(raised(), 1, "{:?}", names(&out));
    customer.set_key(&["--expires", ""]);
    wait("it is over", || {
        count(&out, |event| {
            is_alarm(event, "AlarmCleared", "KeyNearExpiry")
        }) == 1
    });
    assert!(daemon.terminate().success());
    wait("Detached", || names(&out).contains(&"Detached".to_owned()));
}

/// Whether a process tells of events, or stands by for that. What holds a program together is a copy of one.
fn is_notifier(process: u32) -> bool {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"event-notifier") && !holds_a_program(process)
}

/// Whether a process stands between one that tells and a program.
fn holds_a_program(process: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
    name.is_ok_and(|name| name.trim_end() == "event-command")
}

/// The process that tells of the events of an attach.
fn notifier_of(attach: u32) -> Option<u32> {
    children(attach).into_iter().find(|one| is_notifier(*one))
}

/// Kills a process that tells, and waits until another one does.
fn replaced(attach: u32) {
    let notifier = notifier_of(attach).unwrap();
    kill(notifier);
    wait("another one goes on", || {
        notifier_of(attach).is_some_and(|other| other != notifier)
            && !children(attach).contains(&notifier)
    });
    wait("one stands by", || stands_by(attach).is_some());
}

/// The process that goes on when the one that tells ends.
fn stands_by(attach: u32) -> Option<u32> {
    let mut children = children(notifier_of(attach)?).into_iter();
    children.find(|one| is_notifier(*one))
}

fn kill(process: u32) {
    kill_process(Pid::from_raw(process as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn another_process_goes_on_when_the_one_that_tells_is_killed() {
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let mut daemon = attach(&customer, &[&page]);
    wait("Attached", || names_once(&out) == ["Attached"]);
    let expected = RefCell::new(names_once(&out));
    let more = |events: &[&str]| {
        let mut expected = expected.borrow_mut();
        expected.extend(events.iter().map(ToString::to_string));
        wait(&expected.join(", "), || names_once(&out) == *expected);
    };
    let stop_and_go_on = || {
        customer.enable(false);
        customer.wait_stopped();
        more(&["KeyRevoked", "DekDestroyed"]);
        customer.enable(true);
        customer.wait_served();
        more(&["KeyRestored"]);
    };
    wait("one stands by", || stands_by(daemon.pid()).is_some());
    for _ in 0..2 {
        replaced(daemon.pid());
        stop_and_go_on();
    }
    // The one that stands by is replaced too.
    let first = stands_by(daemon.pid()).unwrap();
    kill(first);
    wait("another one stands by", || {
        stands_by(daemon.pid()).is_some_and(|other| other != first)
    });
    replaced(daemon.pid());
    let before = expected.borrow().len();
    customer.ok("upgrade disk");
    wait("the upgrade", || {
        names_once(&out)[before..].contains(&"AttachProcessUpgraded".to_owned())
    });
    *expected.borrow_mut() = names_once(&out);
    // It leaves no process behind that nobody has heard of, also after the upgrade.
    replaced(daemon.pid());
    stop_and_go_on();
    assert!(daemon.terminate().success());
    more(&["Detached"]);
}

/// What was not told when one was killed is told by the other one.
#[test]
fn what_is_being_told_is_told_again_when_its_process_is_killed() {
    let customer = customer();
    let out = customer.path("out");
    let go = customer.path("go");
    let hung = customer.path("hung");
    let body = format!(
        "test -e {go} || {{ echo $$ > {hung}; exec sleep 1000; }}; cat >> {out}",
        go = go.display(),
        hung = hung.display(),
        out = out.display()
    );
    let page = script(&customer, "page", &body);
    let mut daemon = attach(&customer, &[&page]);
    wait("one stands by", || stands_by(daemon.pid()).is_some());
    customer.enable(false);
    customer.wait_stopped();
    wait("it hangs", || !read(&hung).is_empty());
    assert!(names(&out).is_empty());
    std::fs::write(&go, "").unwrap();
    replaced(daemon.pid());
    wait("the program is killed", || is_gone(&read(&hung)));
    wait("all of it", || {
        names_once(&out) == ["Attached", "KeyRevoked", "DekDestroyed"]
    });
    assert!(daemon.terminate().success());
}

#[test]
fn that_nobody_tells_any_more_is_logged_and_no_zombie_is_left() {
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let log = customer.path("attach.log");
    let mut command = customer.command(&["attach", "disk", "--socket-path"]);
    command.arg(customer.path("told.sock"));
    command.args(["--on-event", &page]);
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut attach = command.spawn().unwrap();
    wait("Attached", || !names(&out).is_empty());
    wait("one stands by", || stands_by(attach.id()).is_some());
    let both = [
        stands_by(attach.id()).unwrap(),
        notifier_of(attach.id()).unwrap(),
    ];
    // None of the two does anything until both are killed.
    both.into_iter().for_each(stop);
    let before = std::fs::read_to_string(&log).unwrap();
    both.into_iter().for_each(kill);
    wait("it is logged", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("nobody is told of the events")
    });
    let left = children(attach.id());
    kill_process(Pid::from_child(&attach), Signal::TERM).unwrap();
    assert!(attach.wait().unwrap().success());
    assert!(!before.contains("nobody is told"));
    assert!(both.iter().all(|process| !left.contains(process)));
}

/// Where guests connect is nothing for a program that is told of events.
#[test]
fn an_inherited_socket_is_not_passed_on_to_who_is_told() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root sees the descriptors of a process that is not dumpable");
    }
    let customer = customer();
    let (page, out) = page(&customer, "page");
    let listener = UnixListener::bind(customer.path("inherited")).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let number = listener.as_raw_fd();
    let is_open_in = |process: u32| {
        let ours = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
        open_files(process)
            .iter()
            .any(|(_, target)| *target == ours)
    };
    let mut command = customer.command(&["attach", "disk", "--fd", &number.to_string()]);
    let mut attach = command.args(["--on-event", &page]).spawn().unwrap();
    wait("Attached", || !names(&out).is_empty());
    let leaked = is_open_in(notifier_of(attach.id()).unwrap());
    let has = is_open_in(attach.id());
    kill_process(Pid::from_child(&attach), Signal::TERM).unwrap();
    assert!(attach.wait().unwrap().success());
    assert!(has && !leaked, "{has} {leaked}");
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Whether no process has that id, not even one that has ended.
fn is_gone(process: &str) -> bool {
    !Path::new("/proc").join(process.trim()).exists()
}

/// Processes that have ended, and of whose end nobody has heard.
fn zombies(attach: u32) -> Vec<u32> {
    let all = with_descendants(attach).into_iter();
    all.filter(|process| stat(*process).is_some_and(|fields| fields[0] == "Z"))
        .collect()
}

/// Programs that start others, also as daemons, and end.
#[test]
fn nothing_of_a_program_is_left_after_an_event() {
    let customer = customer();
    let left = customer.path("left");
    let done = customer.path("done");
    let body = format!(
        "sleep 1000 & echo $! >> {left}; setsid sleep 1000 & echo $! >> {left}\n\
         rm -f {left}.it; (setsid sh -c 'echo $$ >> {left}.it; exec sleep 1000' &)\n\
         until test -s {left}.it; do sleep 0.01; done; cat {left}.it >> {left}; cat >> {done}",
        left = left.display(),
        done = done.display()
    );
    let page = script(&customer, "page", &body);
    let daemon = attach(&customer, &[&page]);
    customer.enable(false);
    customer.wait_stopped();
    customer.enable(true);
    customer.wait_served();
    wait("all events", || names(&done).len() >= 4);
    wait("all of it is gone", || {
        read(&left).lines().all(is_gone) && zombies(daemon.pid()).is_empty()
    });
    assert!(read(&left).lines().count() >= 12);
}

/// Whoever kills what holds a program together has the attach process hear of what is left.
#[test]
fn an_attach_hears_of_the_end_of_whatever_becomes_its_child() {
    let customer = customer();
    let left = customer.path("left");
    let body = format!(
        "test -e {left} || {{ setsid sleep 1000 & echo $! > {left}; exec sleep 1000; }}",
        left = left.display()
    );
    let page = script(&customer, "page", &body);
    let mut daemon = attach(&customer, &[&page]);
    wait("it hangs", || !read(&left).is_empty());
    let holder = children(notifier_of(daemon.pid()).unwrap());
    let holder = holder.into_iter().find(|one| holds_a_program(*one));
    kill(holder.unwrap());
    let stayed: u32 = read(&left).trim().parse().unwrap();
    wait("it is a child of the attach", || {
        children(daemon.pid()).contains(&stayed)
    });
    kill(stayed);
    wait("its end is heard of", || {
        is_gone(&stayed.to_string()) && zombies(daemon.pid()).is_empty()
    });
    assert!(daemon.terminate().success());
}
