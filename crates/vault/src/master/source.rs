//! Where a vault's master key is, and making one in such a place.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::key::{MasterKey, unavailable};
use super::tpm::{self, Tpm2Options};
use crate::{VaultError, VaultErrorCode};
use keys::{FileGuard, SealingKey};

/// The file of a vault that was made without a choice.
pub(crate) const DEFAULT_FILE: &str = "master.key";

/// Where the master key of a vault is. It is stored as JSON in the vault's database, and changes in the
/// transaction that encrypts what is stored under the new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum MasterSource {
    /// A file in the vault's directory.
    Beside {
        /// Its name.
        file: String,
    },
    /// A file elsewhere.
    File {
        /// Its absolute path.
        path: PathBuf,
    },
    /// A systemd credential.
    Credential {
        /// Its name.
        name: String,
    },
    /// Sealed to the host's TPM 2.0; what the TPM gave is in a file in the vault's directory and is no
    /// secret.
    Tpm2 {
        /// Its name.
        file: String,
    },
}

/// Where a new master key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterPlace {
    /// In a file in the vault's directory.
    Beside,
    /// In a file elsewhere, which is made unless there is one.
    File(PathBuf),
    /// In a systemd credential of this process.
    Credential(String),
    /// Sealed to the host's TPM 2.0.
    Tpm2 {
        /// The PCRs that must be as they are now, as `sha256:7`; none when only the TPM counts.
        pcrs: Option<String>,
        /// The device, as tpm2-tools name it (`device:/dev/tpmrm0`); their default when none is given.
        device: Option<String>,
    },
}

impl MasterSource {
    /// A few words for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Beside { file } => format!("the file {file} beside the vault's database"),
            Self::File { path } => format!("the file {}", path.display()),
            Self::Credential { name } => format!("the systemd credential {name}"),
            Self::Tpm2 { .. } => "sealed to this host's TPM".into(),
        }
    }

    pub(super) fn load(&self, dir: &Path) -> Result<MasterKey, VaultError> {
        let key = match self {
            Self::Beside { file } => {
                if !is_own_file(file) {
                    return Err(odd(file));
                }
                SealingKey::load(&dir.join(file), FileGuard::Mode)
            }
            Self::File { path } => SealingKey::load(path, FileGuard::Mode),
            Self::Credential { name } => {
                SealingKey::load(&credential_path(name)?, FileGuard::Systemd)
            }
            Self::Tpm2 { file } => {
                if !is_own_file(file) {
                    return Err(odd(file));
                }
                return tpm::unseal(&dir.join(file)).map(MasterKey);
            }
        };
        key.map(MasterKey).map_err(unavailable)
    }

    /// The file that it is read from; `None` for a credential of a process that systemd gave none.
    pub(super) fn file_of(&self, dir: &Path) -> Option<PathBuf> {
        match self {
            Self::Beside { file } | Self::Tpm2 { file } => Some(dir.join(file)),
            Self::File { path } => Some(path.clone()),
            Self::Credential { name } => credential(name),
        }
    }

    /// The file in the vault's directory that belongs to it.
    pub(crate) fn own_file(&self) -> Option<&str> {
        match self {
            Self::Beside { file } | Self::Tpm2 { file } => Some(file),
            Self::File { .. } | Self::Credential { .. } => None,
        }
    }
}

impl MasterPlace {
    /// Whether a key that is there is in such a place.
    pub fn is(&self, source: Option<&MasterSource>) -> bool {
        match (self, source) {
            (Self::File(wanted), Some(MasterSource::File { path })) => {
                std::path::absolute(wanted).is_ok_and(|wanted| wanted == *path)
            }
            (Self::Credential(wanted), Some(MasterSource::Credential { name })) => wanted == name,
            (Self::Tpm2 { .. }, Some(MasterSource::Tpm2 { .. }))
            | (Self::Beside, None | Some(MasterSource::Beside { .. })) => true,
            _ => false,
        }
    }

    /// Makes a new master key there, or takes the one that is there where a file or a credential was
    /// named. It is durable when this returns; nothing refers to it yet.
    pub(crate) fn make(&self, dir: &Path) -> Result<(MasterKey, MasterSource), VaultError> {
        let id = Uuid::new_v4().simple();
        let (key, source) = match self {
            Self::Beside => {
                let file = format!("master-{id}.key");
                let key = SealingKey::create(&dir.join(&file)).map_err(unavailable)?;
                sync(dir)?;
                (key, MasterSource::Beside { file })
            }
            Self::File(path) => {
                let path = std::path::absolute(path).map_err(|e| failed(path, e))?;
                let key = match path.symlink_metadata() {
                    Ok(_) => SealingKey::load(&path, FileGuard::Mode),
                    Err(_) => SealingKey::create(&path),
                };
                let key = key.map_err(unavailable)?;
                sync(path.parent().unwrap_or(Path::new("/")))?;
                (key, MasterSource::File { path })
            }
            Self::Credential(name) => {
                let key = SealingKey::load(&credential_path(name)?, FileGuard::Systemd);
                let name = name.clone();
                (key.map_err(unavailable)?, MasterSource::Credential { name })
            }
            Self::Tpm2 { pcrs, device } => {
                let file = format!("master-{id}.tpm2");
                let options = Tpm2Options {
                    pcrs: pcrs.clone(),
                    device: device.clone(),
                };
                let key = tpm::seal(&dir.join(&file), options)?;
                sync(dir)?;
                (key, MasterSource::Tpm2 { file })
            }
        };
        Ok((MasterKey(key), source))
    }
}

/// Whether a file in a vault's directory has a master key, by its name.
pub(crate) fn is_own_file(name: &str) -> bool {
    if name == DEFAULT_FILE {
        return true;
    }
    let id = name
        .strip_prefix("master-")
        .and_then(|rest| rest.strip_suffix(".key").or(rest.strip_suffix(".tpm2")));
    id.is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn credential_path(name: &str) -> Result<PathBuf, VaultError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(VaultError::new(
            VaultErrorCode::BadParameter,
            format!("'{name}' is no name of a systemd credential"),
        ));
    }
    credential(name).ok_or_else(|| {
        VaultError::new(
            VaultErrorCode::MasterKey,
            format!(
                "the vault's master key is the systemd credential {name}, and systemd gave this process \
                 no credentials; run it as a unit with LoadCredentialEncrypted={name}"
            ),
        )
    })
}

fn sync(dir: &Path) -> Result<(), VaultError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| failed(dir, e))
}

/// Overwrites a file with zeros and removes it. Where the file system or the device keeps old blocks,
/// what was there may stay readable to whoever reads the device itself.
pub(crate) fn destroy(path: &Path) -> Result<(), VaultError> {
    let destroyed = (|| {
        let length = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let zeros = vec![0; usize::try_from(length.min(1 << 16)).unwrap_or_default()];
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        io::Write::write_all(&mut file, &zeros)?;
        file.sync_all()?;
        fs::remove_file(path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    destroyed.map_err(|e| failed(path, e))
}

fn failed(path: &Path, source: io::Error) -> VaultError {
    let what = format!("cannot use {} for the master key", path.display());
    VaultError::caused(VaultErrorCode::MasterKey, what, source)
}

fn odd(file: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::Tampered,
        format!("the vault's database names '{file}' as the file of its master key"),
    )
}

/// The file of a systemd credential; `None` where systemd provides none at all.
pub(super) fn credential(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name))
}
