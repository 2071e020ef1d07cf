//! The DEKs of the disk's layers in the data plane, for as long as the vaults grant them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keys::{DekStack, with_wiped_call_stack};
use protocol::OnRevoke;
use xts::{CipherStack, CryptoThreads, DataUnit};

use crate::DataplaneError;

/// Where queues that start get their ciphers from. Those that run have their own, so that no request
/// ever looks here.
pub(crate) struct SharedKey {
    key: Mutex<Key>,
    /// What helps the ciphers that come from here.
    threads: Option<Arc<CryptoThreads>>,
    /// Of how many layers at most: more ciphers could not be locked in memory.
    helped_layers: usize,
}

enum Key {
    Held(DekStack),
    /// Revoked, and zeroed; what guests get meanwhile.
    Destroyed(OnRevoke),
}

impl SharedKey {
    pub(crate) fn new(deks: DekStack) -> Self {
        Self::of(Key::Held(deks))
    }

    /// A key that is revoked already.
    pub(crate) fn revoked(mode: OnRevoke) -> Self {
        Self::of(Key::Destroyed(mode))
    }

    fn of(key: Key) -> Self {
        Self {
            key: Mutex::new(key),
            threads: None,
            helped_layers: 0,
        }
    }

    /// The same, with `count` threads that help all ciphers that are made from now on, of stacks of at most so many
    /// `layers`.
    ///
    /// # Errors
    /// [`DataplaneError::Cipher`].
    pub(crate) fn with_threads(self, count: u16, layers: usize) -> Result<Self, DataplaneError> {
        let start = || CryptoThreads::start(count.into()).map(Arc::new);
        Ok(Self {
            threads: (count > 0).then(start).transpose()?,
            helped_layers: layers,
            ..self
        })
    }

    /// Ciphers for one queue of layers with these data units, or what the queue does while the key
    /// is revoked.
    ///
    /// # Errors
    /// [`DataplaneError::Cipher`].
    pub(crate) fn ciphers(
        &self,
        units: &[DataUnit],
    ) -> Result<Result<CipherStack, OnRevoke>, DataplaneError> {
        match &*self.lock() {
            Key::Held(deks) if deks.layers() != units.len() => Err(DataplaneError::Setup(format!(
                "{} keys for {} layers",
                deks.layers(),
                units.len()
            ))),
            Key::Held(deks) => Ok(Ok(with_wiped_call_stack(|| match &self.threads {
                Some(threads) if units.len() <= self.helped_layers => {
                    CipherStack::with_threads(deks, units, threads)
                }
                _ => CipherStack::new(deks, units),
            })?)),
            Key::Destroyed(mode) => Ok(Err(*mode)),
        }
    }

    /// Zeroes the DEKs. The queues must have destroyed their ciphers before.
    pub(crate) fn destroy(&self, mode: OnRevoke) {
        *self.lock() = Key::Destroyed(mode);
    }

    /// Holds DEKs again; what was done while they were revoked.
    pub(crate) fn hold(&self, deks: DekStack) -> Option<OnRevoke> {
        match std::mem::replace(&mut *self.lock(), Key::Held(deks)) {
            Key::Held(_) => None,
            Key::Destroyed(mode) => Some(mode),
        }
    }

    /// Whether it is not revoked.
    pub(crate) fn is_held(&self) -> bool {
        matches!(&*self.lock(), Key::Held(_))
    }

    /// Holds the DEKs of another stack instead, unless they are revoked: then these are zeroed too.
    pub(crate) fn exchange(&self, deks: DekStack) {
        if let Key::Held(held) = &mut *self.lock() {
            *held = deks;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Key> {
        // A key is replaced as a whole, so one whose holder panicked is whole too.
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::Dek;

    fn deks() -> DekStack {
        Dek::generate().unwrap().into()
    }

    #[test]
    fn ciphers_are_there_only_while_the_key_is() {
        let key = SharedKey::new(deks());
        let units = [DataUnit::B4096];
        assert!(key.ciphers(&units).unwrap().is_ok());
        key.destroy(OnRevoke::Pause);
        assert_eq!(key.ciphers(&units).unwrap().err(), Some(OnRevoke::Pause));
        assert_eq!(key.hold(deks()), Some(OnRevoke::Pause));
        assert!(key.ciphers(&units).unwrap().is_ok());
        assert!(key.ciphers(&[DataUnit::B512; 2]).is_err(), "a key for two");
        key.exchange(deks().pushed(Dek::generate().unwrap()));
        assert!(key.ciphers(&[DataUnit::B512; 2]).unwrap().is_ok());
        key.destroy(OnRevoke::Error);
        key.exchange(deks());
        assert_eq!(key.ciphers(&units).unwrap().err(), Some(OnRevoke::Error));
    }
}
