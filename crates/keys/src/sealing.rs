//! A symmetric key that other secrets are encrypted under before they are stored.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{KeyError, LockedBytes, fill_random};

/// Bytes of a sealing key (AES-256).
pub const SEALING_KEY_LEN: usize = 32;
/// Bytes of a GCM nonce (SP 800-38D §8.2.2: random, at most 2^32 secrets under one key).
const NONCE_LEN: usize = 12;

/// Why a sealing key is unavailable or cannot be used.
#[derive(Debug, Error)]
pub enum SealingError {
    /// The file could not be read or written.
    #[error("cannot {call} the key {path}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than the user can reach the file.
    #[error(
        "the key {path} {wrong}; `chown {own} {path}` and `chmod 600 {path}`, and think of what is \
         under it as disclosed if others did read it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Who can, or whose it is.
        wrong: String,
        /// This user.
        own: u32,
    },
    /// The file is no key.
    #[error(
        "the key {path} has {size} bytes instead of {SEALING_KEY_LEN}; restore it from a backup"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// What is elsewhere than in a file is no key.
    #[error("the key has {size} bytes instead of {SEALING_KEY_LEN}")]
    Bytes {
        /// Its length.
        size: usize,
    },
    /// There is no memory for the key.
    #[error(transparent)]
    Memory(#[from] KeyError),
    /// Something could not be encrypted.
    #[error("a secret could not be encrypted")]
    Seal,
    /// What was stored is not what was sealed here, for this purpose.
    #[error("a stored secret fails its authentication")]
    Open,
}

/// What keeps others from reading the file of a sealing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileGuard {
    /// The file's owner and mode, which are checked.
    Mode,
    /// systemd, which keeps credentials in a directory (on memory that is not swapped) that only
    /// the service can enter.
    Systemd,
}

/// A key that secrets at rest are encrypted under, with AES-256-GCM.
pub struct SealingKey(LockedBytes);

impl SealingKey {
    /// A new key, which is nowhere but in memory.
    ///
    /// # Errors
    /// [`SealingError`].
    pub fn generate() -> Result<Self, SealingError> {
        let mut bytes = LockedBytes::zeroed(SEALING_KEY_LEN)?;
        fill_random(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    /// The key with those bytes.
    ///
    /// # Errors
    /// [`SealingError::Bytes`] unless it has [`SEALING_KEY_LEN`] of them.
    pub fn from_bytes(from: &[u8]) -> Result<Self, SealingError> {
        if from.len() != SEALING_KEY_LEN {
            return Err(SealingError::Bytes { size: from.len() });
        }
        let mut bytes = LockedBytes::zeroed(SEALING_KEY_LEN)?;
        bytes.as_mut_slice().copy_from_slice(from);
        Ok(Self(bytes))
    }

    /// The key itself, to be stored in another place.
    pub fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// Makes a new key in the new file `path`, mode 0600; the caller makes the directory entry
    /// durable. What cannot be synced is removed: it would be read from the page cache, and taken for a key that is
    /// stored.
    ///
    /// # Errors
    /// [`SealingError`], also when there is such a file.
    pub fn create(path: &Path) -> Result<Self, SealingError> {
        let Self(bytes) = Self::generate()?;
        let fail = |source| SealingError::Io {
            call: "write",
            path: path.into(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        file.write_all(bytes.as_slice())
            .and_then(|()| file.sync_all())
            .inspect_err(|_| drop(fs::remove_file(path)))
            .map_err(fail)?;
        Ok(Self(bytes))
    }

    /// Reads the key in the file `path`.
    ///
    /// # Errors
    /// [`SealingError`], for a symbolic link and a file that others can reach too.
    pub fn load(path: &Path, guard: FileGuard) -> Result<Self, SealingError> {
        let fail = |source| SealingError::Io {
            call: "read",
            path: path.into(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(fail)?;
        if guard == FileGuard::Mode {
            check_private(&file, path)?;
        }
        let size = file.metadata().map_err(fail)?.len();
        if size != SEALING_KEY_LEN as u64 {
            return Err(SealingError::Length {
                path: path.into(),
                size,
            });
        }
        let mut bytes = LockedBytes::zeroed(SEALING_KEY_LEN)?;
        file.read_exact(bytes.as_mut_slice()).map_err(fail)?;
        Ok(Self(bytes))
    }

    /// HMAC-SHA256 of `message` under this key: a value that tells keys apart and reveals nothing,
    /// or a key for another purpose. Each purpose has messages that begin in a way of its own.
    ///
    /// # Errors
    /// [`SealingError::Seal`]; in fact HMAC takes keys of any length (RFC 2104 §2).
    pub fn derive(&self, message: &[&[u8]]) -> Result<[u8; 32], SealingError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice());
        let mut mac = hmac::Context::with_key(&key);
        for part in message {
            mac.update(part);
        }
        let tag = mac.sign();
        tag.as_ref().try_into().map_err(|_| SealingError::Seal)
    }

    /// The key for another purpose that [`derive`](Self::derive) gives.
    ///
    /// # Errors
    /// [`SealingError`].
    pub fn subkey(&self, purpose: &[u8]) -> Result<Self, SealingError> {
        let mut bytes = LockedBytes::zeroed(SEALING_KEY_LEN)?;
        let derived = Zeroizing::new(self.derive(&[purpose])?);
        bytes.as_mut_slice().copy_from_slice(&*derived);
        Ok(Self(bytes))
    }

    /// Encrypts `secret` for storing: nonce, ciphertext, tag. `associated` says what it is and must
    /// be given again to open it.
    ///
    /// # Errors
    /// [`SealingError`].
    pub fn seal(&self, associated: &[u8], secret: &[u8]) -> Result<Vec<u8>, SealingError> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(secret.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(secret);
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(associated), &mut *sealed)
            .map_err(|_| SealingError::Seal)?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// Decrypts what [`SealingKey::seal`] returned.
    ///
    /// # Errors
    /// [`SealingError::Open`] for anything else.
    pub fn open(
        &self,
        associated: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let (nonce, msg) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealingError::Open)?;
        let mut opened = Zeroizing::new(msg.to_vec());
        let secret = self
            .cipher()?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(associated),
                &mut opened,
            )
            .map_err(|_| SealingError::Open)?
            .len();
        opened.truncate(secret);
        Ok(opened)
    }

    /// The library makes the nonces: AES-GCM is an approved service of the validated module only if its
    /// nonces come from within (SP 800-38D §8.2.2).
    fn cipher(&self) -> Result<RandomizedNonceKey, SealingError> {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.as_slice()).map_err(|_| SealingError::Seal)
    }
}

fn check_private(file: &File, path: &Path) -> Result<(), SealingError> {
    let metadata = file.metadata().map_err(|source| SealingError::Io {
        call: "look at",
        path: path.into(),
        source,
    })?;
    let own = rustix::process::geteuid().as_raw();
    let wrong = if metadata.uid() != own {
        format!(
            "belongs to user {} and not to this user ({own})",
            metadata.uid()
        )
    } else if metadata.mode() & 0o077 != 0 {
        format!(
            "has mode {:04o}: others can reach it",
            metadata.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(SealingError::Exposed {
        path: path.into(),
        wrong,
        own,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use test_support::seccomp::with_failing_syncs;

    #[test]
    fn a_key_that_cannot_be_synced_is_not_there_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        with_failing_syncs("master.key", |syncs| {
            syncs.allow(0);
            assert!(SealingKey::create(&path).is_err());
            assert!(!path.exists());
            syncs.allow_all();
            SealingKey::create(&path).unwrap();
        });
        SealingKey::load(&path, FileGuard::Mode).unwrap();
    }

    #[test]
    fn what_is_sealed_opens_unchanged_and_for_its_purpose_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let key = SealingKey::create(&path).unwrap();
        let sealed = key.seal(b"purpose", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        let key = SealingKey::load(&path, FileGuard::Mode).unwrap();
        assert_eq!(*key.open(b"purpose", &sealed).unwrap(), b"secret");
        assert!(key.open(b"other", &sealed).is_err());
        let subkey = key.subkey(b"p").unwrap();
        assert!(subkey.open(b"purpose", &sealed).is_err());
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert!(key.open(b"purpose", &changed).is_err(), "byte {n}");
            assert!(key.open(b"purpose", &sealed[..n]).is_err());
        }
        let again = key.seal(b"purpose", b"secret").unwrap();
        assert_ne!(again[..NONCE_LEN], sealed[..NONCE_LEN]);
    }

    /// The nonce, the ciphertext and its tag, as everything that was ever sealed has them.
    #[test]
    fn what_was_sealed_with_a_nonce_from_outside_opens() {
        use aws_lc_rs::aead::{LessSafeKey, UnboundKey};
        let key = SealingKey::from_bytes(&[7; SEALING_KEY_LEN]).unwrap();
        let other = UnboundKey::new(&AES_256_GCM, &[7; SEALING_KEY_LEN]).unwrap();
        let mut sealed = b"secret".to_vec();
        LessSafeKey::new(other)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key([9; NONCE_LEN]),
                Aad::from(b"purpose"),
                &mut sealed,
            )
            .unwrap();
        let sealed = [&[9; NONCE_LEN], sealed.as_slice()].concat();
        assert_eq!(*key.open(b"purpose", &sealed).unwrap(), b"secret");
    }

    #[test]
    #[cfg(feature = "fips")]
    fn the_validated_module_approves() {
        use crate::is_approved;
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal(b"purpose", b"secret").unwrap();
        assert!(is_approved(|| key.seal(b"purpose", b"secret").unwrap()));
        assert!(is_approved(|| key.open(b"purpose", &sealed).unwrap()));
        assert!(is_approved(|| key.subkey(b"p").unwrap()));
    }

    #[test]
    fn an_exposed_or_cut_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        SealingKey::create(&path).unwrap();
        assert!(SealingKey::create(&path).is_err(), "never written over");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = SealingKey::load(&path, FileGuard::Mode).err().unwrap();
            assert!(error.to_string().contains("chmod 600"), "{error}");
            SealingKey::load(&path, FileGuard::Systemd).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [1; 31]).unwrap();
        let error = SealingKey::load(&path, FileGuard::Mode).err().unwrap();
        assert!(matches!(error, SealingError::Length { size: 31, .. }));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(SealingKey::load(&path, FileGuard::Mode).is_err());
    }
}
