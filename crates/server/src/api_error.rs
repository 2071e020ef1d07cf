//! Refusals as Azure's key vault words them: a status, a code, and a body
//! `{"error": {"code", "message", "innererror": {"code"}}}`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use installation::InstallationError;
use installation::catalog::CatalogError;
use vault::{Throttle, VaultError};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The outer code.
    pub code: &'static str,
    /// The inner code, which tells refusals of one status apart.
    pub inner: Option<&'static str>,
    /// One line for a person.
    pub message: String,
    /// After how many seconds it may be tried again, where that is known.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// A refusal.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            inner: None,
            message: message.into(),
            retry_after: None,
        }
    }

    /// 400: the request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    /// 401: it is not known who asks.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 500: the server failed. What failed is in the log; a client is not told about files.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        log::error!("{what}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            "An internal error occurred; the server's log says more.",
        )
    }

    /// 507: there is no room for it, or for its record in the audit log.
    fn no_space(what: impl std::fmt::Display) -> Self {
        log::error!("{what}");
        let message = "The storage of the server is full, so this is not done: its operator has to make room. What takes \
                       access or keys away is done all the same.";
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "InsufficientStorage",
            message,
        )
    }

    /// 503: the server cannot take more at this moment.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                message,
            )
        }
    }

    /// 429: the identity has used the vault more often than its limit.
    pub fn throttled(seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "Throttled",
                format!("the limit of this identity in this vault is over for {seconds} s"),
            )
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(inner) = self.inner {
            error["innererror"] = json!({"code": inner});
        }
        json!({"error": error})
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        if error.is_no_space() {
            return Self::no_space(error);
        }
        if error.lacks_files() {
            log::error!("{error}");
            let message = "the files of the key vault are not to be found; the server's log says where they should be";
            return Self::new(StatusCode::NOT_FOUND, error.code.as_str(), message);
        }
        let azure = error.code.azure();
        let throttle = error
            .source
            .as_ref()
            .and_then(|e| e.downcast_ref::<Throttle>());
        let retry_after = throttle.map(|throttle| throttle.seconds);
        let status = StatusCode::from_u16(azure.status);
        match status {
            Ok(status) if !status.is_server_error() => Self {
                status,
                code: azure.code,
                inner: azure.inner,
                message: error.message,
                retry_after,
            },
            Ok(StatusCode::SERVICE_UNAVAILABLE) => Self::busy(error.message),
            _ => Self::internal(error),
        }
    }
}

impl From<InstallationError> for ApiError {
    fn from(error: InstallationError) -> Self {
        if error.is_no_space() {
            return Self::no_space(error);
        }
        match error {
            InstallationError::Vault(error) => error.into(),
            InstallationError::Catalog(CatalogError::NotFound { .. }) => {
                Self::new(StatusCode::NOT_FOUND, "VaultNotFound", error.to_string())
            }
            error => Self::internal(error),
        }
    }
}
