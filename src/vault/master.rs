//! The master key of an embedded vault, and the keys at rest under it.
//!
//! The master key is 32 random bytes in the file `master.key` beside the database (mode 0600), or
//! a systemd credential named `sealdisk-vault-NAME` (`LoadCredentialEncrypted=` seals it to the
//! host's TPM), which is preferred when systemd provides it. Whoever has only the database has no
//! key.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{VaultError, VaultErrorCode};
use crate::keys::LockedBytes;

/// Bytes of a master key (AES-256).
const MASTER_LEN: usize = 32;
/// Bytes of a GCM nonce (SP 800-38D §8.2.2: random, at most 2^32 keys under one master key).
const NONCE_LEN: usize = 12;

/// A vault's master key.
pub(super) struct MasterKey(LockedBytes);

/// Which key at rest is meant. It is bound to the ciphertext as associated data, so that neither
/// can one key be put in the place of another, nor a public key be replaced by one whose private
/// half an attacker has.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub vault: Uuid,
    pub key: &'a str,
    pub version: &'a str,
    /// Modulus, big-endian.
    pub n: &'a [u8],
    /// Public exponent, big-endian.
    pub e: &'a [u8],
}

impl Slot<'_> {
    /// Each part of varying length follows its length, so that no two slots have the same data.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = b"sealdisk vault private key v1\0".to_vec();
        data.extend(self.vault.as_bytes());
        let parts = [self.key.as_bytes(), self.version.as_bytes(), self.n, self.e];
        for part in parts {
            data.extend((part.len() as u64).to_le_bytes());
            data.extend(part);
        }
        data
    }
}

impl MasterKey {
    /// Takes the systemd credential when there is one, or else makes `master.key` in `dir`; the
    /// caller makes the directory entry durable.
    pub fn create(dir: &Path, vault_name: &str) -> Result<Self, VaultError> {
        if let Some(path) = credential(vault_name) {
            return read(&path, Guard::Systemd);
        }
        let path = dir.join("master.key");
        let mut bytes = LockedBytes::zeroed(MASTER_LEN).map_err(unusable)?;
        getrandom::fill(bytes.as_mut_slice()).map_err(|e| {
            VaultError::caused(
                VaultErrorCode::Internal,
                "the system's random generator failed",
                io::Error::from(e),
            )
        })?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(bytes.as_slice())
                    .and_then(|()| file.sync_all())
            });
        written.map_err(|e| {
            let what = format!("cannot write the master key {}", path.display());
            VaultError::caused(VaultErrorCode::MasterKey, what, e)
        })?;
        Ok(Self(bytes))
    }

    /// Reads the systemd credential when there is one, or else `master.key` in `dir`.
    pub fn load(dir: &Path, vault_name: &str) -> Result<Self, VaultError> {
        match credential(vault_name) {
            Some(path) => read(&path, Guard::Systemd),
            None => read(&dir.join("master.key"), Guard::Mode),
        }
    }

    /// A value that tells whether a master key is the one that the vault was made with, and that
    /// reveals nothing about it.
    pub fn check_value(&self, vault: Uuid) -> Result<[u8; 32], VaultError> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.as_slice())
            .map_err(|_| length(MASTER_LEN))?;
        mac.update(b"sealdisk vault master key check v1\0");
        mac.update(vault.as_bytes());
        Ok(mac.finalize().into_bytes().into())
    }

    /// Encrypts a private key (PKCS#8 DER) for storing: nonce, ciphertext, tag.
    pub fn seal(&self, slot: &Slot<'_>, private_key: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|e| {
            VaultError::caused(
                VaultErrorCode::Internal,
                "the system's random generator failed",
                io::Error::from(e),
            )
        })?;
        let payload = Payload {
            msg: private_key,
            aad: &slot.associated_data(),
        };
        let sealed = self
            .cipher()?
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| VaultError::new(VaultErrorCode::Internal, "a key could not be sealed"))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts what [`MasterKey::seal`] returned for the same slot.
    pub fn open(&self, slot: &Slot<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let tampered = || {
            VaultError::new(
                VaultErrorCode::Tampered,
                format!(
                    "the stored key '{}' version {} fails its authentication: the vault's database \
                     was damaged or tampered with; restore it from a backup",
                    slot.key, slot.version
                ),
            )
        };
        let (nonce, msg) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or_else(tampered)?;
        let payload = Payload {
            msg,
            aad: &slot.associated_data(),
        };
        self.cipher()?
            .decrypt(&Nonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| tampered())
    }

    fn cipher(&self) -> Result<Aes256Gcm, VaultError> {
        let key = <&Key<Aes256Gcm>>::try_from(self.0.as_slice()).map_err(|_| length(MASTER_LEN))?;
        Ok(Aes256Gcm::new(key))
    }
}

/// What keeps others from reading the master key.
enum Guard {
    /// The file's owner and mode, which are checked.
    Mode,
    /// systemd, which keeps credentials in a directory (on memory that is not swapped) that only
    /// the service can enter.
    Systemd,
}

fn credential(vault_name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = PathBuf::from(dir).join(format!("sealdisk-vault-{vault_name}"));
    path.exists().then_some(path)
}

fn read(path: &Path, guard: Guard) -> Result<MasterKey, VaultError> {
    let fail = |e| {
        let what = format!("cannot read the vault's master key {}", path.display());
        VaultError::caused(VaultErrorCode::MasterKey, what, e)
    };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(fail)?;
    if matches!(guard, Guard::Mode) {
        check_private(&file, path)?;
    }
    let size = file.metadata().map_err(fail)?.len();
    if size != MASTER_LEN as u64 {
        return Err(VaultError::new(
            VaultErrorCode::MasterKey,
            format!(
                "the master key {} has {size} bytes instead of {MASTER_LEN}; restore it from a \
                 backup",
                path.display()
            ),
        ));
    }
    let mut bytes = LockedBytes::zeroed(MASTER_LEN).map_err(unusable)?;
    file.read_exact(bytes.as_mut_slice()).map_err(fail)?;
    Ok(MasterKey(bytes))
}

fn check_private(file: &File, path: &Path) -> Result<(), VaultError> {
    let metadata = file.metadata().map_err(|e| {
        let what = format!("cannot look at the master key {}", path.display());
        VaultError::caused(VaultErrorCode::MasterKey, what, e)
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
    Err(VaultError::new(
        VaultErrorCode::MasterKey,
        format!(
            "the master key {path} {wrong}; `chown {own} {path}` and `chmod 600 {path}`, and think \
             of its keys as disclosed if others did read it",
            path = path.display()
        ),
    ))
}

fn unusable(source: crate::keys::KeyError) -> VaultError {
    let what = "there is no memory for the master key";
    VaultError::caused(VaultErrorCode::Internal, what, source)
}

fn length(expected: usize) -> VaultError {
    let message = format!("a master key is {expected} bytes");
    VaultError::new(VaultErrorCode::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn slot<'a>(key: &'a str, version: &'a str) -> Slot<'a> {
        Slot {
            vault: Uuid::from_u128(7),
            key,
            version,
            n: &[200, 1],
            e: &[3],
        }
    }

    #[test]
    fn a_sealed_key_opens_only_in_its_own_slot_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let master = MasterKey::create(dir.path(), "vault").unwrap();
        let sealed = master.seal(&slot("k", "1"), b"private").unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"private"));
        let master = MasterKey::load(dir.path(), "vault").unwrap();
        assert_eq!(*master.open(&slot("k", "1"), &sealed).unwrap(), b"private");
        let other_vault = Slot {
            vault: Uuid::from_u128(8),
            ..slot("k", "1")
        };
        let other_public = Slot {
            n: &[200],
            e: &[1, 3],
            ..slot("k", "1")
        };
        let others = [slot("k", "2"), slot("l", "1"), slot("k1", "")];
        for other in others.into_iter().chain([other_vault, other_public]) {
            let error = master.open(&other, &sealed).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::Tampered);
        }
        for n in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[n] ^= 1;
            assert!(master.open(&slot("k", "1"), &changed).is_err(), "byte {n}");
            assert!(master.open(&slot("k", "1"), &sealed[..n]).is_err());
        }
        let again = master.seal(&slot("k", "1"), b"private").unwrap();
        assert_ne!(again[..NONCE_LEN], sealed[..NONCE_LEN]);
    }

    #[test]
    fn an_exposed_or_cut_master_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        MasterKey::create(dir.path(), "vault").unwrap();
        let path = dir.path().join("master.key");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = MasterKey::load(dir.path(), "vault").err().unwrap();
            assert!(error.message.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [1; 31]).unwrap();
        let error = MasterKey::load(dir.path(), "vault").err().unwrap();
        assert_eq!(error.code, VaultErrorCode::MasterKey);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(MasterKey::load(dir.path(), "vault").is_err());
    }
}
