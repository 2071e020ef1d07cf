//! Running a command for an event.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::not_taken::NotTaken;

/// What a command gets of the environment: no credential, no address of systemd's, nothing of Sealdisk's.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs a command that reads an event, and kills it if it takes longer than `limit`. What it has started ends with it,
/// also when it ends by itself: nothing is left of a try.
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
        // It would fill the log, which others need. How the command ended is logged.
        .stderr(Stdio::null())
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

/// Waits for the end of a process, and kills what is left of its group; nothing for one that had to be killed.
fn end(mut child: Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let (group, end) = (Pid::from_child(&child), Instant::now() + limit);
    // Its end is seen without waiting for it, so that its id is nobody else's when the group is killed.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = loop {
        match waitid(WaitId::Pid(group), look) {
            Ok(None) | Err(Errno::INTR) if Instant::now() < end => std::thread::sleep(LOOK),
            Ok(seen) => break seen.is_some(),
            Err(_) => break false,
        }
    };
    let _ = kill_process_group(group, Signal::KILL);
    let status = child.wait()?;
    Ok(ended.then_some(status))
}
