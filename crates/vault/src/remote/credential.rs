//! Tokens from who issues them, for Azure's client.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{CONTENT_TYPE, HeaderName};
use azure_core::http::{ClientOptions, Context, Method, Request, Transport};
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use url::{Url, form_urlencoded};
use uuid::Uuid;

use super::cause::{chain, one_line};
use super::federated::Assertion;
use super::identity::{HEADER_CREDENTIAL, ManagedIdentity, NoToken, TokenCache};
use super::wire::{Connection, IdentityWire};
use crate::secret_file::read_secret;

/// The version of the protocol that App Service's endpoint speaks.
const ENDPOINT_VERSION: &str = "2019-08-01";

/// What kind of proof an assertion is (RFC 7523 §2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What Azure's client asks for tokens.
#[derive(Debug)]
pub(super) struct Credential {
    pub identity: ManagedIdentity,
    pub tokens: TokenCache,
}

#[async_trait]
impl TokenCredential for Credential {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let scope = scopes.first().copied().unwrap_or_default();
        if let Some(token) = self.tokens.get(&self.identity, scope) {
            return Ok(token);
        }
        let options = options.unwrap_or_default();
        let issued = match &self.identity {
            ManagedIdentity::Imds { client_id } => imds(*client_id, scope, options).await,
            ManagedIdentity::Endpoint {
                url,
                header_file,
                client_id,
            } => {
                let secret = read_secret(Some(header_file), HEADER_CREDENTIAL)
                    .map_err(|why| unanswered(format!("its secret is missing: {why}")));
                match secret {
                    Ok(secret) => {
                        let context = &options.method_options.context;
                        endpoint(url, &secret, *client_id, scope, context).await
                    }
                    Err(e) => Err(e),
                }
            }
            ManagedIdentity::Federated {
                endpoint,
                client_id,
                assertion,
            } => {
                let context = &options.method_options.context;
                federated(endpoint, *client_id, assertion, scope, context).await
            }
        };
        let token = issued.map_err(|no| {
            let message = format!("{}: {}", self.identity, no.message);
            let no = NoToken { message, ..no };
            Error::new(ErrorKind::Credential, no)
        })?;
        self.tokens.put(&self.identity, scope, token.clone());
        Ok(token)
    }
}

fn refused(message: String) -> NoToken {
    NoToken {
        refused: true,
        message,
    }
}

fn unanswered(message: String) -> NoToken {
    NoToken {
        refused: false,
        message,
    }
}

async fn imds(
    client_id: Option<Uuid>,
    scope: &str,
    options: TokenRequestOptions<'_>,
) -> Result<AccessToken, NoToken> {
    let id = client_id.map(|id| UserAssignedId::ClientId(id.to_string()));
    let credential = ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
        user_assigned_id: id,
        client_options: ClientOptions {
            transport: Some(Transport::with_policy(Arc::new(IdentityWire))),
            ..ClientOptions::default()
        },
    }))
    .map_err(|e| unanswered(e.to_string()))?;
    credential
        .get_token(&[scope], Some(options))
        .await
        .map_err(|e| {
            let kind = e.downcast_ref::<Error>().map(Error::kind);
            if let Some(ErrorKind::HttpResponse {
                status,
                raw_response: Some(response),
                ..
            }) = kind
                && is_refusal(u16::from(*status), response.body())
            {
                return refused(format!("{e}{}", reason(response.body())));
            }
            unanswered(e.to_string())
        })
}

/// Asks an App Service style endpoint.
async fn endpoint(
    url: &Url,
    secret: &str,
    client_id: Option<Uuid>,
    scope: &str,
    context: &Context<'_>,
) -> Result<AccessToken, NoToken> {
    let mut url = url.clone();
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("api-version", ENDPOINT_VERSION);
        query.append_pair("resource", scope.strip_suffix("/.default").unwrap_or(scope));
        if let Some(id) = client_id {
            query.append_pair("client_id", &id.to_string());
        }
    }
    let mut request = Request::new(url, Method::Get);
    request.insert_header(
        HeaderName::from_static("x-identity-header"),
        secret.to_owned(),
    );
    answered(&request, context).await
}

/// Asks for a token of an identity of another installation.
async fn federated(
    endpoint: &Url,
    client_id: Uuid,
    assertion: &Assertion,
    scope: &str,
    context: &Context<'_>,
) -> Result<AccessToken, NoToken> {
    let resource = scope.strip_suffix("/.default").unwrap_or(scope);
    let signed = assertion.sign(resource);
    let signed = signed.map_err(|e| unanswered(e.message))?;
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", &client_id.to_string())
        .append_pair("client_assertion_type", ASSERTION_TYPE)
        .append_pair("client_assertion", &signed)
        .append_pair("scope", scope)
        .finish();
    let mut request = Request::new(endpoint.clone(), Method::Post);
    request.insert_header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    request.set_body(body);
    answered(&request, context).await
}

async fn answered(request: &Request, context: &Context<'_>) -> Result<AccessToken, NoToken> {
    let ask = async {
        let response = Connection::of(context)?.ask_identity(request).await?;
        response.try_into_raw_response().await
    };
    let response = ask.await.map_err(|e| unanswered(chain(&e)))?;
    let status = u16::from(response.status());
    match status {
        200 => token(response.body()).ok_or_else(|| {
            unanswered("its answer is no token (access_token and expires_on)".into())
        }),
        _ if is_refusal(status, response.body()) => Err(refused(format!(
            "it gives this identity no token (HTTP {status}{})",
            reason(response.body())
        ))),
        _ => Err(unanswered(format!(
            "it answered with HTTP {status}{}",
            reason(response.body())
        ))),
    }
}

/// Statuses and values of `error` (RFC 6749 §5.2) by which whoever issues tokens says that it does
/// not give this identity one.
///
/// `invalid_request` is what Azure's instance metadata service answers when the machine's identity
/// was removed ("Identity not found"); requests from here always have the same form, so that nothing
/// else can be wrong with them. Its 404 and 410 mean that it is being updated and is to be asked again:
/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling>.
/// `error_description` is not looked at, as that page demands.
const REFUSALS: [(u16, &str); 9] = [
    (400, "invalid_request"),
    (400, "invalid_client"),
    (400, "invalid_grant"),
    (400, "unauthorized_client"),
    (400, "access_denied"),
    (401, "invalid_client"),
    (401, "invalid_grant"),
    (401, "unauthorized_client"),
    (401, "access_denied"),
];

/// Whether an answer is a refusal. What stands between, a proxy or a gateway, can answer with 401,
/// 403 and 404 too, in JSON as well, and decides nothing.
pub(super) fn is_refusal(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        error: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return false;
    };
    REFUSALS.contains(&(status, answer.error.as_str()))
}

/// Reads an answer with a token. Endpoints differ: the expiry is text or a number, of the moment or
/// of the seconds that are left.
pub(super) fn token(body: &[u8]) -> Option<AccessToken> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        expires_on: Option<Value>,
        expires_in: Option<Value>,
    }
    let seconds = |value: Value| match value {
        Value::String(text) => text.parse::<i64>().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    };
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let moment = match (answer.expires_on, answer.expires_in) {
        (Some(on), _) => OffsetDateTime::from_unix_timestamp(seconds(on)?).ok()?,
        (None, Some(left)) => {
            OffsetDateTime::now_utc().checked_add(time::Duration::seconds(seconds(left)?))?
        }
        (None, None) => return None,
    };
    Some(AccessToken::new(answer.access_token, moment))
}

/// The reason that an endpoint gives in a refusal, in one of the forms in use.
pub(super) fn reason(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return String::new();
    };
    let text = body["error_description"]
        .as_str()
        .or_else(|| body["message"].as_str())
        .or_else(|| body["error"]["message"].as_str());
    text.map_or_else(String::new, |text| format!(": {}", one_line(text)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_oauths_refusals_are_some() {
        let body = |error: &str| {
            format!(r#"{{"error":"{error}","error_description":"Identity not found"}}"#)
        };
        for (status, error) in REFUSALS {
            assert!(
                is_refusal(status, body(error).as_bytes()),
                "{status} {error}"
            );
            for other in [200, 302, 403, 404, 407, 410, 429, 500, 502, 503, 504] {
                assert!(
                    !is_refusal(other, body(error).as_bytes()),
                    "{other} {error}"
                );
            }
        }
        for (status, body) in [
            (400, body("invalid_resource")),
            (400, body("bad_request_102")),
            (401, body("unknown_source")),
            (401, body("invalid_request")),
            (400, body("")),
            (401, "{}".into()),
            (400, r#"{"statusCode":400,"message":"no identity"}"#.into()),
            (401, r#"{"error":{"code":"invalid_client"}}"#.into()),
            (400, r#"["error","invalid_client"]"#.into()),
            (400, String::new()),
        ] {
            assert!(!is_refusal(status, body.as_bytes()), "{status} {body}");
        }
    }

    #[test]
    fn expiry_is_read_in_every_form_that_endpoints_give() {
        let on = OffsetDateTime::from_unix_timestamp(2_000_000_000).unwrap();
        for body in [
            r#"{"access_token":"t","expires_on":"2000000000","resource":"r"}"#,
            r#"{"access_token":"t","expires_on":2000000000,"expires_in":"1"}"#,
        ] {
            let token = token(body.as_bytes()).unwrap();
            assert_eq!((token.token.secret(), token.expires_on), ("t", on));
        }
        let soon = token(br#"{"access_token":"t","expires_in":"3600"}"#).unwrap();
        assert!(soon.expires_on > OffsetDateTime::now_utc() + Duration::from_secs(3500));
        for body in [
            "",
            "{}",
            r#"{"access_token":"t"}"#,
            r#"{"access_token":"t","expires_on":"x"}"#,
            r#"{"access_token":"t","expires_in":9223372036854775807}"#,
        ] {
            assert!(token(body.as_bytes()).is_none(), "{body}");
        }
    }
}
