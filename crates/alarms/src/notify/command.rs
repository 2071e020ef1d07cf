//! Running a command for an event.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::held::Held;
use super::not_taken::NotTaken;

/// What a command gets of the environment: no credential, no address of systemd's, nothing of Sealdisk's.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ"];

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
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        // It would fill the log, which others need. How the command ended is logged.
        .stderr(Stdio::null());
    let held = Held::start(command);
    let held = held.map_err(|e| failed(format!("it cannot be started: {e}")))?;
    match held.end(limit).map_err(|e| failed(e.to_string()))? {
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
