//! A wish to stop, by SIGINT or SIGTERM, that long work asks for between its steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use super::ImportError;

/// Set once a signal asked this process to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

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
            flag::register_conditional_shutdown(signal, 128 + signal, cancel.0.clone())?;
            flag::register(signal, cancel.0.clone())?;
        }
        Ok(cancel)
    }

    /// Asks to stop, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns an error once stopping was asked for.
    ///
    /// # Errors
    /// [`ImportError::Interrupted`].
    pub fn check(&self) -> Result<(), ImportError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(ImportError::Interrupted);
        }
        Ok(())
    }
}
