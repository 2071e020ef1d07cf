//! How times, ids and numbers stand in columns.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::{VaultError, VaultErrorCode};

pub(super) fn text(time: OffsetDateTime) -> Result<String, VaultError> {
    time.format(&Rfc3339).map_err(|e| {
        VaultError::caused(VaultErrorCode::BadParameter, format!("the time {time}"), e)
    })
}

pub(super) fn time(text: &str) -> Result<OffsetDateTime, VaultError> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|e| {
        let what = format!("the key vault's database is damaged: '{text}' is no time");
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}

pub(super) fn uuid(text: &str) -> Result<Uuid, VaultError> {
    Uuid::parse_str(text).map_err(|e| {
        let what = format!("the key vault's database is damaged: '{text}' is no id");
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}

/// A number that is neither negative nor large.
pub(super) fn small(number: i64) -> Result<u32, VaultError> {
    u32::try_from(number).map_err(|e| {
        let what = format!("the key vault's database is damaged: {number} is out of bounds");
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}
