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

/// What goes before the two keys of a double DEK on a pipe: no key, since its halves are equal, so that a program that
/// does not know double DEKs refuses it.
const DOUBLE: [u8; DEK_LEN] = [0; DEK_LEN];

/// A data encryption key, AES-256-XTS, in locked memory.
///
/// With double encryption it is two keys: the data passes under the inner one first, and what comes of it under the
/// outer one. Neither says anything about the other.
///
/// It cannot be cloned or printed. Functions that need it borrow it for one call.
pub struct Dek {
    key: LockedBytes,
    /// That of the second pass, which has none of its own.
    outer: Option<Box<Self>>,
}

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

    /// The same key with another one for the second pass: double encryption.
    ///
    /// # Errors
    /// [`KeyError::NoPair`] where the two are the same key, or one of them is double already.
    pub fn with_outer(self, outer: Self) -> Result<Self, KeyError> {
        let is_same = differences(self.expose(), outer.expose()) == 0;
        match is_same || self.outer.is_some() || outer.outer.is_some() {
            true => Err(KeyError::NoPair),
            false => Ok(Self {
                outer: Some(Box::new(outer)),
                ..self
            }),
        }
    }

    /// The key of the second pass, where there is one.
    pub fn outer(&self) -> Option<&Self> {
        self.outer.as_deref()
    }

    /// Reads a key from a pipe or socket straight into locked memory.
    ///
    /// # Errors
    /// [`KeyError::Transfer`] when the stream ends early, or as [`Dek::from_locked`] and [`Dek::with_outer`].
    pub fn receive(from: &mut impl Read) -> Result<Self, KeyError> {
        let first = Self::receive_bytes(from)?;
        if differences(first.as_slice(), &DOUBLE) != 0 {
            return Self::checked(first);
        }
        let inner = Self::checked(Self::receive_bytes(from)?)?;
        inner.with_outer(Self::checked(Self::receive_bytes(from)?)?)
    }

    fn receive_bytes(from: &mut impl Read) -> Result<LockedBytes, KeyError> {
        let mut bytes = LockedBytes::zeroed(DEK_LEN)?;
        from.read_exact(bytes.as_mut_slice())
            .map_err(KeyError::Transfer)?;
        Ok(bytes)
    }

    /// Writes the key into a pipe or socket to the data plane process.
    ///
    /// # Errors
    /// [`KeyError::Transfer`].
    pub fn send(&self, to: &mut impl Write) -> Result<(), KeyError> {
        let mut put = |bytes: &[u8]| to.write_all(bytes).map_err(KeyError::Transfer);
        match &self.outer {
            None => put(self.expose()),
            Some(outer) => put(&DOUBLE)
                .and_then(|()| put(self.expose()))
                .and_then(|()| put(outer.expose())),
        }
    }

    /// Bytes that [`Dek::send`] writes.
    pub fn sent_len(&self) -> usize {
        match self.outer {
            None => DEK_LEN,
            Some(_) => 3 * DEK_LEN,
        }
    }

    /// One AES-256 key of the pair, of the first pass.
    pub fn half(&self, half: DekHalf) -> &[u8] {
        let (data, tweak) = self.key.as_slice().split_at(DEK_LEN / 2);
        match half {
            DekHalf::Data => data,
            DekHalf::Tweak => tweak,
        }
    }

    /// All 64 bytes of the first pass's key, key 1 first: for wrapping and for key derivation only.
    pub fn expose(&self) -> &[u8] {
        self.key.as_slice()
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
        if differences(data, tweak) == 0 {
            return Err(KeyError::EqualHalves);
        }
        Ok(Self {
            key: bytes,
            outer: None,
        })
    }
}

/// The bits in which two keys of one length differ, over all their bytes. Both are secret, so it does not stop at the
/// first difference.
fn differences(one: &[u8], other: &[u8]) -> u8 {
    let bits = one.iter().zip(other);
    bits.fold(0, |all, (a, b)| all | (a ^ b))
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

    #[test]
    fn a_double_one_travels_as_well_and_old_programs_refuse_it() {
        let double = |inner: Dek, outer: Dek| inner.with_outer(outer);
        let dek = double(Dek::generate().unwrap(), Dek::generate().unwrap()).unwrap();
        let mut pipe = Vec::new();
        dek.send(&mut pipe).unwrap();
        assert_eq!(pipe.len(), dek.sent_len());
        // What an old program takes for the key.
        let first = Dek::from_locked(locked(&pipe[..DEK_LEN]));
        assert!(matches!(first, Err(KeyError::EqualHalves)));
        let other = Dek::receive(&mut pipe.as_slice()).unwrap();
        assert_eq!(other.expose(), dek.expose());
        let outer = |dek: &Dek| dek.outer().unwrap().expose().to_vec();
        assert_eq!(outer(&other), outer(&dek));
        assert!(matches!(
            Dek::receive(&mut &pipe[..2 * DEK_LEN]),
            Err(KeyError::Transfer(_))
        ));
    }

    #[test]
    fn a_key_is_no_pair_with_itself_and_three_are_none() {
        let same = || Dek::from_locked(locked(&(0..64).collect::<Vec<u8>>())).unwrap();
        let no_pair = |pair: Result<Dek, KeyError>| matches!(pair, Err(KeyError::NoPair));
        assert!(no_pair(same().with_outer(same())));
        let double = || same().with_outer(Dek::generate().unwrap()).unwrap();
        assert!(no_pair(double().with_outer(Dek::generate().unwrap())));
        assert!(no_pair(Dek::generate().unwrap().with_outer(double())));
    }
}
