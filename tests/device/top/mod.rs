//! `sealdisk top` in a real terminal, over disks that are really attached.

mod cost;
mod tmux;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use test_support::{Customer, Daemon, Disk, Host, alive, kill, program, text};

use crate::supervise::{MIB_8, is_qsd};
use tmux::{PROMPT, Tmux};

const SIZE: (u16, u16) = (80, 24);

/// Writes and reads until it is let go of.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn on(daemon: &Daemon) -> Self {
        let mut frontend = daemon.connect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            // All of it is here, with its connection.
            let frontend = &mut frontend;
            while !stopped.load(Ordering::Relaxed) {
                // What is refused, as without a key, is load as well.
                for sector in 0..8 {
                    let _ = frontend.queues[0].write(sector * 8, &[7; 4096]);
                    let _ = frontend.queues[0].read(sector * 8, 4096);
                }
                thread::sleep(Duration::from_millis(5));
            }
        };
        Self {
            stop,
            thread: Some(thread::spawn(work)),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was told already.
            let _ = thread.join();
        }
    }
}

/// The command line of `top` on a host, for a shell.
fn top(host: &Host, environment: &str, arguments: &str) -> String {
    let (program, state, runtime) = (program(), host.state(), host.runtime().to_owned());
    format!(
        "{environment} {} top --state-dir {} --runtime-dir {} --interval 0.5 {arguments}",
        text(program),
        text(&state),
        text(&runtime)
    )
}

#[test]
fn a_table_of_the_wrong_directory_is_not_just_empty() {
    if is_qsd() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let _daemon = customer.attach_with("disk", &[]);
    let other = customer.path("other");
    std::fs::create_dir(&other).unwrap();
    for (dir, status) in [("/nonexistent", 1), (text(&other), 0)] {
        let top = ["top", "-b", "-n", "1", "--interval", "0.5", "--runtime-dir"];
        let run = customer.run(&[&top[..], &[dir]].concat());
        assert_eq!(run.status.code(), Some(status), "{run:?}");
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(said.contains("a disk is attached, but none"), "{said}");
    }
    // Where none is attached it is no error.
    let host = Host::new();
    let run = host.run("top -b -n 1 --interval 0.5 --runtime-dir /nonexistent");
    assert!(run.status.success(), "{run:?}");
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(
        said.starts_with("note: ") && said.contains("/nonexistent"),
        "{said}"
    );
    assert!(!host.state().exists(), "it made an installation");
}

#[test]
fn top_shows_what_disks_do_in_a_terminal() {
    if is_qsd() || !Tmux::is_there() {
        return;
    }
    let customer = Customer::new(MIB_8);
    customer.ok("disk create idle --size 8MiB");
    let busy = customer.attach_with("disk", &["--key-check-interval", "1"]);
    let mut idle = customer.attach_with("idle", &[]);
    let tmux = Tmux::start(SIZE);
    tmux.command(&top(&customer, "", ""));
    tmux.until_line("idle", &["active"]);
    let load = Load::on(&busy);

    // Rates under load: reads and writes of the one, none of the other.
    let screen = tmux.until(|screen| iops(screen, "disk").is_some_and(|iops| iops > 0.0));
    assert_eq!(iops(&screen, "idle"), Some(0.0), "{screen}");
    let latencies = cells(&screen, "disk");
    assert!(
        latencies[4].ends_with('s') && latencies[5].ends_with('s'),
        "{screen}"
    );
    assert!(
        screen.lines().count() <= 24 && screen.contains("2 disks"),
        "{screen}"
    );
    assert!(
        screen.lines().any(|line| line.contains('█')),
        "no sparkline\n{screen}"
    );

    // Sorting.
    tmux.key("N");
    tmux.until(|screen| screen.contains("DISK↑") && is_above(screen, "disk", "idle"));
    tmux.key("r");
    tmux.until(|screen| screen.contains("DISK↓") && is_above(screen, "idle", "disk"));
    // Filtering.
    tmux.text("/idl");
    tmux.until(|screen| screen.contains("filter: idl_") && !screen.contains("\ndisk "));
    tmux.key("Enter");
    tmux.until(|screen| screen.contains("filter 'idl': 1 of 2"));
    tmux.key("Escape");
    tmux.until(|screen| screen.contains("\ndisk "));
    tmux.text("?");
    tmux.until(|screen| screen.contains("Ctrl-C ends at once"));
    tmux.key("q");

    // A disk's page.
    tmux.text("Ir");
    tmux.until(|screen| is_above(screen, "idle", "disk"));
    tmux.key("End");
    tmux.key("Enter");
    let page = tmux.until(|screen| screen.contains("reads") && screen.contains("writes"));
    assert!(page.starts_with("disk  8 MiB  served"), "{page}");
    tmux.resize((160, 50));
    tmux.until(|screen| {
        screen.contains("Attached: the disk disk is attached") && screen.contains("set set")
    });
    tmux.resize(SIZE);
    tmux.key("q");

    // The key of the one is disabled, and enabled again; the other one's daemon is killed.
    customer.enable(false);
    tmux.until_line("disk", &["revoked"]);
    tmux.until(|screen| screen.contains("1 key revoked"));
    customer.enable(true);
    tmux.until_line("disk", &["active"]);
    kill(idle.data_plane());
    tmux.key("Home");
    tmux.text("/idle");
    tmux.key("Enter");
    tmux.key("Enter");
    tmux.until(|screen| screen.contains("1 restarts, the last one"));
    tmux.key("q");
    idle.kill();
    tmux.until_line("idle", &["silent"]);
    tmux.key("Escape");
    // Escape and a letter at once are another key.
    tmux.until(|screen| !screen.contains("filter '"));
    tmux.text("q");
    tmux.until(|screen| !screen.contains("sealdisk top  ") && screen.contains(PROMPT));
    drop(load);
    busy.stop();
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn printed(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap()
}

/// The cells of a disk's line.
fn cells(screen: &str, disk: &str) -> Vec<String> {
    let begin = format!("{disk} ");
    let line = screen.lines().find(|line| line.starts_with(&begin));
    let cells = line.unwrap_or_default().split_whitespace();
    cells.map(str::to_owned).collect()
}

fn iops(screen: &str, disk: &str) -> Option<f64> {
    let cells = cells(screen, disk);
    let cell = cells.get(1)?;
    let (number, times) = match cell.strip_suffix('k') {
        Some(number) => (number, 1000.0),
        None => (cell.trim_start_matches('<'), 1.0),
    };
    Some(number.parse::<f64>().ok()? * times)
}

fn is_above(screen: &str, one: &str, other: &str) -> bool {
    let at = |disk| screen.find(&format!("\n{disk} "));
    matches!((at(one), at(other)), (Some(one), Some(other)) if one < other)
}

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    if is_qsd() || !Tmux::is_there() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach_with("disk", &[]);
    let tmux = Tmux::start(SIZE);
    // A terminal that echoes and has its own screen is one that was given back.
    let is_back = |said: &str| {
        tmux.until(|screen| !screen.contains("sealdisk top  ") && screen.contains(PROMPT));
        tmux.command(&format!("echo {said}''{said}"));
        let twice = format!("{said}{said}");
        let screen = tmux.until(|screen| screen.contains(&twice));
        assert!(screen.contains(&format!("echo {said}''{said}")), "{screen}");
    };
    let with_pid = |end: &str| {
        let pid = disk.path("pid");
        let line = top(&disk, "", "");
        let pid_file = text(&pid).to_owned();
        let _ = std::fs::remove_file(&pid);
        // The shell's own process becomes the program.
        tmux.command(&format!("sh -c 'echo $$ > {pid_file}; exec {line}'{end}"));
        tmux.until_line("disk", &["active"]);
        std::fs::read_to_string(&pid)
            .unwrap()
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    for (what, say) in [
        (Signal::TERM, "term"),
        (Signal::HUP, "hup"),
        (Signal::INT, "int"),
    ] {
        let pid = with_pid("");
        signal(pid, what);
        is_back(say);
        assert!(!alive(pid));
    }
    with_pid("");
    tmux.key("C-c");
    is_back("control");

    // Stopped by its key and by a signal, and continued.
    let pid = with_pid("");
    for stop in [true, false] {
        match stop {
            true => tmux.key("C-z"),
            false => signal(pid, Signal::TSTP),
        }
        is_back(if stop { "stopped" } else { "again" });
        tmux.command("clear; fg");
        tmux.until_line("disk", &["active"]);
    }
    tmux.resize((40, 10));
    tmux.until(|screen| {
        screen.lines().all(|line| line.chars().count() <= 40) && screen.contains("disk")
    });
    tmux.text("q");
    is_back("end");
    daemon.stop();
}

#[test]
fn terminals_without_colours_and_those_that_cannot_place_text() {
    if is_qsd() || !Tmux::is_there() {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach_with("disk", &["--key-check-interval", "1"]);
    customer.enable(false);
    let has_colours = |screen: &str| {
        screen.contains("\x1b[31m") || screen.contains(";31m") || screen.contains("38;5;")
    };
    for (environment, coloured) in [("", true), ("NO_COLOR=1", false), ("TERM=vt220", false)] {
        let tmux = Tmux::start(SIZE);
        tmux.command(&top(&customer, environment, ""));
        tmux.until_line("disk", &["revoked"]);
        assert_eq!(
            has_colours(&tmux.coloured()),
            coloured,
            "{environment}: {:?}",
            tmux.coloured()
        );
        tmux.text("q");
    }
    let tmux = Tmux::start(SIZE);
    tmux.command(&top(&customer, "TERM=dumb", ""));
    tmux.until(|screen| screen.contains("top -b"));
    tmux.command(&top(&customer, "LC_ALL=C", ""));
    let screen = tmux.until_line("disk", &["revoked"]);
    assert!(screen.is_ascii(), "{screen}");
    daemon.stop();
}

#[test]
fn batches_are_for_scripts() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach_with("disk", &["--iops", "5000"]);
    let load = Load::on(&daemon);
    let no_terminal = disk.command("top").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&no_terminal.stderr);
    assert!(
        !no_terminal.status.success() && said.contains("sealdisk top -b"),
        "{said}"
    );
    assert_eq!(no_terminal.stdout, b"", "nothing of the table");

    let text = printed(disk.ok("top -b -n 2 --interval 0.5"));
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("disk "))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        let cells: Vec<_> = line.split_whitespace().collect();
        assert!(
            cells[1] != "0" && cells[1] != "-" && cells[7] == "active",
            "{text}"
        );
    }
    let text = printed(disk.ok("top -b -n 1 -o json --sort name"));
    let view: Value = serde_json::from_str(&text).unwrap();
    let one = &view["disks"][0];
    assert_eq!(
        (&one["name"], &one["standing"]),
        (&"disk".into(), &"served".into())
    );
    assert_eq!(one["limits"]["iops"], 5000, "{one}");
    assert_eq!(one["layers"].as_array().unwrap().len(), 1, "{one}");
    assert_eq!(one["lastEvent"]["event"], "Attached", "{one}");
    assert!(
        one["rates"]["write"]["requests"].as_f64().unwrap() > 0.0,
        "{one}"
    );
    assert!(one["rates"]["io"]["p99"].as_f64().unwrap() > 0.0, "{one}");
    let none = printed(disk.ok("top -b -n 1 --filter nosuchdisk"));
    assert!(none.contains("0 disks"), "{none}");
    for (wrong, why) in [
        ("top -n 1", "--batch"),
        ("top -o json", "-b"),
        ("top --sort speed", "possible values: name, iops"),
        ("top --interval 0.1", "0.5 to 60"),
    ] {
        let output = disk.command(wrong).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {said}");
        assert!(said.contains(why), "{wrong}: {said}");
    }
    drop(load);
    daemon.stop();
}
