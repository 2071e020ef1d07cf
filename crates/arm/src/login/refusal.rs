//! Why there is no token.

use serde_json::json;
use server::{FrontReply, Head, Site};
use uuid::Uuid;

/// The error of a login on a device that nobody has approved yet (RFC 8628 §3.5).
pub(super) const PENDING: &str = "authorization_pending";

/// Why there is no token: OAuth's form (RFC 6749 §5.2), with what Azure's clients read besides.
pub(super) struct Refusal {
    pub status: u16,
    pub error: &'static str,
    pub code: u32,
    pub message: String,
    /// Whom the request is about, as it says: for the log.
    pub claimed: Option<String>,
}

impl Refusal {
    pub fn new(status: u16, error: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self {
            status,
            error,
            code,
            message: message.into(),
            claimed: None,
        }
    }

    pub fn reply(self, site: &Site<'_>, head: &Head) -> FrontReply {
        // A device asks again and again until its login is approved.
        if self.error != PENDING {
            let claimed = self.claimed.map(|who| format!("; claimed {who}"));
            let detail = format!("{}{}", self.message, claimed.unwrap_or_default());
            site.note_refused(head.peer, "TokenRefused", Uuid::nil(), self.error, &detail);
        }
        let message = format!("AADSTS{}: {}", self.code, self.message);
        FrontReply {
            status: self.status,
            body: Some(json!({
                "error": self.error,
                "error_description": message,
                "error_codes": [self.code],
                "statusCode": self.status,
                "message": message,
            })),
            ..FrontReply::default()
        }
    }
}

/// The server failed. What failed is in the log.
pub(super) fn failed(error: &dyn std::fmt::Display) -> Refusal {
    log::error!("{error}");
    let message = "An internal error occurred; the server's log says more.";
    Refusal::new(500, "server_error", 90000, message)
}
