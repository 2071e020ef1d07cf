//! Backups of keys: opaque, and of use only to who has the master key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use database::Connection;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::keys::latest;
use super::subject::{Done, Subject};
use super::vault::EmbeddedVault;
use crate::refusal;
use crate::rotation::RotationPolicy;
use crate::store::{self, KeyRow};
use crate::tags::check_tags;
use crate::{
    Caller, KeyBundle, KeyPermission, KeyType, Tags, VaultError, VaultErrorCode, check_key_name,
};

/// The start of every backup: what it is, and its format.
const MAGIC: &[u8] = b"SDKEYBK1";

/// A key with all that belongs to it, as it is encrypted under the vault's backup key.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Backup {
    name: String,
    kty: String,
    versions: Vec<Version>,
    rotation_policy: Option<RotationPolicy>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Version {
    version: String,
    enabled: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    not_before: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    expires: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated: OffsetDateTime,
    key_ops: String,
    tags: Tags,
    n: String,
    e: String,
    material: Secret,
}

/// The private part, base64url.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
struct Secret(String);

impl EmbeddedVault {
    /// A backup of a key: all versions, attributes, tags and the rotation policy, encrypted.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `backup`,
    /// [`VaultErrorCode::KeyNotFound`], [`VaultErrorCode::BadParameter`] for a key in a token.
    pub fn backup_key(&self, caller: &Caller, name: &str) -> Result<Vec<u8>, VaultError> {
        self.audited(caller, &Subject::key("KeyBackup", name), |db| {
            self.authorize(db, caller, KeyPermission::Backup)?;
            let found = self.find(db, &latest(name))?;
            if self.key_type() == KeyType::RsaHsm {
                return Err(VaultError::new(
                    VaultErrorCode::BadParameter,
                    "the key is in a token, which gives no key out; back the token up by its \
                     maker's means",
                ));
            }
            let rows = store::key_versions(db, name, 0, usize::MAX)?;
            let versions: Result<Vec<_>, _> = rows.iter().map(|row| self.version(row)).collect();
            let backup = Backup {
                name: found.name,
                kty: found.kty,
                versions: versions?,
                rotation_policy: store::rotation_policy(db, name)?,
            };
            let text = serde_json::to_vec(&backup)
                .map(Zeroizing::new)
                .map_err(|e| {
                    let what = "the backup could not be made";
                    VaultError::caused(VaultErrorCode::Internal, what, e)
                })?;
            let sealed = self.held().key.for_backups()?.seal(MAGIC, &text)?;
            Ok([MAGIC, &sealed].concat())
        })
    }

    /// Brings a key back that was backed up in this vault, under its master key or an earlier one, or in
    /// a vault that has the same master key.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `restore`,
    /// [`VaultErrorCode::BadParameter`] for what is no backup, [`VaultErrorCode::Conflict`] and
    /// [`VaultErrorCode::KeyDeleted`] when there is a key of that name, deleted or not.
    pub fn restore_key(&self, caller: &Caller, backup: &[u8]) -> Result<KeyBundle, VaultError> {
        // The name is known once the backup is opened, which is only done for who may restore.
        let allowed = self.read(|db| self.authorize(db, caller, KeyPermission::Restore));
        let opened = allowed.and_then(|()| self.open_backup(backup));
        let name = opened.as_ref().ok().map(|backup| backup.name.clone());
        let subject = Subject {
            key: name.as_deref(),
            ..Subject::vault("KeyRestore")
        };
        self.audited(caller, &subject, |db| {
            self.authorize(db, caller, KeyPermission::Restore)?;
            let backup = opened.as_ref().map_err(VaultError::again)?;
            let row = self.put_back(db, backup)?;
            let bundle = self.bundle(&self.settings_in(db)?, &row);
            Ok(Done::with_version(bundle, &row.version))
        })
    }

    fn version(&self, row: &KeyRow) -> Result<Version, VaultError> {
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Ok(Version {
            version: row.version.clone(),
            enabled: row.enabled,
            not_before: row.not_before,
            expires: row.expires,
            created: row.created,
            updated: row.updated,
            key_ops: row.key_ops.to_string(),
            tags: row.tags.clone(),
            n: base64(&row.n),
            e: base64(&row.e),
            material: Secret(base64(&self.material(row)?)),
        })
    }

    fn open_backup(&self, backup: &[u8]) -> Result<Backup, VaultError> {
        let sealed = backup.strip_prefix(MAGIC).ok_or_else(no_backup)?;
        let keys = self.read(|db| {
            self.follow_master(db)?;
            self.backup_keys(db)
        })?;
        let mut opened = keys.iter().filter_map(|key| key.open(MAGIC, sealed).ok());
        let text = opened.next().ok_or_else(no_backup)?;
        serde_json::from_slice(&text).map_err(|_| no_backup())
    }

    /// Inserts all versions of a backup; the latest.
    fn put_back(&self, db: &Connection, backup: &Backup) -> Result<KeyRow, VaultError> {
        check_key_name(&backup.name)?;
        if let Some(deleted) = self.deleted_row(db, &backup.name)? {
            return Err(refusal::name_is_deleted(&self.name, &deleted));
        }
        if store::deleted_key(db, &backup.name)?.is_some() {
            return Err(refusal::being_purged(&self.name, &backup.name));
        }
        if store::latest_version(db, &backup.name)?.is_some() {
            return Err(VaultError::new(
                VaultErrorCode::Conflict,
                format!(
                    "the key vault '{}' has a key '{}'; a backup is restored only where there is \
                     none of its name",
                    self.name, backup.name
                ),
            ));
        }
        let mut last = None;
        for version in &backup.versions {
            let row = self.row(backup, version)?;
            store::insert_key(db, &row)?;
            last = Some(row);
        }
        if let Some(policy) = &backup.rotation_policy {
            store::set_rotation_policy(db, &backup.name, policy)?;
        }
        last.ok_or_else(no_backup)
    }

    fn row(&self, backup: &Backup, version: &Version) -> Result<KeyRow, VaultError> {
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| no_backup());
        let material = Zeroizing::new(bytes(&version.material.0)?);
        if backup.kty != self.keys.key_type().name() {
            return Err(VaultError::new(
                VaultErrorCode::BadParameter,
                format!(
                    "the backup is of a key of type {}, and the keys of the key vault '{}' are of \
                     type {}",
                    backup.kty,
                    self.name,
                    self.keys.key_type().name()
                ),
            ));
        }
        // A device may have lost the key meanwhile; one that cannot be used is not restored.
        self.keys.open(&material)?;
        check_tags(&version.tags)?;
        let mut row = KeyRow {
            seq: 0,
            name: backup.name.clone(),
            version: version.version.clone(),
            rev: 1,
            enabled: version.enabled,
            not_before: version.not_before,
            expires: version.expires,
            created: version.created,
            updated: version.updated,
            n: bytes(&version.n)?,
            e: bytes(&version.e)?,
            sealed: Vec::new(),
            kty: backup.kty.clone(),
            key_ops: version.key_ops.parse()?,
            tags: version.tags.clone(),
        };
        self.seal(&mut row, &material)?;
        Ok(row)
    }
}

fn no_backup() -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        "this is no backup of a key of this vault, or it was damaged: a backup can be restored only \
         into the vault that made it, or into one with the same master key",
    )
}
