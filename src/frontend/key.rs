//! The disk's DEK in the data plane, for as long as the vault grants it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cipher::{Cipher, DataUnit};
use crate::keys::{Dek, with_wiped_stack};

use super::{FrontendError, OnRevoke};

/// Where queues that start get their cipher from. Those that run have their own, so that no request
/// ever looks here.
pub(super) struct SharedKey(Mutex<Key>);

enum Key {
    Held(Dek),
    /// Revoked, and zeroed; what guests get meanwhile.
    Destroyed(OnRevoke),
}

impl SharedKey {
    pub(super) fn new(dek: Dek) -> Self {
        Self(Mutex::new(Key::Held(dek)))
    }

    /// A cipher for one queue, or what the queue does while the key is revoked.
    ///
    /// # Errors
    /// [`FrontendError::Cipher`].
    pub(super) fn cipher(&self, unit: DataUnit) -> Result<Result<Cipher, OnRevoke>, FrontendError> {
        match &*self.lock() {
            Key::Held(dek) => Ok(Ok(with_wiped_stack(|| Cipher::new(dek, unit))?)),
            Key::Destroyed(mode) => Ok(Err(*mode)),
        }
    }

    /// Zeroes the DEK. The queues must have let go of their ciphers before.
    pub(super) fn destroy(&self, mode: OnRevoke) {
        *self.lock() = Key::Destroyed(mode);
    }

    /// Holds the DEK again; what was done while it was revoked.
    pub(super) fn hold(&self, dek: Dek) -> Option<OnRevoke> {
        match std::mem::replace(&mut *self.lock(), Key::Held(dek)) {
            Key::Held(_) => None,
            Key::Destroyed(mode) => Some(mode),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Key> {
        // A key is replaced as a whole, so one whose holder panicked is whole too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_are_there_only_while_the_key_is() {
        let key = SharedKey::new(Dek::generate().unwrap());
        let unit = DataUnit::B4096;
        assert!(key.cipher(unit).unwrap().is_ok());
        key.destroy(OnRevoke::Pause);
        assert_eq!(key.cipher(unit).unwrap().err(), Some(OnRevoke::Pause));
        assert_eq!(key.hold(Dek::generate().unwrap()), Some(OnRevoke::Pause));
        assert!(key.cipher(unit).unwrap().is_ok());
    }
}
