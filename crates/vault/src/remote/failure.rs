//! What an answer of a vault over HTTPS means.
//!
//! A refusal stops disks, so that only the answers in [`REFUSALS`] are one, with all that tells them
//! from what stands between: a proxy, a firewall, a load balancer or another server that took the
//! address can say 401, 403 and 404 too, in JSON as well. Whatever is not listed decides nothing.
//! docs/key-vault.md has the same table for operators.

use std::error::Error as StdError;
use std::time::Duration;

use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::Value;

use super::cause::{chain, one_line};
use super::identity::NoToken;
use super::operation::Operation;
use crate::VaultErrorCode;

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
            ..Self::of_answer(status, response.body(), challenge, operation)
        }
    }

    /// Sorts an answer that is no success. `challenge` is its `WWW-Authenticate`.
    pub fn of_answer(
        status: u16,
        body: &[u8],
        challenge: Option<&str>,
        operation: Operation,
    ) -> Self {
        let said = Said::parse(body);
        let challenged = status == 401 && challenge.is_some_and(is_challenge_of_a_vault);
        let code = match &said {
            _ if challenged => VaultErrorCode::Unauthorized,
            Some(said) => said.meaning(status, operation),
            None => VaultErrorCode::Unreachable,
        };
        match said {
            Some(said) => Self {
                said: Some(one_line(&said.message)).filter(|text| !text.is_empty()),
                ..Self::new(code, said.title(status))
            },
            None if challenged => Self::new(code, "HTTP 401"),
            None => {
                let detail = format!("HTTP {status}, not in the words of a key vault");
                Self::new(code, detail)
            }
        }
    }
}

/// Status, `error.code` and `error.innererror.code` of Azure Key Vault's refusals of a key, and of
/// those of another `sealdisk keyvault serve`. 403 has other inner codes, such as
/// `ForbiddenByFirewall` and `ForbiddenByConnection`, which say from where it was asked and not who
/// may: they are not here. A 401 is told by its challenge alone, see [`is_challenge_of_a_vault`].
///
/// <https://learn.microsoft.com/azure/key-vault/general/rest-error-codes> and `common-error-codes`.
const REFUSALS: [(u16, &str, Option<&str>, VaultErrorCode); 11] = {
    use VaultErrorCode as Code;
    [
        (403, "Forbidden", Some("AccessDenied"), Code::Forbidden),
        (403, "Forbidden", Some("ForbiddenByPolicy"), Code::Forbidden),
        (403, "Forbidden", Some("ForbiddenByRbac"), Code::Forbidden),
        (403, "Forbidden", Some("KeyDisabled"), Code::KeyDisabled),
        (403, "Forbidden", Some("KeyExpired"), Code::KeyExpired),
        (
            403,
            "Forbidden",
            Some("KeyNotYetValid"),
            Code::KeyNotYetValid,
        ),
        (
            403,
            "Forbidden",
            Some("KeyOperationForbidden"),
            Code::KeyOperationForbidden,
        ),
        // Azure has no such code: a deleted vault's name is not found there. Ours says it of a vault
        // that somebody deleted, which decides about all of its keys.
        (403, "Forbidden", Some("VaultDeleted"), Code::VaultDeleted),
        (404, "KeyNotFound", None, Code::KeyNotFound),
        (
            409,
            "Conflict",
            Some("ObjectIsDeletedButRecoverable"),
            Code::KeyDeleted,
        ),
        (
            409,
            "Conflict",
            Some("ObjectIsBeingDeleted"),
            Code::KeyDeleted,
        ),
    ]
};

/// What the message of a 403 says where it has no inner code, as in answers of Managed HSMs and of
/// older API versions. These are Azure's own sentences, in lower case.
const FORBIDDEN_MESSAGES: [(&str, VaultErrorCode); 6] = {
    use VaultErrorCode as Code;
    [
        ("not allowed on a disabled key", Code::KeyDisabled),
        ("not allowed on an expired key", Code::KeyExpired),
        ("not allowed on a not yet valid key", Code::KeyNotYetValid),
        ("permission on key vault", Code::Forbidden),
        (
            "caller is not authorized to perform action on resource",
            Code::Forbidden,
        ),
        (
            "not authorized to access microsoft.keyvault/managedhsm",
            Code::Forbidden,
        ),
    ]
};

/// Whether a `WWW-Authenticate` is a vault's: it names who issues tokens and for what, as Azure's and
/// ours do. The challenges of proxies and gateways (`Basic`, `Negotiate`, `Bearer realm=…`, `Bearer
/// error=…`) don't.
fn is_challenge_of_a_vault(challenge: &str) -> bool {
    let Some((scheme, parameters)) = challenge.trim_start().split_once(' ') else {
        return false;
    };
    let has = |name: &str| {
        parameters.split(',').any(|parameter| {
            let (found, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            found.trim().eq_ignore_ascii_case(name) && value.starts_with("https://")
        })
    };
    scheme.eq_ignore_ascii_case("bearer")
        && has("authorization")
        && (has("resource") || has("scope"))
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
            inner: inner.filter(|code| !code.is_empty()).map(str::to_owned),
        })
    }

    /// Status and codes in one line.
    fn title(&self, status: u16) -> String {
        let inner = self.inner.as_ref();
        let inner = inner.map_or_else(String::new, |inner| format!(", {inner}"));
        one_line(&format!("HTTP {status} {}{inner}", self.code))
    }

    fn meaning(&self, status: u16, operation: Operation) -> VaultErrorCode {
        let inner = self.inner.as_deref();
        let listed = REFUSALS.iter().find(|(listed, code, wanted, _)| {
            *listed == status && *code == self.code && (wanted.is_none() || *wanted == inner)
        });
        if let Some((_, _, _, refusal)) = listed {
            return *refusal;
        }
        match (status, self.code.as_str(), inner) {
            (403, "Forbidden" | "AccessDenied", None) => self.meaning_of_message(),
            // These are no decisions about the key either, and asking again doesn't help.
            (400, "BadParameter", _) if operation == Operation::Unwrap => {
                VaultErrorCode::UnwrapFailed
            }
            (400, "BadParameter", _) => VaultErrorCode::BadParameter,
            (404, "VaultNotFound", _) => VaultErrorCode::VaultNotFound,
            (409, "Conflict", _) => VaultErrorCode::Conflict,
            _ => VaultErrorCode::Unreachable,
        }
    }

    fn meaning_of_message(&self) -> VaultErrorCode {
        let message = self.message.to_ascii_lowercase();
        let found = FORBIDDEN_MESSAGES
            .iter()
            .find(|(words, _)| message.contains(words));
        found.map_or(VaultErrorCode::Unreachable, |(_, code)| *code)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;
    use proptest::prelude::*;

    const CHALLENGE: &str = "Bearer authorization=\"https://login.microsoftonline.com/TENANT\", \
                             resource=\"https://vault.azure.net\"";

    fn said(status: u16, body: &str, operation: Operation) -> VaultErrorCode {
        Failure::of_answer(status, body.as_bytes(), None, operation).code
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
        assert_eq!(
            said(404, no_inner, Operation::Unwrap),
            Code::KeyNotFound,
            "without an inner code"
        );
        for (status, code, inner, expected) in REFUSALS {
            let body = azure(code, inner.unwrap_or_default(), "");
            assert_eq!(said(status, &body, Operation::Unwrap), expected, "{body}");
            assert_eq!(expected.verdict(), Verdict::Refused);
            // The same words with another status are somebody else's.
            for other in [200, 400, 401, 402, 407, 410, 429, 500, 502, 503] {
                let found = said(other, &body, Operation::Get);
                assert_eq!(found.verdict(), Verdict::Unknown, "{other} {body}");
            }
        }
        for (code, message, expected) in [
            (
                "Forbidden",
                "Operation unwrapKey is not allowed on a disabled key.",
                Code::KeyDisabled,
            ),
            (
                "Forbidden",
                "Operation wrapKey is not allowed on an expired key.",
                Code::KeyExpired,
            ),
            (
                "Forbidden",
                "The user, group or application 'appid=a;oid=b' does not have keys unwrapKey \
                 permission on key vault 'v;location=westeurope'.",
                Code::Forbidden,
            ),
            (
                "AccessDenied",
                "Not authorized to access Microsoft.KeyVault/managedHsm/keys/unwrap/action on \
                 /keys/k (Activity ID: 1)",
                Code::Forbidden,
            ),
        ] {
            let body = azure(code, "", message);
            assert_eq!(said(403, &body, Operation::Unwrap), expected, "{body}");
        }
        assert_eq!(
            said(409, &azure("Conflict", "", ""), Operation::Get),
            Code::Conflict
        );
        let bad = azure("BadParameter", "", "");
        assert_eq!(said(400, &bad, Operation::Unwrap), Code::UnwrapFailed);
        assert_eq!(said(400, &bad, Operation::Wrap), Code::BadParameter);
    }

    /// What stops a disk at its next check here does so over HTTPS too.
    #[test]
    fn every_refusal_of_ours_arrives_as_itself() {
        let refusals: Vec<_> = VaultErrorCode::ALL
            .into_iter()
            .filter(|code| code.verdict() == Verdict::Refused)
            .collect();
        assert!(refusals.contains(&VaultErrorCode::VaultDeleted));
        for sent in refusals {
            let words = sent.azure();
            let body = azure(words.code, words.inner.unwrap_or_default(), "");
            // As our server does, which names who issues tokens with each 401.
            let challenge = (words.status == 401).then_some(CHALLENGE);
            let arrived =
                Failure::of_answer(words.status, body.as_bytes(), challenge, Operation::Unwrap);
            assert_eq!(arrived.code, sent, "{body}");
        }
    }

    #[test]
    fn only_a_vaults_challenge_says_that_it_does_not_know_who_asks() {
        let said = |challenge: Option<&str>, body: &str| {
            Failure::of_answer(401, body.as_bytes(), challenge, Operation::Get).code
        };
        let body = azure("Unauthorized", "", "AKV10032: Invalid issuer.");
        for (challenge, body) in [
            (CHALLENGE, body.as_str()),
            // A Managed HSM.
            (CHALLENGE, ""),
            (CHALLENGE, "OK"),
        ] {
            assert_eq!(said(Some(challenge), body), VaultErrorCode::Unauthorized);
        }
        for challenge in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Basic realm=\"vault\""),
            Some("Negotiate"),
            Some("Bearer error=\"invalid_token\", error_description=\"expired\""),
            Some("Bearer authorization=\"https://login.example/t\""),
            Some("Bearer realm=\"x\", resource=\"https://vault.azure.net\""),
        ] {
            let found = said(challenge, &body);
            assert_eq!(found, VaultErrorCode::Unreachable, "{challenge:?}");
        }
        let elsewhere = Failure::of_answer(403, b"", Some(CHALLENGE), Operation::Get);
        assert_eq!(elsewhere.code, VaultErrorCode::Unreachable);
    }

    #[test]
    fn an_answer_that_is_not_listed_decides_nothing() {
        let firewall = "Client address is not authorized and caller is not a trusted service.";
        for (status, body) in [
            (403, azure("Forbidden", "ForbiddenByFirewall", firewall)),
            (403, azure("Forbidden", "ForbiddenByConnection", "")),
            (403, azure("Forbidden", "SomethingNew", "")),
            (403, azure("Forbidden", "", firewall)),
            (403, azure("Forbidden", "", "")),
            (403, azure("AccessDenied", "", "no route")),
            (403, azure("AuthorizationFailed", "", "")),
            (404, azure("NotFound", "", "no such path")),
            (404, azure("ResourceNotFound", "KeyNotFound", "")),
            (400, azure("InvalidRequest", "", "")),
            (409, azure("Conflicting", "ObjectIsBeingDeleted", "")),
            (429, azure("Throttled", "", "")),
            (429, azure("Forbidden", "AccessDenied", "")),
            (500, azure("InternalServerError", "", "")),
            (503, azure("KeyNotFound", "", "")),
        ] {
            let found = said(status, &body, Operation::Unwrap);
            assert_eq!(found, VaultErrorCode::Unreachable, "{status} {body}");
        }
        for status in [301, 400, 401, 403, 404, 407, 409, 410, 418] {
            for body in [
                "",
                "<html>Access denied</html>",
                "{}",
                r#"{"error":"denied"}"#,
                r#"{"error":{"code":403}}"#,
                r#"{"code":"Forbidden","innererror":{"code":"AccessDenied"}}"#,
                "{\"er",
            ] {
                let code = said(status, body, Operation::Unwrap);
                assert_eq!(code.verdict(), Verdict::Unknown, "{status} {body}");
            }
        }
    }

    proptest! {
        /// Whatever a server says, it is sorted without a panic and in one line, and only what is
        /// listed is a refusal.
        #[test]
        fn any_answer_is_sorted(
            status in 300u16..600,
            code in "Forbidden|KeyNotFound|Conflict|[A-Za-z]{0,20}",
            inner in prop::option::of("KeyDisabled|KeyExpired|AccessDenied|[A-Za-z]{0,20}"),
            message in any::<String>(),
            noise in prop::collection::vec(any::<u8>(), 0..64),
            cut in 0usize..200,
            challenge in prop::option::of(prop_oneof![Just(CHALLENGE.to_owned()), any::<String>()]),
        ) {
            let whole = azure(&code, inner.as_deref().unwrap_or_default(), &message);
            let cut = whole.as_bytes()[..cut.min(whole.len())].to_vec();
            for body in [whole.into_bytes(), cut, noise] {
                for operation in [Operation::Get, Operation::Wrap, Operation::Unwrap] {
                    let failure =
                        Failure::of_answer(status, &body, challenge.as_deref(), operation);
                    let text = failure.detail + failure.said.as_deref().unwrap_or_default();
                    prop_assert!(!text.chars().any(char::is_control));
                    if !matches!(status, 400 | 401 | 403 | 404 | 409) {
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
