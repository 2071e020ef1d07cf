//! The disk's DEKs, kept for the next data plane.
//!
//! A data plane that dies during an outage of the vault is replaced all the same, within the grace period. Its
//! DEKs wait for that in memory of this process that is mapped only to write and read it ([`KeptDeks`]). A revocation
//! wipes them first of all copies, before it is recorded that the key is destroyed.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use keys::{DekStack, KeptDeks, KeyError, with_wiped_call_stack};

/// The DEKs of the layers that are served, for as long as the vaults grant them.
pub(crate) struct KeptKeys(Mutex<Kept>);

enum Kept {
    Held {
        /// From the top down.
        layers: Vec<Uuid>,
        deks: KeptDeks,
    },
    /// They could not be kept.
    Missing,
    /// Revoked, and wiped.
    Destroyed,
}

impl KeptKeys {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Kept::Destroyed))
    }

    /// Keeps the DEKs of these layers.
    pub(crate) fn hold(&self, layers: Vec<Uuid>, deks: &DekStack) {
        *self.kept() = Kept::of(layers, deks);
    }

    /// Keeps those of other layers instead, unless they are revoked.
    pub(crate) fn exchange(&self, layers: Vec<Uuid>, deks: &DekStack) {
        let mut kept = self.kept();
        if !matches!(*kept, Kept::Destroyed) {
            *kept = Kept::of(layers, deks);
        }
    }

    /// Wipes them.
    pub(crate) fn destroy(&self) {
        *self.kept() = Kept::Destroyed;
    }

    /// The DEKs of these layers, if they are the ones that are kept.
    pub(crate) fn deks(&self, of: &[Uuid]) -> Option<DekStack> {
        self.kept().deks(of)
    }

    /// The DEKs of these layers; an inner `None` while they are revoked, and an outer one when others are kept.
    pub(crate) fn granted(&self, of: &[Uuid]) -> Option<Option<DekStack>> {
        if matches!(*self.kept(), Kept::Destroyed) {
            return Some(None);
        }
        self.deks(of).map(Some)
    }

    /// Gives `give` the DEKs of these layers, which may have been `unwrapped` just now, or none while they are revoked.
    /// They are not revoked before it returns.
    pub(crate) fn give<T>(
        &self,
        of: &[Uuid],
        unwrapped: Option<&DekStack>,
        give: impl FnOnce(Option<&DekStack>) -> T,
    ) -> T {
        let mut kept = self.kept();
        let deks = kept.deks(of);
        let granted = match *kept {
            Kept::Destroyed => None,
            Kept::Held { .. } | Kept::Missing => deks.as_ref().or(unwrapped),
        };
        give(granted)
    }

    /// Writes them into a socket of the next program; of which layers they are, if there are any.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn send(&self, to: &mut impl Write) -> Result<Option<Vec<Uuid>>, KeyError> {
        match &mut *self.kept() {
            Kept::Held { layers, deks } => {
                with_wiped_call_stack(|| deks.deks()?.send(to))?;
                Ok(Some(layers.clone()))
            }
            Kept::Missing | Kept::Destroyed => Ok(None),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // It is replaced as a whole, so one whose holder panicked is whole too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn deks(&mut self, of: &[Uuid]) -> Option<DekStack> {
        match self {
            Self::Held { layers, deks } if layers == of => match deks.deks() {
                Ok(deks) => Some(deks),
                Err(error) => {
                    log::error!("the keys that are kept cannot be read: {error}");
                    None
                }
            },
            _ => None,
        }
    }

    fn of(layers: Vec<Uuid>, deks: &DekStack) -> Self {
        match KeptDeks::new(deks) {
            Ok(deks) => Self::Held { layers, deks },
            Err(error) => {
                log::warn!(
                    "the disk's keys cannot be kept, so no other data plane can go on for one that dies: {error}"
                );
                Self::Missing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keys::Dek;

    #[test]
    fn keys_are_there_only_while_they_are_granted_and_only_for_their_layers() {
        let keys = KeptKeys::new();
        let (one, two) = (vec![Uuid::from_u128(1)], vec![Uuid::from_u128(2)]);
        let deks = DekStack::from(Dek::generate().unwrap());
        keys.exchange(one.clone(), &deks);
        assert!(keys.deks(&one).is_none(), "they are revoked");
        keys.hold(one.clone(), &deks);
        let kept = keys.deks(&one).unwrap();
        assert_eq!(kept.top().expose(), deks.top().expose());
        assert!(keys.deks(&two).is_none());
        keys.exchange(two.clone(), &deks);
        assert!(keys.deks(&two).is_some() && keys.deks(&one).is_none());
        keys.destroy();
        keys.exchange(one.clone(), &deks);
        assert!(keys.deks(&one).is_none() && keys.deks(&two).is_none());
    }
}
