//! Which identities of other installations an identity of this one trusts.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use database::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{constraint, json, parse_json, parse_time, time_text, uuid};
use super::error::CatalogError;
use super::record::Kind;

/// The step of the catalog's schema for identities of users as those of sets: what they are trusted by, and that their
/// roles do not go with a set.
pub(super) const TABLE: &str = "
CREATE TABLE federated_credentials (
    identity TEXT NOT NULL REFERENCES identities (object_id) ON DELETE CASCADE,
    name     TEXT NOT NULL COLLATE NOCASE,
    issuer   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    keys     TEXT NOT NULL,
    created  TEXT NOT NULL,
    PRIMARY KEY (identity, name)
) STRICT;
DROP TRIGGER placement_of_set;
CREATE TRIGGER placement_of_set AFTER DELETE ON disk_encryption_sets BEGIN
    DELETE FROM placements WHERE kind = 'disk-encryption-set' AND name = OLD.name;
    DELETE FROM role_assignments WHERE principal = OLD.principal_id
        AND json_extract(OLD.identity, '$.type') <> 'UserAssigned';
END;
DROP TRIGGER roles_of_other_identity;
CREATE TRIGGER roles_of_other_identity AFTER UPDATE OF principal_id ON disk_encryption_sets
WHEN OLD.principal_id <> NEW.principal_id AND json_extract(OLD.identity, '$.type') <> 'UserAssigned' BEGIN
    DELETE FROM role_assignments WHERE principal = OLD.principal_id;
END;
";

/// The public half of a key that signs assertions, as a JWK (RFC 7517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// Which key it is.
    pub kid: String,
    /// A coordinate, in base64url.
    pub x: String,
    /// The other.
    pub y: String,
}

impl PublicKey {
    /// Whether it is a key that can be used.
    pub fn is_usable(&self) -> bool {
        let is_coordinate = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .is_ok_and(|bytes| bytes.len() == 32)
        };
        let is_plain = |text: &str| {
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        (self.kty.as_str(), self.crv.as_str()) == ("EC", "P-256")
            && is_plain(&self.kid)
            && is_coordinate(&self.x)
            && is_coordinate(&self.y)
    }
}

/// That whoever shows what an identity of another installation has signed is this identity here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FederatedCredentialRecord {
    /// Object id of the identity here.
    pub identity: Uuid,
    /// Its name, unique among those of the identity.
    pub name: String,
    /// What the other installation calls itself as an issuer.
    pub issuer: String,
    /// Object id of the identity there.
    pub subject: Uuid,
    /// The keys with which the other installation signs.
    pub keys: Vec<PublicKey>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
}

const COLUMNS: &str = "identity, name, issuer, subject, keys, created";

pub(super) fn insert(
    db: &Connection,
    record: &FederatedCredentialRecord,
) -> Result<(), CatalogError> {
    let name = &record.name;
    db.execute(
        &format!("INSERT INTO federated_credentials ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"),
        params![
            record.identity.to_string(),
            name,
            record.issuer,
            record.subject.to_string(),
            json(name, &record.keys)?,
            time_text(name, record.created)?,
        ],
    )
    .map_err(|e| constraint(e, Kind::FederatedCredential, name, None))?;
    Ok(())
}

/// All, or those of an identity.
pub(super) fn all(
    db: &Connection,
    identity: Option<Uuid>,
) -> Result<Vec<FederatedCredentialRecord>, CatalogError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM federated_credentials WHERE identity = ?1 OR ?1 IS NULL ORDER BY identity, name"
    );
    db.select(&sql, params![identity.map(|id| id.to_string())], parse)
}

/// Whether there was one.
pub(super) fn delete(db: &Connection, identity: Uuid, name: &str) -> Result<bool, CatalogError> {
    let deleted = db.execute(
        "DELETE FROM federated_credentials WHERE identity = ? AND name = ?",
        params![identity.to_string(), name],
    )?;
    Ok(deleted > 0)
}

fn parse(row: &Row) -> Result<FederatedCredentialRecord, CatalogError> {
    let name: String = row.get("name")?;
    Ok(FederatedCredentialRecord {
        identity: uuid(&name, row.text("identity")?)?,
        issuer: row.get("issuer")?,
        subject: uuid(&name, row.text("subject")?)?,
        keys: parse_json(&name, "keys", row.text("keys")?)?,
        created: parse_time(&name, row.text("created")?)?,
        name,
    })
}
