//! Who is told of the events of an attached disk (`attach --on-event`).
//!
//! Another process tells them (`alarms::notify`): this one is confined, and has keys. That process follows the events
//! as a client of the control socket does, through a socket of its own. So it is told the last one too, and does not
//! notice that this process goes on as another program.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use crate::begin::request::AttachRequest;
use crate::serve::event_hub::EventHub;
use crate::serve::followers;
use alarms::notify;

/// Starts that process, if there is anybody to tell. To be called before this one is confined, and before it has a
/// key. What is written into the returned socket is passed on.
///
/// # Errors
/// What the kernel says.
pub(crate) fn start(request: &AttachRequest, program: &Path) -> io::Result<Option<UnixStream>> {
    if request.on_event.is_empty() {
        return Ok(None);
    }
    let (ours, its) = UnixStream::pair()?;
    // It ends after this process, which has nothing to wait for.
    notify::spawn(program, &request.on_event, its.into())?;
    Ok(Some(ours))
}

/// Has it follow the events from now on.
///
/// # Errors
/// What the kernel says.
pub(crate) fn follow(client: UnixStream, event_hub: &Arc<EventHub>) -> io::Result<()> {
    let subscription = event_hub.subscribe(client.try_clone()?.into());
    let follow = move || followers::follow(&client, &subscription);
    let thread = std::thread::Builder::new().name("event-notifier".into());
    thread.spawn(follow).map(drop)
}
