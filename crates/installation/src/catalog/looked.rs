//! When something was looked at last, which need not be looked at again at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// By a time, or by what else tells that nothing has changed since.
#[derive(Debug)]
pub(super) struct Looked<T>(Mutex<Option<T>>);

impl<T> Default for Looked<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Copy> Looked<T> {
    /// The last look that was noted.
    pub(super) fn last(&self) -> Option<T> {
        *self.locked()
    }

    /// Notes one, or that there was none.
    pub(super) fn note(&self, look: Option<T>) {
        *self.locked() = look;
    }

    fn locked(&self) -> MutexGuard<'_, Option<T>> {
        // It is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
