//! Why a place of resources refuses something.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PlaceError {
    /// It is not there.
    #[error("there is no {0}")]
    Missing(String),
    /// It is there already.
    #[error("there is a {0} already")]
    There(String),
    /// It is not what was read any more.
    #[error("the {0} was changed meanwhile")]
    Changed(String),
    /// Somebody uses it.
    #[error("the {what} is in use{}", by.as_ref().map_or(String::new(), |by| format!(" by {by}")))]
    InUse {
        /// What.
        what: String,
        /// By whom, if that is known.
        by: Option<String>,
    },
    /// The storage is full.
    #[error("{0}")]
    NoSpace(String),
    /// The storage failed.
    #[error("{0}")]
    Failed(String),
}
