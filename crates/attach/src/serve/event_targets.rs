//! Who is told of the events of an attached disk (`attach --on-event`).
//!
//! Another process tells them (`alarms::notify`): this one is confined, and has keys. That process follows the events
//! as a client of the control socket does, through a socket of its own. So it is told the last one too, and does not
//! notice that this process goes on as another program.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpgid};

use crate::begin::request::AttachRequest;
use crate::serve::event_hub::EventHub;
use crate::serve::followers;
use alarms::notify;

/// Starts that process, if there is anybody to tell. To be called before this one is confined, and before it has a
/// key. What is written into the returned socket is passed on.
///
/// # Errors
/// What the kernel says.
pub(crate) fn start(
    request: &AttachRequest,
    program: &Path,
) -> io::Result<Option<(UnixStream, Child)>> {
    if request.on_event.is_empty() {
        return Ok(None);
    }
    let (ours, its) = UnixStream::pair()?;
    let notifier = notify::spawn(program, &request.on_event, its.into())?;
    Ok(Some((ours, notifier)))
}

/// Has it follow the events from now on. When it ends before this process does, that is logged: another one, which it
/// has started, goes on. This process, which is confined by now, can start nothing that may run a command or reach a
/// webhook, so that nobody is told any more when both are killed at the same time.
///
/// # Errors
/// What the kernel says.
pub(crate) fn follow(
    (client, notifier): (UnixStream, Child),
    event_hub: &Arc<EventHub>,
) -> io::Result<()> {
    let subscription = event_hub.subscribe(client.try_clone()?.into());
    let follow = move || followers::follow(&client, &subscription);
    let thread = std::thread::Builder::new().name("event-notifier".into());
    thread.spawn(follow)?;
    let group = Pid::from_child(&notifier);
    event_hub.set_notifier(Some(group.as_raw_pid()));
    bury(group, event_hub)
}

/// Goes on with that in the place of another program, which has started those processes.
///
/// # Errors
/// What the kernel says.
pub(crate) fn bury_again(event_hub: &Arc<EventHub>) -> io::Result<()> {
    match event_hub.notifier().and_then(Pid::from_raw) {
        Some(group) => bury(group, event_hub),
        None => Ok(()),
    }
}

/// Hears of the end of each process of that group, and says when none is left.
fn bury(group: Pid, event_hub: &Arc<EventHub>) -> io::Result<()> {
    let event_hub = Arc::downgrade(event_hub);
    let reap = move || {
        // One whose parent has ended is this process's child, as the launchers of new programs are. Another thread may
        // have heard of its end before.
        loop {
            match waitpgid(group, WaitOptions::empty()) {
                // The one that goes on says so.
                Ok(ended) => log::debug!("a process that tells of events has ended: {ended:?}"),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        // The next program has none to bury: the number may be another group's by then.
        if let Some(event_hub) = event_hub.upgrade() {
            event_hub.set_notifier(None);
        }
        log::error!(
            "nobody is told of the events of this disk any more (--on-event): the processes that tell them have \
             ended; attach the disk again to have them told"
        );
    };
    let thread = std::thread::Builder::new().name("notifier-end".into());
    thread.spawn(reap).map(drop)
}
