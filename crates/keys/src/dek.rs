//! The data encryption key of one layer.

use std::io::{Read, Write};

use rustix::io::Errno;

use super::{KeyError, LockedBytes, fill_random, lock_stack};

/// Bytes of an AES-256-XTS key: two AES-256 keys (IEEE 1619-2018 §5.1).
pub const DEK_LEN: usize = 64;

/// Which of the two AES keys of an XTS key is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DekHalf {
    /// Key 1 encrypts the data.
    Data,
    /// Key 2 encrypts the tweak.
    Tweak,
}

/// A data encryption key, AES-256-XTS, in locked memory.
///
/// It cannot be cloned or printed. Functions that need it borrow it for one call.
pub struct Dek(LockedBytes);

impl Dek {
    /// A fresh key from [`fill_random`].
    ///
    /// # Errors
    /// [`KeyError::Random`] or [`KeyError::Lock`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = LockedBytes::zeroed(DEK_LEN)?;
        fill_random(bytes.as_mut_slice())?;
        Self::checked(bytes)
    }

    /// Takes over key bytes that were unwrapped or received.
    ///
    /// # Errors
    /// [`KeyError::Length`] or [`KeyError::EqualHalves`].
    pub fn from_locked(bytes: LockedBytes) -> Result<Self, KeyError> {
        Self::checked(bytes)
    }

    /// Reads a key from a pipe or socket straight into locked memory.
    ///
    /// # Errors
    /// [`KeyError::Transfer`] when the stream ends early, or as [`Dek::from_locked`].
    pub fn receive(from: &mut impl Read) -> Result<Self, KeyError> {
        let mut bytes = LockedBytes::zeroed(DEK_LEN)?;
        from.read_exact(bytes.as_mut_slice())
            .map_err(KeyError::Transfer)?;
        Self::checked(bytes)
    }

    /// Writes the key into a pipe or socket to the data plane process.
    ///
    /// # Errors
    /// [`KeyError::Transfer`].
    pub fn send(&self, to: &mut impl Write) -> Result<(), KeyError> {
        to.write_all(self.expose()).map_err(KeyError::Transfer)
    }

    /// One AES-256 key of the pair.
    pub fn half(&self, half: DekHalf) -> &[u8] {
        let (data, tweak) = self.0.as_slice().split_at(DEK_LEN / 2);
        match half {
            DekHalf::Data => data,
            DekHalf::Tweak => tweak,
        }
    }

    /// All 64 bytes, key 1 first: for wrapping and for key derivation only.
    pub fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// Whatever a thread does with a DEK, parts of it come by its stack.
    fn checked(bytes: LockedBytes) -> Result<Self, KeyError> {
        lock_stack()?;
        let actual = bytes.as_slice().len();
        if actual != DEK_LEN {
            return Err(KeyError::Length {
                expected: DEK_LEN,
                actual,
            });
        }
        let (data, tweak) = bytes.as_slice().split_at(DEK_LEN / 2);
        // Both halves are secret, so the comparison does not stop at the first difference.
        let difference = data
            .iter()
            .zip(tweak)
            .fold(0u8, |acc, (a, b)| acc | (a ^ b));
        if difference == 0 {
            return Err(KeyError::EqualHalves);
        }
        Ok(Self(bytes))
    }
}

/// Hardens the whole process against leaking its memory: no core dumps, no ptrace by the same user.
///
/// # Errors
/// [`KeyError::Lock`]: a process that could dump its keys must not get any.
pub fn harden_process() -> Result<(), KeyError> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let fail = |call| {
        move |e: Errno| KeyError::Lock {
            call,
            source: e.into(),
        }
    };
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // It is read from /proc/self/auxv where the kernel is older than 6.4, which an ordinary user's process may not do
    // any more once it cannot be dumped. From then on it is known.
    let _ = rustix::param::page_size();
    setrlimit(Resource::Core, none).map_err(fail("forbid core dumps of"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("forbid dumps of"))?;
    // Most commands need no key. Where one is made on a stack that could not be locked, that fails.
    let _ = lock_stack();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(bytes: &[u8]) -> LockedBytes {
        let mut locked = LockedBytes::zeroed(bytes.len()).unwrap();
        locked.as_mut_slice().copy_from_slice(bytes);
        locked
    }

    #[test]
    fn equal_halves_are_refused() {
        assert!(matches!(
            Dek::from_locked(locked(&[9; 64])),
            Err(KeyError::EqualHalves)
        ));
    }

    #[test]
    fn a_short_key_is_refused() {
        assert!(matches!(
            Dek::from_locked(locked(&[9; 32])),
            Err(KeyError::Length { .. })
        ));
    }

    #[test]
    fn travels_over_a_pipe() {
        let dek = Dek::generate().unwrap();
        let mut pipe = Vec::new();
        dek.send(&mut pipe).unwrap();
        let other = Dek::receive(&mut pipe.as_slice()).unwrap();
        assert_eq!(other.expose(), dek.expose());
        assert_ne!(other.half(DekHalf::Data), other.half(DekHalf::Tweak));
    }
}
