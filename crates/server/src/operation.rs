//! What a request wants done, and doing it on the vault.

use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::ApiError;
use super::base64url::base64url;
use super::host::VaultHost;
use super::model::{
    self, CreateBody, CryptBody, ImportBody, RandomBody, RestoreBody, UpdateBody, View,
};
use super::protection::Protection;
use super::query::Query;
use super::route::{Crypt, Route};
use vault::{
    CHECK_HEADER, Caller, DISK_HEADER, EmbeddedVault, EncryptionAlgorithm, KeyChange, KeyId,
    KeyMaterial, KeyPermission, KeyVault, LAYER_HEADER, NewKey, Page, PrivateJwk, Purpose,
    RotationPolicy,
};

/// A request of which everything has been parsed.
pub enum Operation {
    /// Make a key, perhaps only in hardware.
    Create(String, NewKey, Protection),
    /// Bring a key in, perhaps only into hardware.
    Import(String, Box<PrivateJwk>, KeyChange, Protection),
    /// Show a key version.
    Get(KeyId),
    /// Change a key version.
    Update(KeyId, KeyChange),
    /// Encrypt or decrypt.
    Crypt(KeyId, Crypt, EncryptionAlgorithm, Zeroizing<Vec<u8>>),
    /// List the versions of a key.
    ListVersions(String),
    /// List the keys.
    List,
    /// Delete a key softly.
    Delete(String),
    /// Make a new version by the rotation policy.
    Rotate(String),
    /// Show a rotation policy.
    GetRotationPolicy(String),
    /// Change a rotation policy.
    SetRotationPolicy(String, RotationPolicy),
    /// Take a backup of a key.
    Backup(String),
    /// Restore a backup.
    Restore(Vec<u8>),
    /// Random bytes.
    Random(usize),
    /// List the deleted keys.
    ListDeleted,
    /// Show a deleted key.
    GetDeleted(String),
    /// Delete a key for good.
    Purge(String),
    /// Bring a deleted key back.
    Recover(String),
}

/// What a request is answered with.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body, if there is one.
    pub body: Option<Value>,
}

impl From<Value> for Answer {
    fn from(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Some(body),
        }
    }
}

impl Route {
    /// The permission that the operation takes. It is checked by the operation itself; this is for
    /// a request that never becomes one.
    pub fn permission(&self) -> Option<KeyPermission> {
        Some(match self {
            Self::Create(_) => KeyPermission::Create,
            Self::Import(_) => KeyPermission::Import,
            Self::Get(..) | Self::GetDeleted(_) => KeyPermission::Get,
            Self::Update(..) => KeyPermission::Update,
            Self::Crypt(_, _, Crypt::Wrap) => KeyPermission::WrapKey,
            Self::Crypt(_, _, Crypt::Unwrap) => KeyPermission::UnwrapKey,
            Self::Crypt(_, _, Crypt::Encrypt) => KeyPermission::Encrypt,
            Self::Crypt(_, _, Crypt::Decrypt) => KeyPermission::Decrypt,
            Self::ListVersions(_) | Self::List | Self::ListDeleted => KeyPermission::List,
            Self::Delete(_) => KeyPermission::Delete,
            Self::Rotate(_) => KeyPermission::Rotate,
            Self::GetRotationPolicy(_) => KeyPermission::GetRotationPolicy,
            Self::SetRotationPolicy(_) => KeyPermission::SetRotationPolicy,
            Self::Backup(_) => KeyPermission::Backup,
            Self::Restore => KeyPermission::Restore,
            Self::Purge(_) => KeyPermission::Purge,
            Self::Recover(_) => KeyPermission::Recover,
            Self::Random => return None,
        })
    }

    /// Whether the operation looks for primes, which takes seconds.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Rotate(_))
    }
}

impl Operation {
    /// Parses the body of a request for `route`.
    ///
    /// # Errors
    /// 400, naming what is missing or wrong.
    pub fn parse(route: Route, body: &[u8]) -> Result<Self, ApiError> {
        Ok(match route {
            Route::Create(name) => {
                let (new, protection) = json::<CreateBody>(body)?.new_key()?;
                Self::Create(name, new, protection)
            }
            Route::Import(name) => {
                let (key, change, protection) = json::<ImportBody>(body)?.parts()?;
                Self::Import(name, key, change, protection)
            }
            Route::Get(name, version) => Self::Get(key_id(name, version)?),
            Route::Update(name, version) => {
                Self::Update(key_id(name, version)?, json::<UpdateBody>(body)?.change()?)
            }
            Route::Crypt(name, version, crypt) => {
                let body: CryptBody = json(body)?;
                let algorithm = body.alg.parse()?;
                let value = Zeroizing::new(base64url("value", &body.value)?);
                Self::Crypt(key_id(name, version)?, crypt, algorithm, value)
            }
            Route::ListVersions(name) => Self::ListVersions(name),
            Route::List => Self::List,
            Route::Delete(name) => Self::Delete(name),
            Route::Rotate(name) => Self::Rotate(name),
            Route::GetRotationPolicy(name) => Self::GetRotationPolicy(name),
            Route::SetRotationPolicy(name) => Self::SetRotationPolicy(name, json(body)?),
            Route::Backup(name) => Self::Backup(name),
            Route::Restore => Self::Restore(base64url("value", &json::<RestoreBody>(body)?.value)?),
            Route::Random => Self::Random(json::<RandomBody>(body)?.count),
            Route::ListDeleted => Self::ListDeleted,
            Route::GetDeleted(name) => Self::GetDeleted(name),
            Route::Purge(name) => Self::Purge(name),
            Route::Recover(name) => Self::Recover(name),
        })
    }

    /// Does it. Blocks: for the vault's disk, and for as long as RSA takes.
    ///
    /// # Errors
    /// The vault's refusal.
    pub fn run(
        &self,
        vault: &EmbeddedVault,
        caller: &Caller,
        host: &VaultHost,
        query: &Query,
    ) -> Result<Answer, ApiError> {
        let view = View::new(vault.url(), host);
        let after = query.after.as_deref();
        let max = query.max_results;
        Ok(match self {
            Self::Create(name, new, protection) => {
                protection.check(vault, caller, KeyPermission::Create)?;
                view.bundle(&vault.create_key(caller, name, new)?).into()
            }
            Self::Import(name, key, change, protection) => {
                protection.check(vault, caller, KeyPermission::Import)?;
                let material = KeyMaterial::Jwk(key);
                view.bundle(&vault.import_key(caller, name, &material, change)?)
                    .into()
            }
            Self::Get(key) => view.bundle(&vault.key(caller, key)?).into(),
            Self::Update(key, change) => {
                view.bundle(&vault.update_key(caller, key, change)?).into()
            }
            Self::Crypt(key, crypt, algorithm, value) => {
                use_key(&view, vault, caller, key, (*crypt, *algorithm), value)?.into()
            }
            Self::ListVersions(name) => {
                let page = vault.key_versions_page(caller, name, after, max)?;
                let path = format!("/keys/{name}/versions");
                list(&page, host, query, &path, |key| view.item(key, true))
            }
            Self::List => {
                let page = vault.keys_page(caller, after, max)?;
                list(&page, host, query, "/keys", |key| view.item(key, false))
            }
            Self::Delete(name) => view.deleted(&vault.delete_key(caller, name)?).into(),
            Self::Rotate(name) => view.bundle(&vault.rotate_key(caller, name)?).into(),
            Self::GetRotationPolicy(name) => {
                let policy = vault.rotation_policy(caller, name)?;
                view.rotation_policy(name, &policy)?.into()
            }
            Self::SetRotationPolicy(name, policy) => {
                let policy = vault.set_rotation_policy(caller, name, policy)?;
                view.rotation_policy(name, &policy)?.into()
            }
            Self::Backup(name) => model::value(&vault.backup_key(caller, name)?).into(),
            Self::Restore(backup) => view.bundle(&vault.restore_key(caller, backup)?).into(),
            Self::Random(count) => model::value(&vault.random_bytes(caller, *count)?).into(),
            Self::ListDeleted => {
                let page = vault.deleted_keys_page(caller, after, max)?;
                list(&page, host, query, "/deletedkeys", |key| {
                    view.deleted_item(key)
                })
            }
            Self::GetDeleted(name) => view.deleted(&vault.deleted_key(caller, name)?).into(),
            Self::Purge(name) => {
                vault.purge_key(caller, name)?;
                Answer {
                    status: StatusCode::NO_CONTENT,
                    body: None,
                }
            }
            Self::Recover(name) => view.bundle(&vault.recover_key(caller, name)?).into(),
        })
    }
}

/// What a client says that it wants a key for; see [`Purpose`].
pub fn claimed_purpose(headers: &HeaderMap) -> Purpose {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_name = |name: &&str| (1..=127).contains(&name.len());
    Purpose {
        disk: text(DISK_HEADER).filter(is_name).map(Into::into),
        layer: text(LAYER_HEADER).and_then(|id| Uuid::try_parse(id).ok()),
        check: text(CHECK_HEADER) == Some("true"),
    }
}

fn use_key(
    view: &View<'_>,
    vault: &EmbeddedVault,
    caller: &Caller,
    key: &KeyId,
    (crypt, algorithm): (Crypt, EncryptionAlgorithm),
    value: &[u8],
) -> Result<Value, ApiError> {
    let version = key.version.as_deref().unwrap_or_default();
    Ok(match crypt {
        Crypt::Wrap => {
            let wrapped = vault.wrap(caller, key, algorithm, value)?;
            view.operation(&key.name, &wrapped.key_version, &wrapped.value)
        }
        Crypt::Encrypt => {
            let encrypted = vault.encrypt(caller, key, algorithm, value)?;
            view.operation(&key.name, &encrypted.key_version, &encrypted.value)
        }
        Crypt::Unwrap => {
            let secret = vault.unwrap(caller, key, algorithm, value)?;
            view.operation(&key.name, version, secret.as_slice())
        }
        Crypt::Decrypt => {
            let data = vault.decrypt(caller, key, algorithm, value)?;
            view.operation(&key.name, version, data.as_slice())
        }
    })
}

fn list<T>(
    page: &Page<T>,
    host: &VaultHost,
    query: &Query,
    path: &str,
    item: impl Fn(&T) -> Value,
) -> Answer {
    let next = page
        .next
        .as_ref()
        .map(|last| query.next_link(&format!("{}{path}", host.url()), last));
    model::list(page.items.iter().map(item).collect(), next).into()
}

fn key_id(name: String, version: Option<String>) -> Result<KeyId, ApiError> {
    let is_version = |v: &str| v.len() == 32 && v.bytes().all(|b| b.is_ascii_hexdigit());
    if version.as_deref().is_some_and(|v| !is_version(v)) {
        return Err(ApiError::bad(
            "the key version in the URL is not 32 hexadecimal digits",
        ));
    }
    Ok(KeyId {
        name,
        version: version.map(|v| v.to_ascii_lowercase()),
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad("Request body not specified"));
    }
    // serde_json's message names the field and the place, never a value of a key or secret: those
    // are strings, of which only that they are strings can be wrong.
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad(format!("the request body is not understood: {e}")))
}
