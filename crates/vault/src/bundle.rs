//! What a vault tells about a key: Azure's key bundle.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use super::Tags;
use super::clock::moment;

/// The public part of a key version, as a JSON Web Key (RFC 7517, RFC 7518 §6.3.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JsonWebKey {
    /// URL of the key version.
    pub kid: String,
    /// `RSA`, or `RSA-HSM` where a hardware security module has the private key.
    pub kty: String,
    /// What the key may be used for.
    pub key_ops: Vec<String>,
    /// Modulus, base64url.
    pub n: String,
    /// Public exponent, base64url.
    pub e: String,
}

/// What decides whether a key version may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyAttributes {
    /// Whether it may be used at all.
    pub enabled: bool,
    /// The first moment at which it may be used.
    #[serde(rename = "notBefore", with = "time::serde::rfc3339::option")]
    pub not_before: Option<OffsetDateTime>,
    /// The first moment at which it may no longer be used.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires: Option<OffsetDateTime>,
    /// When the version was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// When its attributes changed last.
    #[serde(with = "time::serde::rfc3339")]
    pub updated: OffsetDateTime,
    /// For how many days the key can be recovered once it is deleted.
    #[serde(rename = "recoverableDays", skip_serializing_if = "Option::is_none")]
    pub recoverable_days: Option<u32>,
    /// Azure's name for what becomes of the key when it is deleted.
    #[serde(rename = "recoveryLevel", skip_serializing_if = "Option::is_none")]
    pub recovery_level: Option<String>,
}

/// A key version as the vault shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyBundle {
    /// Its public part.
    pub key: JsonWebKey,
    /// Its attributes.
    pub attributes: KeyAttributes,
    /// What the user has attached to it.
    #[serde(skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
}

/// A deleted key, which can be recovered until it is purged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletedKey {
    /// Its latest version.
    #[serde(flatten)]
    pub bundle: KeyBundle,
    /// The URL by which it is recovered.
    pub recovery_id: String,
    /// When it was deleted.
    #[serde(rename = "deletedDate", with = "time::serde::rfc3339")]
    pub deleted: OffsetDateTime,
    /// When it will be purged.
    #[serde(rename = "scheduledPurgeDate", with = "time::serde::rfc3339")]
    pub scheduled_purge: OffsetDateTime,
}

/// Attributes to set; what is `None` stays as it is (for a new key: enabled, no time limits), and
/// `Some(None)` takes a limit away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttributeChange {
    /// Whether the key may be used.
    pub enabled: Option<bool>,
    /// The first moment at which it may be used.
    pub not_before: Option<Option<OffsetDateTime>>,
    /// The first moment at which it may no longer be used.
    pub expires: Option<Option<OffsetDateTime>>,
}

/// The fields that change, for the audit log.
impl fmt::Display for AttributeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.enabled.map(|enabled| format!("enabled={enabled}")));
        let limit = |time: Option<OffsetDateTime>| time.map_or_else(String::new, moment);
        parts.extend(
            self.not_before
                .map(|time| format!("notBefore={}", limit(time))),
        );
        parts.extend(self.expires.map(|time| format!("expires={}", limit(time))));
        f.write_str(&parts.join(" "))
    }
}
