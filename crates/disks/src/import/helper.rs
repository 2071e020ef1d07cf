//! QEMU's programs as children of this process.

use std::io::{self, Read};
use std::process::{Child, ExitStatus, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::feeder::Progress;
use super::{Cancel, ImportError};

pub(super) const QEMU_IMG: &str = "qemu-img";
pub(super) const QEMU_NBD: &str = "qemu-nbd";

/// Why a child's output is not there.
pub(super) enum Unfinished {
    /// It cannot be waited for.
    Io(io::Error),
    /// A signal asked to stop.
    Cancelled(ImportError),
    /// It did nothing for so long.
    Stalled(Duration),
}

/// Waits for a child's end and gives what it wrote. One that is given up is killed. `stall` says how
/// long it may leave the feeder of its image alone.
pub(super) fn output(
    mut child: Child,
    cancel: &Cancel,
    stall: Option<(Duration, Arc<Progress>)>,
) -> Result<Output, Unfinished> {
    // Its pipes are emptied by a thread of their own, so that this one can watch for signals.
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let mut since = (Instant::now(), 0);
    let status = loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => break status,
            Err(e) => return Err(Unfinished::Io(e)),
        }
        if let Err(interrupted) = cancel.check() {
            end(&mut child);
            return Err(Unfinished::Cancelled(interrupted));
        }
        if let Some((most, feeder)) = &stall {
            if feeder.is_reading() || feeder.answered() != since.1 {
                since = (Instant::now(), feeder.answered());
            }
            if since.0.elapsed() > *most {
                end(&mut child);
                return Err(Unfinished::Stalled(*most));
            }
        }
        thread::sleep(Duration::from_millis(2));
    };
    // A thread that panicked would have read nothing.
    Ok(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

/// How a server that broke the connection ended and what it said, if it has ended or does now.
pub(super) fn last_words(child: &mut Child) -> Option<Output> {
    const MAX_WAIT: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + MAX_WAIT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => return None,
        }
    };
    Some(words(child, status))
}

/// What a child that ended with `status` said.
pub(super) fn words(child: &mut Child, status: ExitStatus) -> Output {
    let mut stderr = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        // What cannot be read is missing from a message.
        let _ = pipe.take(1 << 16).read_to_end(&mut stderr);
    }
    Output {
        status,
        stdout: Vec::new(),
        stderr,
    }
}

/// Ends a child that has nothing to finish: it only reads, or what it writes is given up.
pub(super) fn end(child: &mut Child) {
    // Both calls fail only if it is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Collects what a child writes, as far as somebody could want to read it.
fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            // What cannot be read is missing from a message at worst.
            let _ = pipe.by_ref().take(MOST).read_to_end(&mut text);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        text
    })
}

/// What a program said of its failure, on one line.
pub(super) fn cause(program: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    // The first line has the cause; a damaged image can be told of in thousands.
    let first = text.lines().next().unwrap_or_default();
    let text: String = first
        .trim_start_matches(program)
        .trim_start_matches(": ")
        // What qemu-nbd does about an error that it names then.
        .trim_start_matches("Disconnect client, due to: ")
        .trim_start_matches("Failed to send reply: ")
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    match text.as_str() {
        "" => output.status.to_string(),
        _ => text,
    }
}
