//! Making, changing and deleting a disk encryption set.

use time::OffsetDateTime;
use uuid::Uuid;

use super::cut_off::refuse_cut_off;
use super::outcome::{DeletedDes, UpdatedDes};
use super::rotate::{refuse_overtaken, rewrap_set};
use crate::resource::reconcile::reconcile;
use installation::DesOperation;
use installation::catalog::{
    Change, DesIdentity, DiskEncryptionSetRecord, EncryptionType, Kind, Stored,
};
use installation::{Installation, InstallationError, PLATFORM_VAULT, retrying};
use vault::audit::AuditLog;
use vault::{KeyUrl, KeyVault, VaultError, VaultErrorCode, same_key_url};

/// A disk encryption set to be made.
pub struct NewDes<'a> {
    /// Its name.
    pub name: &'a str,
    /// URL of its key, with or without a version.
    pub key_url: &'a str,
    /// Name or URL of the key's vault, to be checked against the key's URL.
    pub source_vault: Option<&'a str>,
    /// Whether the latest version of the key is to be followed.
    pub auto_rotation: bool,
    /// Whether what is under it is encrypted twice, under the platform-managed key as well. It stays.
    pub encryption_type: EncryptionType,
    /// The managed identity that uses the key of a vault elsewhere; the machine's by default. A
    /// vault that is kept here knows an identity that is made with the set, and those of users.
    pub identity: Option<DesIdentity>,
}

/// What is to change of a disk encryption set; `None` stays.
#[derive(Default)]
pub struct DesChange<'a> {
    /// URL of the new key.
    pub key_url: Option<&'a str>,
    /// Name or URL of the new key's vault, to be checked against the key's URL.
    pub source_vault: Option<&'a str>,
    /// Whether the latest version of the key is to be followed.
    pub auto_rotation: Option<bool>,
    /// Another identity, which has to be granted the key already when anything is under the set.
    pub identity: Option<DesIdentity>,
}

/// Makes a disk encryption set and its identity, which may use no key until it is granted.
///
/// # Errors
/// When the name is bad or taken, or its key does not exist or is disabled, and when a vault
/// elsewhere does not know the managed identity.
pub fn create(
    installation: &Installation,
    new: &NewDes<'_>,
) -> Result<DiskEncryptionSetRecord, InstallationError> {
    installation.recorded(DesOperation::Create, new.name, Some(new.key_url), |_| {
        create_now(installation, new)
    })
}

fn create_now(
    installation: &Installation,
    new: &NewDes<'_>,
) -> Result<DiskEncryptionSetRecord, InstallationError> {
    check_des_name(new.name)?;
    let catalog = installation.catalog();
    catalog.refuse_locked(Kind::DiskEncryptionSet, new.name, Change::Write)?;
    let url: KeyUrl = new.key_url.parse()?;
    refuse_platform_twice(&url, new.encryption_type)?;
    let identity = identity_for(&url, new.identity.as_ref())?;
    let (key_url, managed) = checked_key_url(installation, &url, new.source_vault, &identity)?;
    let record = DiskEncryptionSetRecord {
        name: new.name.into(),
        principal_id: principal_of(&identity, managed),
        identity,
        key_url,
        encryption_type: new.encryption_type,
        previous_keys: Vec::new(),
        auto_rotation: new.auto_rotation,
        last_rotation: None,
        created: OffsetDateTime::now_utc(),
    };
    installation.catalog().insert_des(&record)?;
    Ok(record)
}

/// Changes a disk encryption set and wraps its disks, attached ones too, under its key again.
///
/// When it has disks, its identity must be able to use the new key, or else nothing changes. Nor does
/// another identity take over that cannot use a key which still wraps a disk of the set. A disk that
/// cannot be wrapped again, because the old key refuses, stays under the old key: its header names the
/// key version that wraps it, whatever the set's active key is. So does every disk that a crash leaves
/// behind; repeating the command takes those up.
///
/// # Errors
/// As [`create`]; the vault's refusal of the new key.
pub fn update(
    installation: &Installation,
    name: &str,
    change: &DesChange<'_>,
) -> Result<UpdatedDes, InstallationError> {
    let known = known_key_url(installation, name);
    let url = change.key_url.or(known.as_deref());
    installation.recorded(DesOperation::Update, name, url, |log| {
        // One that another change has overtaken is not made again, which would undo that one.
        refuse_overtaken(retrying(|| update_now(installation, name, change, log))?)
    })
}

/// The key of a set, for a record.
pub(super) fn known_key_url(installation: &Installation, name: &str) -> Option<String> {
    Some(installation.catalog().des(name).ok()?.record.key_url)
}

fn update_now(
    installation: &Installation,
    name: &str,
    change: &DesChange<'_>,
    log: &AuditLog,
) -> Result<UpdatedDes, InstallationError> {
    let catalog = installation.catalog();
    catalog.refuse_locked(Kind::DiskEncryptionSet, name, Change::Write)?;
    let Stored {
        rev,
        record: before,
    } = catalog.des(name)?;
    let mut record = before.clone();
    let mut old_key = None;
    let identity = change.identity.as_ref();
    let identity = identity.filter(|identity| **identity != record.identity);
    let url = match (change.key_url, identity) {
        (Some(url), _) => Some(url.to_owned()),
        (None, Some(_)) => Some(record.key_url.clone()),
        (None, None) => None,
    };
    if let Some(identity) = identity {
        record.identity = identity.clone();
        record.principal_id = principal_of(identity, None);
    }
    if let Some(url) = url {
        let url: KeyUrl = url.parse()?;
        refuse_platform_twice(&url, record.encryption_type)?;
        let source = change.source_vault;
        let (url, _) = checked_key_url(installation, &url, source, &record.identity)?;
        if !same_key_url(&url, &record.key_url) {
            old_key = Some(std::mem::replace(&mut record.key_url, url));
        }
    }
    record.auto_rotation = change.auto_rotation.unwrap_or(record.auto_rotation);
    if identity.is_some() {
        refuse_cut_off(installation, &before, &record)?;
    }
    rewrap_set(installation, rev, record, old_key, log)
}

/// Two DEKs under one key protect no better than one.
fn refuse_platform_twice(url: &KeyUrl, kind: EncryptionType) -> Result<(), InstallationError> {
    let is_platform = url.vault_name() == Some(PLATFORM_VAULT);
    match is_platform && kind == EncryptionType::PlatformAndCustomerKeys {
        true => Err(bad(format!(
            "the key {url} is the platform's, which wraps the outer DEK of disks that are encrypted twice: give the set \
             a key of another vault"
        ))),
        false => Ok(()),
    }
}

/// Deletes a set that nothing has a layer under, and with it its identity.
///
/// # Errors
/// [`InUse`](installation::catalog::CatalogError::InUse), `CatalogError::NotFound`.
pub fn delete(installation: &Installation, name: &str) -> Result<DeletedDes, InstallationError> {
    let url = known_key_url(installation, name);
    let record = installation.recorded(DesOperation::Delete, name, url.as_deref(), |_| {
        retrying(|| {
            let catalog = installation.catalog();
            let Stored { rev, record } = catalog.des(name)?;
            catalog.refuse_locked(Kind::DiskEncryptionSet, name, Change::Delete)?;
            // A disk whose header names the set needs its identity, whatever the catalog says.
            reconcile(installation)?;
            catalog.delete_des(name, rev)?;
            Ok(record)
        })
    })?;
    Ok(DeletedDes {
        principal_id: record.principal_id,
        vaults_with_policy: installation.vaults_with_policy(record.principal_id)?,
    })
}

/// The key's URL as it is recorded, and, from a vault elsewhere, the object id of the managed
/// identity. Refuses a key that is not there or disabled, so that a slip of the pen shows at once
/// and not with the first disk. What a vault elsewhere does not tell an identity that was not
/// granted anything yet shows when it is granted.
fn checked_key_url(
    installation: &Installation,
    url: &KeyUrl,
    source_vault: Option<&str>,
    identity: &DesIdentity,
) -> Result<(String, Option<Uuid>), InstallationError> {
    let (name, bundle, object_id) = match url.vault_name() {
        Some(name) => {
            refuse_federated(url, identity)?;
            if matches!(
                identity,
                DesIdentity::Imds { .. } | DesIdentity::Endpoint { .. }
            ) {
                return Err(InstallationError::Identity {
                    vault: url.vault_url.clone(),
                    why: "it is kept here, and the set has a managed identity: make a set for \
                          this vault, and move disks to it with `sealdisk disk update`",
                });
            }
            let vault = installation.vault(name)?;
            let bundle = vault.key(&installation.operator(), &url.key)?;
            (name.to_owned(), Some(bundle), None)
        }
        None => {
            let vault = installation.remote_vault(&url.vault_url, identity)?;
            let (object_id, bundle) = vault.introduce(&url.key)?;
            let record = installation.catalog().vault_by_url(&url.vault_url)?;
            let name = record.map(|vault| vault.record.name).unwrap_or_default();
            (name, bundle, Some(object_id))
        }
    };
    if let Some(source) = source_vault {
        let given = source.trim_end_matches('/').to_ascii_lowercase();
        if given != name && given != url.vault_url {
            return Err(bad(format!(
                "the key {url} is not in the key vault '{source}'; leave --source-vault out or \
                 give '{name}'"
            )));
        }
    }
    if let Some(bundle) = bundle.filter(|bundle| !bundle.attributes.enabled) {
        return Err(VaultError::new(
            VaultErrorCode::KeyDisabled,
            format!(
                "the key {} is disabled; enable it with `sealdisk keyvault key set-attributes \
                 {} --vault-name {name} --enabled true`",
                bundle.key.kid, url.key.name,
            ),
        )
        .into());
    }
    Ok((url.to_string(), object_id))
}

/// The identity of a set whose key is in that vault: one of our own for a vault that is kept here,
/// a managed one for a vault elsewhere.
pub(super) fn identity_for(
    url: &KeyUrl,
    wanted: Option<&DesIdentity>,
) -> Result<DesIdentity, InstallationError> {
    match (wanted, url.vault_name()) {
        (None, Some(_)) => Ok(DesIdentity::SystemAssigned),
        (None, None) => Ok(DesIdentity::Imds { client_id: None }),
        (Some(identity), None) => Ok(identity.clone()),
        (Some(identity @ DesIdentity::UserAssigned { .. }), Some(_)) => {
            refuse_federated(url, identity)?;
            Ok(identity.clone())
        }
        (Some(_), Some(_)) => Err(InstallationError::Identity {
            vault: url.vault_url.clone(),
            why: "it is kept here and knows an identity that is made with the set: leave \
                          --identity and --identity-endpoint out",
        }),
    }
}

/// An identity of another installation is for a vault of that one.
fn refuse_federated(url: &KeyUrl, identity: &DesIdentity) -> Result<(), InstallationError> {
    match identity {
        DesIdentity::UserAssigned {
            federated_client_id: Some(_),
            ..
        } => Err(InstallationError::Identity {
            vault: url.vault_url.clone(),
            why: "it is kept here, and a federated client is for a vault of another installation: leave it out",
        }),
        _ => Ok(()),
    }
}

/// The object id of a set's identity; `managed` is what the token of a managed one says.
pub(super) fn principal_of(identity: &DesIdentity, managed: Option<Uuid>) -> Uuid {
    match identity {
        DesIdentity::UserAssigned { object_id, .. } => *object_id,
        DesIdentity::SystemAssigned => Uuid::new_v4(),
        DesIdentity::None | DesIdentity::Imds { .. } | DesIdentity::Endpoint { .. } => {
            managed.unwrap_or_else(Uuid::new_v4)
        }
    }
}

/// Azure's rule for names of disk encryption sets: 1 to 80 letters, digits, `_`, `.` and `-`.
pub(crate) fn check_des_name(name: &str) -> Result<(), InstallationError> {
    let allowed = (1..=80).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if allowed {
        return Ok(());
    }
    Err(bad(format!(
        "'{name}' is no name for a disk encryption set: use 1 to 80 letters, digits, '_', '.' and \
         '-', beginning with a letter or digit"
    )))
}

fn bad(message: String) -> InstallationError {
    VaultError::new(VaultErrorCode::BadParameter, message).into()
}
