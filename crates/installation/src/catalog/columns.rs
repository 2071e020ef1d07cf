//! How values stand in columns, and what is said of one that is not there or not right.

use database::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::error::CatalogError;
use super::record::Kind;
use crate::envelope::ResourceKind;

pub(super) fn one<T>(found: Vec<T>, kind: Kind, name: &str) -> Result<T, CatalogError> {
    found.into_iter().next().ok_or_else(|| missing(kind, name))
}

pub(super) fn missing(kind: Kind, name: &str) -> CatalogError {
    CatalogError::NotFound {
        kind,
        name: name.into(),
    }
}

pub(super) fn stale(kind: Kind, name: &str) -> CatalogError {
    CatalogError::Changed {
        kind,
        name: name.into(),
    }
}

pub(super) fn damaged(name: &str, what: impl ToString) -> CatalogError {
    CatalogError::Damaged {
        name: name.into(),
        what: what.to_string(),
    }
}

/// Says what a violated constraint means: a taken name, or a disk encryption set that is not there.
pub(super) fn constraint(
    error: database::Error,
    kind: Kind,
    name: &str,
    des: Option<&str>,
) -> CatalogError {
    match (error.kind(), des) {
        (ErrorKind::ForeignKey, Some(des)) => missing(Kind::DiskEncryptionSet, des),
        (ErrorKind::Unique, _) => CatalogError::Exists {
            kind,
            name: name.into(),
        },
        _ => error.into(),
    }
}

pub(super) fn json(name: &str, value: &impl Serialize) -> Result<String, CatalogError> {
    serde_json::to_string(value).map_err(|e| damaged(name, e))
}

pub(super) fn parse_json<T: DeserializeOwned>(
    name: &str,
    what: &str,
    text: &str,
) -> Result<T, CatalogError> {
    serde_json::from_str(text).map_err(|e| damaged(name, format!("{what}: {e}")))
}

pub(super) fn uuid(name: &str, text: &str) -> Result<Uuid, CatalogError> {
    Uuid::parse_str(text).map_err(|e| damaged(name, format!("'{text}': {e}")))
}

pub(super) fn parse_time(name: &str, text: &str) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|e| damaged(name, format!("'{text}': {e}")))
}

pub(super) fn time_text(name: &str, time: OffsetDateTime) -> Result<String, CatalogError> {
    time.format(&Rfc3339).map_err(|e| damaged(name, e))
}

pub(super) fn optional_time_text(
    name: &str,
    time: Option<OffsetDateTime>,
) -> Result<Option<String>, CatalogError> {
    time.map(|t| time_text(name, t)).transpose()
}

pub(super) fn parse_kind(name: &str, text: &str) -> Result<ResourceKind, CatalogError> {
    ResourceKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| damaged(name, format!("kind '{text}'")))
}
