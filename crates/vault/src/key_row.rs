//! A stored key as its callers see it, and as they change it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;

use super::clock::moment;
use super::store::KeyRow;
use super::{
    AttributeChange, JsonWebKey, KeyAttributes, KeyBundle, KeyId, KeyUrl, VaultError,
    VaultErrorCode, VaultSettings,
};

impl KeyBundle {
    pub(super) fn new(vault_url: &str, settings: &VaultSettings, row: &KeyRow) -> Self {
        let kid = KeyUrl {
            vault_url: vault_url.into(),
            key: KeyId {
                name: row.name.clone(),
                version: Some(row.version.clone()),
            },
        };
        Self {
            key: JsonWebKey {
                kid: kid.to_string(),
                kty: row.kty.clone(),
                key_ops: row
                    .key_ops
                    .names()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                n: URL_SAFE_NO_PAD.encode(&row.n),
                e: URL_SAFE_NO_PAD.encode(&row.e),
            },
            attributes: KeyAttributes {
                enabled: row.enabled,
                not_before: row.not_before,
                expires: row.expires,
                created: row.created,
                updated: row.updated,
                recoverable_days: Some(settings.retention_days),
                recovery_level: Some(settings.recovery_level().into()),
            },
            tags: row.tags.clone(),
        }
    }
}

impl AttributeChange {
    pub(super) fn apply(&self, row: &mut KeyRow, now: OffsetDateTime) -> Result<(), VaultError> {
        row.enabled = self.enabled.unwrap_or(row.enabled);
        row.not_before = self.not_before.unwrap_or(row.not_before);
        row.expires = self.expires.unwrap_or(row.expires);
        row.updated = now;
        if let (Some(from), Some(until)) = (row.not_before, row.expires)
            && from >= until
        {
            return Err(VaultError::new(
                VaultErrorCode::BadParameter,
                format!(
                    "the key would expire at {}, before it becomes valid at {}",
                    moment(until),
                    moment(from)
                ),
            ));
        }
        Ok(())
    }
}
