//! Refusals as Azure storage words them: `<Error><Code>…</Code><Message>…</Message></Error>`.

use server::{TransferBody, TransferReply};

use super::list_xml::escaped;
use crate::error::ArmError;
use disks::DiskError;
use installation::InstallationError;
use installation::catalog::CatalogError;

/// A refused request for the bytes of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobError {
    /// The HTTP status.
    pub status: u16,
    /// The code.
    pub code: String,
    /// One line for a person.
    pub message: String,
}

impl BlobError {
    /// A refusal.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
        }
    }

    /// 403: the token is none, of something else, expired or revoked. Which of these is not told.
    pub fn unauthentic() -> Self {
        Self::new(
            403,
            "AuthenticationFailed",
            "Server failed to authenticate the request. Make sure the value of Authorization header is formed \
             correctly including the signature.",
        )
    }

    /// 400: a header or a part of the query is not understood.
    pub fn header(name: &str) -> Self {
        Self::new(
            400,
            "InvalidHeaderValue",
            format!("The value for one of the HTTP headers is not in the correct format: {name}."),
        )
    }

    /// 416: a range is not on the disk.
    pub fn range() -> Self {
        let message = "The range specified is invalid for the current size of the resource.";
        Self::new(416, "InvalidRange", message)
    }

    /// 503: it can be tried again.
    pub fn busy() -> Self {
        let message =
            "The server is currently unable to receive requests. Please retry your request.";
        Self::new(503, "ServerBusy", message)
    }

    /// 409: there is no room. Azure's clients repeat for minutes what has failed with 5xx, and it would be no better then.
    pub fn no_space() -> Self {
        let message = "The storage of the server is full, so nothing more is written: its operator has to make room. \
                       What was answered with 201 is kept.";
        Self::new(409, "InsufficientStorage", message)
    }

    /// The answer, to a request without a body in the answer or with one.
    pub fn reply(&self, is_head: bool) -> TransferReply {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{}</Code><Message>{}</Message></Error>",
            escaped(&self.code),
            escaped(&self.message)
        );
        let mut headers = vec![
            ("x-ms-error-code", self.code.clone()),
            ("content-type", "application/xml".into()),
        ];
        if self.status == 503 {
            headers.push(("retry-after", "1".into()));
        }
        TransferReply {
            status: self.status,
            headers,
            body: match is_head {
                true => TransferBody::Empty,
                false => TransferBody::Bytes(body.into_bytes()),
            },
        }
    }
}

impl From<ArmError> for BlobError {
    fn from(error: ArmError) -> Self {
        // Somebody has the disk for a moment, or a vault does not answer.
        if error.retry_after.is_some() {
            log::info!(
                "a request for the bytes of a disk is to be repeated: {}",
                error.message
            );
            return Self::busy();
        }
        match error.status {
            507 => Self::no_space(),
            500.. => Self::new(500, "InternalError", error.message),
            status => Self::new(status, &error.code, error.message),
        }
    }
}

impl From<DiskError> for BlobError {
    fn from(error: DiskError) -> Self {
        ArmError::from(error).into()
    }
}

impl From<InstallationError> for BlobError {
    fn from(error: InstallationError) -> Self {
        ArmError::from(error).into()
    }
}

impl From<CatalogError> for BlobError {
    fn from(error: CatalogError) -> Self {
        ArmError::from(error).into()
    }
}
