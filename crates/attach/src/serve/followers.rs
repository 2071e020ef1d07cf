//! Clients that follow the events of an attached disk, until it is detached. They do not notice that the attach process
//! goes on as another program.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};

use crate::serve::event_hub::{EventHub, Subscription};

/// How often it is looked whether a client is still there, and how long it may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends events until there will be no more, or the client is gone.
pub(crate) fn follow(client: &UnixStream, subscription: &Subscription) {
    if let Err(error) = pass_on(client, subscription) {
        log::debug!("a client follows the events no more: {error}");
        // It may have a part of a line, so nobody goes on with it.
        let _ = client.shutdown(Shutdown::Both);
    }
}

/// Goes on with the clients that were followed before this process was to become another program, or became this one.
pub(crate) fn follow_again(event_hub: &EventHub) {
    for (client, subscription) in event_hub.unpark() {
        let client = UnixStream::from(client);
        // Who cannot be followed sees the end of its stream.
        let following = std::thread::Builder::new().name("control-client".into());
        let spawned = following.spawn(move || follow(&client, &subscription));
        if let Err(error) = spawned {
            log::warn!("a client does not follow the events any more: {error}");
        }
    }
}

fn pass_on(mut client: &UnixStream, subscription: &Subscription) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    for line in &subscription.lines {
        writeln!(client, "{line}")?;
    }
    loop {
        match subscription.events.recv_timeout(PATIENCE) {
            Ok(line) => writeln!(client, "{line}")?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                if recv(client, &mut [0; 1], flags).is_ok_and(|(_, bytes)| bytes == 0) {
                    return Ok(());
                }
            }
        }
    }
}
