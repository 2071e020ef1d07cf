//! Other processes, as `/proc` shows them.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// Sends SIGKILL to a process that may be gone already.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process that may be gone already.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// True while any thread of a process runs. The first thread can be a zombie while others still
/// hold the process's files.
pub fn alive(pid: u32) -> bool {
    thread_states(pid)
        .iter()
        .any(|state| state != "Z" && state != "X")
}

/// Stops a process by SIGSTOP. The signal reaches the threads one by one: until it has reached all of them, any
/// may still do something.
///
/// # Panics
/// When it does not stop.
pub fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    let end = Instant::now() + PATIENCE;
    while !is_stopped(pid) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// As [`stop`], a process that may be gone, or go meanwhile.
pub(crate) fn stop_or_gone(pid: u32) {
    signal(pid, Signal::STOP);
    let end = Instant::now() + PATIENCE;
    while alive(pid) && !is_stopped(pid) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process is gone, and has let go of its files.
///
/// # Panics
/// When it does not end.
pub fn await_end(pid: u32) {
    let end = Instant::now() + PATIENCE;
    while alive(pid) {
        assert!(Instant::now() < end, "process {pid} doesn't end");
        thread::sleep(Duration::from_millis(2));
    }
}

/// True when a signal has stopped all threads of a process.
fn is_stopped(pid: u32) -> bool {
    let states = thread_states(pid);
    !states.is_empty() && states.iter().all(|state| state == "T")
}

/// The threads of a process, each with its name. One that ends meanwhile, as the helpers of an idle process do, is left
/// out; so is a process that is gone.
pub fn threads(pid: u32) -> Vec<(u32, String)> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let named = threads.filter_map(|thread| {
        let thread = thread.ok()?;
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let id = thread.file_name().to_str()?.parse().ok()?;
        Some((id, name.trim_end().to_owned()))
    });
    named.collect()
}

/// What a process has open: the number of each descriptor and what it leads to. One that is closed meanwhile is left out.
pub fn open_files(pid: u32) -> Vec<(u32, PathBuf)> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = descriptors.filter_map(|descriptor| {
        let descriptor = descriptor.ok()?;
        let number = descriptor.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(descriptor.path()).ok()?))
    });
    targets.collect()
}

/// The state of each thread of a process.
fn thread_states(pid: u32) -> Vec<String> {
    let stat = |(thread, _)| fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).ok();
    let fields = threads(pid)
        .into_iter()
        .filter_map(stat)
        .filter_map(|text| stat_fields(&text));
    fields.map(|mut fields| fields.swap_remove(0)).collect()
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent = pid.to_string();
    pids.filter(|&child| stat(child).is_some_and(|fields| fields[1] == parent))
        .collect()
}

/// A process and all its descendants, itself first.
pub fn with_descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&process) = found.get(next) {
        found.extend(children(process));
        next += 1;
    }
    found
}

/// The data plane among the descendants of a process.
pub fn data_plane_of(pid: u32) -> Option<u32> {
    let is_data_plane = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).nth(1) == Some(b"data-plane")
    };
    with_descendants(pid).into_iter().find(is_data_plane)
}

/// The fields of /proc/PID/stat after the command's name: state, parent, …
pub fn stat(pid: u32) -> Option<Vec<String>> {
    stat_fields(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn stat_fields(text: &str) -> Option<Vec<String>> {
    let rest = text.rsplit_once(") ")?.1;
    Some(rest.split(' ').map(str::to_owned).collect())
}
