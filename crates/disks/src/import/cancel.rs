//! A wish to stop, by SIGINT or SIGTERM or since a time is over, that long work asks for between its steps.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::ImportError;
use vault::boot_instant;

/// Set once a signal asked this process to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    asked: Arc<AtomicBool>,
    until: Deadline,
}

/// A moment, by the clock of [`boot_instant`], that others may set and put off until it has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deadline(Arc<Mutex<Option<Instant>>>);

impl Deadline {
    /// Whether it has come.
    pub(crate) fn is_over(&self) -> bool {
        self.at(|at| at.is_some_and(|at| boot_instant() >= at))
    }

    /// It comes then, if nothing was set.
    pub(crate) fn begin(&self, then: Instant) {
        self.at(|at| *at = at.or(Some(then)));
    }

    /// It has come.
    pub(crate) fn end(&self) {
        self.at(|at| *at = Some(boot_instant()));
    }

    /// Nothing is set any more, unless it has come; whether that is so.
    pub(crate) fn put_off(&self) -> bool {
        self.at(|at| {
            *at = at.filter(|at| boot_instant() >= *at);
            at.is_none()
        })
    }

    fn at<T>(&self, change: impl FnOnce(&mut Option<Instant>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cancel {
    /// Has SIGINT, SIGTERM and SIGHUP set the returned flag instead of ending the process. A second
    /// signal ends it at once.
    ///
    /// # Errors
    /// What the system said.
    pub fn on_signals() -> io::Result<Self> {
        let cancel = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Runs before the handler registered next, so only the second signal finds it set.
            flag::register_conditional_shutdown(signal, 128 + signal, cancel.asked.clone())?;
            flag::register(signal, cancel.asked.clone())?;
        }
        Ok(cancel)
    }

    /// Asks to stop, as a signal would.
    pub fn request(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// The same wish, and one of its own when the deadline has come.
    pub(crate) fn or_at(&self, until: &Deadline) -> Self {
        Self {
            asked: self.asked.clone(),
            until: until.clone(),
        }
    }

    /// When it stops although nobody has asked.
    pub(crate) fn deadline(&self) -> &Deadline {
        &self.until
    }

    /// Returns an error once stopping was asked for.
    ///
    /// # Errors
    /// [`ImportError::Interrupted`].
    pub fn check(&self) -> Result<(), ImportError> {
        if self.asked.load(Ordering::Relaxed) || self.until.is_over() {
            return Err(ImportError::Interrupted);
        }
        Ok(())
    }
}
