//! Running a command for an event.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

use super::not_taken::NotTaken;

/// What a command gets of the environment: no credential, no address of systemd's, nothing of Sealdisk's.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs a command that reads an event, and kills it, and what it has started, if it takes longer than `limit`.
pub(super) fn run(words: &[String], event: &str, limit: Duration) -> Result<(), NotTaken> {
    let failed = |why: String| NotTaken { why, again: true };
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let input = input(event).map_err(|e| failed(format!("its input cannot be made: {e}")))?;
    let kept = KEPT
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        // So that what it starts can be killed with it.
        .process_group(0)
        .spawn();
    let child = child.map_err(|e| failed(format!("it cannot be started: {e}")))?;
    match end(child, limit).map_err(|e| failed(e.to_string()))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(status.to_string())),
        None => Err(failed(format!(
            "it took longer than {limit:?} and was killed"
        ))),
    }
}

/// The event as a file in memory: unlike a pipe, it takes all of it whether it is read or not.
fn input(event: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("event", MemfdFlags::CLOEXEC)?);
    file.write_all(event.as_bytes())?;
    file.write_all(b"\n")?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Waits for the end of a process; nothing for one that had to be killed.
fn end(mut child: Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            // It was not waited for, so that its id is nobody else's.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}
