//! The watchdog of systemd (`WatchdogSec=`): it is told that the attach process still does its work, by the loop that
//! does it. The data plane has a watchdog of its own (`keeping.rs`).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often within the time that systemd waits.
const TIMES: u32 = 4;

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
            // Whom it does not reach ends this process, and another one is started.
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            *due = now + *period;
        }
        until.min(*due)
    }
}
