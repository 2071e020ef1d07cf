//! How hashes, numbers and times are written: the same in the database, in exports and under signatures.

use serde::{Deserialize, Deserializer, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::AuditError;

/// The hash of a record.
pub type Hash = [u8; 32];

pub(super) fn text(time: OffsetDateTime) -> Result<String, AuditError> {
    Ok(time.to_offset(UtcOffset::UTC).format(&Rfc3339)?)
}

/// SQLite's integers are signed.
pub(super) fn number(seq: u64) -> Result<i64, AuditError> {
    i64::try_from(seq).map_err(|_| AuditError::tampered("a record's number is none"))
}

/// A record's number. SQLite's integers are signed, so no log has one that is larger, and one more than any
/// is a number too.
pub(super) fn ordinal<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = u64::deserialize(from)?;
    match i64::try_from(number) {
        Ok(_) => Ok(number),
        Err(_) => Err(serde::de::Error::custom("its number is none")),
    }
}

/// Bytes as base64url without padding.
pub(super) mod encoded {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde::Deserialize;
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        URL_SAFE_NO_PAD.decode(text).map_err(D::Error::custom)
    }
}

/// A hash as base64url without padding.
pub(super) mod encoded_hash {
    use super::Hash;
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(hash: &Hash, to: S) -> Result<S::Ok, S::Error> {
        super::encoded::serialize(hash, to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Hash, D::Error> {
        let bytes = super::encoded::deserialize(from)?;
        let hash = bytes.try_into();
        hash.map_err(|_| D::Error::custom("its hash is none"))
    }

    /// One that need not be there.
    pub mod option {
        use super::super::{Deserialize, Hash, Serialize};
        use serde::de::Deserializer;
        use serde::ser::Serializer;

        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        struct Wrapped(#[serde(with = "super")] Hash);

        pub fn serialize<S: Serializer>(hash: &Option<Hash>, to: S) -> Result<S::Ok, S::Error> {
            hash.map(Wrapped).serialize(to)
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Hash>, D::Error> {
            let wrapped = Option::<Wrapped>::deserialize(from)?;
            Ok(wrapped.map(|Wrapped(hash)| hash))
        }
    }
}
