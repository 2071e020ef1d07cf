//! What an answer of a vault over HTTPS means.
//!
//! Only an answer in the vault's own words is a decision. Whatever stands between, a proxy, a load
//! balancer or another server that took the address, can say 403 and 404 too.

use std::error::Error as StdError;
use std::time::Duration;

use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::Value;

use super::Operation;
use super::identity::NoToken;
use crate::vault::VaultErrorCode;

/// Characters of a server's text that a message repeats at most.
const REPEATED: usize = 200;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub code: VaultErrorCode,
    /// What happened, in one line.
    pub detail: String,
    /// What the server said to it, in one line.
    pub said: Option<String>,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(code: VaultErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            said: None,
            retry_after: None,
        }
    }

    /// Sorts an error of Azure's client.
    pub fn of(error: &Error, operation: Operation) -> Self {
        if let Some(no) = find::<NoToken>(error) {
            let code = match no.refused {
                true => VaultErrorCode::Unauthorized,
                false => VaultErrorCode::Unreachable,
            };
            return Self::new(code, one_line(&no.message));
        }
        let ErrorKind::HttpResponse {
            status,
            raw_response,
            ..
        } = error.kind()
        else {
            return Self::new(VaultErrorCode::Unreachable, chain(error));
        };
        let status = u16::from(*status);
        let Some(response) = raw_response else {
            return Self::new(VaultErrorCode::Unreachable, format!("HTTP {status}"));
        };
        let challenge = response.headers().get_optional_str(&WWW_AUTHENTICATE);
        let wait = response.headers().get_optional_str(&RETRY_AFTER);
        Self {
            retry_after: wait.and_then(|text| text.parse().ok().map(Duration::from_secs)),
            ..Self::of_answer(status, response.body(), challenge.is_some(), operation)
        }
    }

    /// Sorts an answer that is no success.
    fn of_answer(status: u16, body: &[u8], has_challenge: bool, operation: Operation) -> Self {
        let said = Said::parse(body);
        let code = match (status, &said) {
            (401, Some(_)) => VaultErrorCode::Unauthorized,
            (401, None) if has_challenge => VaultErrorCode::Unauthorized,
            (400, Some(_)) if operation == Operation::Unwrap => VaultErrorCode::UnwrapFailed,
            (400, Some(_)) => VaultErrorCode::BadParameter,
            (403, Some(said)) => said.forbidden(),
            (404 | 409, Some(said)) => said.missing(status),
            _ => VaultErrorCode::Unreachable,
        };
        match said {
            Some(said) => Self {
                said: Some(one_line(&said.message)).filter(|text| !text.is_empty()),
                ..Self::new(code, one_line(&format!("HTTP {status} {}", said.code)))
            },
            None => {
                let detail = format!("HTTP {status}, not in the words of a key vault");
                Self::new(code, detail)
            }
        }
    }
}

/// `{"error":{"code","message","innererror":{"code",…}}}`.
struct Said {
    code: String,
    message: String,
    /// The innermost code, which is the most specific one.
    inner: Option<String>,
}

impl Said {
    fn parse(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let error = body.get("error")?;
        let mut inner = None;
        let mut level = error.get("innererror");
        while let Some(found) = level {
            inner = found.get("code").and_then(Value::as_str).or(inner);
            level = found.get("innererror");
        }
        Some(Self {
            code: error.get("code")?.as_str()?.to_owned(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            inner: inner.map(str::to_owned),
        })
    }

    fn mentions(&self, words: &str) -> bool {
        self.message.to_ascii_lowercase().contains(words)
    }

    /// 403: a state of the key, or else a missing permission, whatever it is called. Where the
    /// inner code does not say, as when something on the way dropped it, the message counts.
    fn forbidden(&self) -> VaultErrorCode {
        let operation_on = |state| self.mentions(&format!("not allowed on {state} key"));
        match self.inner.as_deref() {
            Some("KeyDisabled") => VaultErrorCode::KeyDisabled,
            Some("KeyExpired") => VaultErrorCode::KeyExpired,
            Some("KeyNotYetValid") => VaultErrorCode::KeyNotYetValid,
            Some("KeyOperationForbidden") => VaultErrorCode::KeyOperationForbidden,
            _ if operation_on("a disabled") => VaultErrorCode::KeyDisabled,
            _ if operation_on("an expired") => VaultErrorCode::KeyExpired,
            _ if operation_on("a not yet valid") => VaultErrorCode::KeyNotYetValid,
            _ => VaultErrorCode::Forbidden,
        }
    }

    /// 404 and 409. A 404 that names no key is about something else, such as the path.
    fn missing(&self, status: u16) -> VaultErrorCode {
        let codes = [Some(self.code.as_str()), self.inner.as_deref()];
        let is = |code| codes.contains(&Some(code));
        if is("ObjectIsDeletedButRecoverable") || is("ObjectIsBeingDeleted") {
            VaultErrorCode::KeyDeleted
        } else if status == 409 {
            VaultErrorCode::Conflict
        } else if is("KeyNotFound") {
            VaultErrorCode::KeyNotFound
        } else if is("VaultNotFound") {
            VaultErrorCode::VaultNotFound
        } else {
            VaultErrorCode::Unreachable
        }
    }
}

/// The error of that type among the causes of `error`.
fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// An error with its causes in one line; libraries say the essential in the last of them.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    one_line(&text)
}

/// A server's text as a part of a message: one line, of printable characters, not too long.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(REPEATED)
        .collect();
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Verdict;
    use proptest::prelude::*;

    fn said(status: u16, body: &str, operation: Operation) -> VaultErrorCode {
        Failure::of_answer(status, body.as_bytes(), false, operation).code
    }

    fn azure(code: &str, inner: &str, message: &str) -> String {
        serde_json::json!({
            "error": {"code": code, "message": message, "innererror": {"code": inner}}
        })
        .to_string()
    }

    #[test]
    fn azures_words_mean_what_they_say() {
        use VaultErrorCode as Code;
        let no_inner = r#"{"error":{"code":"KeyNotFound","message":"A key was not found"}}"#;
        for (status, body, expected) in [
            (
                401,
                azure("Unauthorized", "", "token expired"),
                Code::Unauthorized,
            ),
            (403, azure("Forbidden", "AccessDenied", ""), Code::Forbidden),
            (
                403,
                azure("Forbidden", "ForbiddenByPolicy", ""),
                Code::Forbidden,
            ),
            (
                403,
                azure("Forbidden", "ForbiddenByRbac", ""),
                Code::Forbidden,
            ),
            (
                403,
                azure("Forbidden", "KeyDisabled", ""),
                Code::KeyDisabled,
            ),
            (
                403,
                azure(
                    "Forbidden",
                    "",
                    "Operation unwrapKey is not allowed on a disabled key.",
                ),
                Code::KeyDisabled,
            ),
            (
                403,
                azure(
                    "Forbidden",
                    "",
                    "Operation wrapKey is not allowed on an expired key.",
                ),
                Code::KeyExpired,
            ),
            (404, no_inner.into(), Code::KeyNotFound),
            (
                404,
                azure("NotFound", "", "no such path"),
                Code::Unreachable,
            ),
            (
                409,
                azure("Conflict", "ObjectIsDeletedButRecoverable", ""),
                Code::KeyDeleted,
            ),
            (
                409,
                azure("Conflict", "ObjectIsBeingDeleted", ""),
                Code::KeyDeleted,
            ),
            (409, azure("Conflict", "", ""), Code::Conflict),
            (429, azure("Throttled", "", ""), Code::Unreachable),
            (500, azure("InternalServerError", "", ""), Code::Unreachable),
            (503, String::new(), Code::Unreachable),
        ] {
            assert_eq!(
                said(status, &body, Operation::Unwrap),
                expected,
                "{status} {body}"
            );
        }
        let bad = azure("BadParameter", "", "");
        assert_eq!(said(400, &bad, Operation::Unwrap), Code::UnwrapFailed);
        assert_eq!(said(400, &bad, Operation::Wrap), Code::BadParameter);
    }

    #[test]
    fn an_answer_in_other_words_decides_nothing() {
        for status in [301, 400, 401, 403, 404, 407, 409, 410, 418] {
            for body in [
                "",
                "<html>Access denied</html>",
                "{}",
                r#"{"error":"denied"}"#,
                "{\"er",
            ] {
                let code = said(status, body, Operation::Unwrap);
                assert_eq!(code.verdict(), Verdict::Unknown, "{status} {body}");
            }
        }
        let challenged = Failure::of_answer(401, b"", true, Operation::Get);
        assert_eq!(challenged.code, VaultErrorCode::Unauthorized);
    }

    #[test]
    fn a_servers_text_becomes_one_printable_line() {
        assert_eq!(one_line("a\r\n b\tc\u{1b}[31m"), "a b c[31m");
        assert_eq!(one_line(&"x".repeat(1000)).len(), REPEATED);
    }

    proptest! {
        /// Whatever a server says, it is sorted without a panic, in one line, and a server in
        /// trouble (5xx, 429) never counts as a refusal.
        #[test]
        fn any_answer_is_sorted(
            status in 300u16..600,
            code in "[A-Za-z]{0,20}",
            inner in prop::option::of("KeyDisabled|KeyExpired|AccessDenied|[A-Za-z]{0,20}"),
            message in any::<String>(),
            noise in prop::collection::vec(any::<u8>(), 0..64),
            cut in 0usize..200,
            challenge: bool,
        ) {
            let whole = azure(&code, inner.as_deref().unwrap_or_default(), &message);
            let cut = whole.as_bytes()[..cut.min(whole.len())].to_vec();
            for body in [whole.into_bytes(), cut, noise] {
                for operation in [Operation::Get, Operation::Wrap, Operation::Unwrap] {
                    let failure = Failure::of_answer(status, &body, challenge, operation);
                    let text = failure.detail + failure.said.as_deref().unwrap_or_default();
                    prop_assert!(!text.chars().any(char::is_control));
                    if status >= 500 || status == 429 {
                        prop_assert_eq!(failure.code, VaultErrorCode::Unreachable);
                    }
                    if operation != Operation::Unwrap {
                        prop_assert_ne!(failure.code, VaultErrorCode::UnwrapFailed);
                    }
                }
            }
        }
    }
}
