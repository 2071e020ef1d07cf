//! What systemd is told (sd_notify(3)), and its watchdog (`WatchdogSec=`): that is told that the attach process still
//! does its work, by the loop that does it. The data plane has a watchdog of its own (`keeping.rs`).

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often within the time that systemd waits.
const TIMES: u32 = 4;

/// How long a systemd that does not listen is waited for: whoever guards a key must not wait for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells systemd, if there is one that wants to know: without it nobody is told, and nothing is missed. One that
/// does not listen is not waited for, as the crate `sd_notify` would.
pub fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = send(states, Some(PATIENCE)) {
        log::debug!("systemd is not told: {error}");
    }
}

/// Tells the watchdog of systemd that this process lives, if it listens right now: it is told again soon.
pub fn tell_watchdog() {
    // Whom it does not reach ends this process, and another one is started.
    let _ = send(&[NotifyState::Watchdog], None);
}

fn send(states: &[NotifyState<'_>], patience: Option<Duration>) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let at = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(patience.is_none())?;
    socket.set_write_timeout(patience)?;
    let lines: String = states.iter().map(|state| format!("{state}\n")).collect();
    socket.send_to_addr(lines.as_bytes(), &at).map(drop)
}

/// Tells the watchdog that systemd has asked this process for, if it has.
#[derive(Debug)]
pub struct Watchdog {
    /// How often, and when next.
    asked: Option<(Duration, Instant)>,
}

impl Watchdog {
    /// As systemd has it in the environment.
    pub fn asked_for() -> Self {
        let patience = sd_notify::watchdog_enabled();
        Self {
            asked: patience.map(|patience| (patience / TIMES, Instant::now())),
        }
    }

    /// Tells it, if that is due. When it is due next, or `until` if that is before.
    pub fn tell(&mut self, until: Instant) -> Instant {
        let Some((period, due)) = &mut self.asked else {
            return until;
        };
        let now = Instant::now();
        if now >= *due {
            tell_watchdog();
            *due = now + *period;
        }
        until.min(*due)
    }
}
