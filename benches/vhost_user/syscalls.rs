//! System calls for each request, counted by strace.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::backends::{Backend, Place};
use crate::load::{Load, Until};
use crate::pattern::Pattern;
use crate::report::Report;

/// Long enough for strace to have attached to every thread; nothing is asked of the daemon before.
const ATTACH: Duration = Duration::from_millis(500);

/// Counts on one pattern. A system call takes longer under strace, so that more requests wait when
/// it returns: what this says at depth 1 is exact, and at greater depths a little too good.
pub fn measure(
    backend: &mut Backend,
    pattern: &Pattern,
    place: &Place,
    poll: Duration,
    report: &mut Report,
) {
    let output = place.runtime.join("strace");
    let name = pattern.name();
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-o"]).arg(&output);
    for pid in backend.processes() {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut strace = strace.stderr(Stdio::null()).spawn().expect("strace starts");
    thread::sleep(ATTACH);
    let mut load = Load::new(&mut backend.frontend.queues[0], *pattern, place.size, poll);
    let requests = load.run(Until::Requests(50_000)).requests;
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    let table = fs::read_to_string(&output).unwrap_or_default();
    let Some(calls) = total_calls(&table) else {
        println!("system calls: strace counted nothing (it needs root, or CAP_SYS_PTRACE)");
        return;
    };
    let each = calls as f64 / requests as f64;
    println!("system calls: {name}: {each:.3} for each request\n{table}");
    report.note(json!({ "pattern": name, "syscalls": each }));
}

/// Column `calls` of strace's table: the fourth of the line `total`.
fn total_calls(table: &str) -> Option<u64> {
    let line = table.lines().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
