//! The process that tells of the events of another one.
//!
//! An attach is confined, and has keys. What runs commands and speaks HTTP for it is started before that, as another
//! process, which gets nothing but lines of JSON. It ends when the other end of its socket is closed, after what is
//! left is told; a signal is no reason to end, since the last event is about that.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use super::notifier::{FAREWELL, Notifier};
use super::target::Target;

/// The subcommand that is this process.
pub const EVENT_NOTIFIER: &str = "event-notifier";
/// Bytes of an event at most; what is longer is no event.
const MAX_LINE: u64 = 64 * 1024;

/// Starts the process, which reads events from `input`, a line of JSON each.
///
/// # Errors
/// What the kernel says.
pub fn spawn(program: &Path, targets: &[Target], input: OwnedFd) -> io::Result<Child> {
    Command::new(program)
        .arg(EVENT_NOTIFIER)
        .args(targets.iter().map(Target::argument))
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .spawn()
}

/// Is that process: tells the targets of what is read, until its end.
///
/// # Errors
/// [`Notifier::start`], or what reading says.
pub fn pass_on(mut input: impl BufRead, targets: &[Target]) -> io::Result<()> {
    // A handler, unlike a signal that is ignored, is not inherited by a command.
    let heard = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        flag::register(signal, heard.clone())?;
    }
    let notifier = Notifier::start(targets)?;
    let mut line = String::new();
    let read = loop {
        line.clear();
        match (&mut input).take(MAX_LINE).read_line(&mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => notifier.tell(line.trim_end()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    notifier.finish(FAREWELL);
    read
}
