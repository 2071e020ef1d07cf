//! Login: what a cloud says of itself, OpenID Connect's configuration, and tokens for service principals,
//! who prove themselves by their client id and secret, or by what an identity of another installation has signed.

use serde_json::{Value, json};
use server::{FrontReply, Head, Site};
use url::form_urlencoded;
use uuid::Uuid;

use installation::AssertionError;
use installation::catalog::IdentityRecord;

use crate::id::segments;
use crate::names::Names;
use crate::reply::item;

/// What kind of proof an assertion is (RFC 7523 §2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What is asked of those that need no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Public {
    /// `/metadata/endpoints`
    Endpoints,
    /// `…/.well-known/openid-configuration`
    OpenId,
    /// `…/oauth2/[v2.0/]token`
    Token,
}

impl Public {
    /// What a path asks for: below `/adfs`, as az insists, or below a tenant.
    pub fn find(head: &Head) -> Option<Self> {
        let words = segments(&head.path).ok()?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let is = |word: &str, wanted: &str| word.eq_ignore_ascii_case(wanted);
        match words.as_slice() {
            [one, two] if is(one, "metadata") && is(two, "endpoints") => Some(Self::Endpoints),
            [.., well, config] if is(well, ".well-known") && is(config, "openid-configuration") => {
                (words.len() <= 5).then_some(Self::OpenId)
            }
            [.., oauth, token] if is(oauth, "oauth2") && is(token, "token") => {
                (words.len() <= 4).then_some(Self::Token)
            }
            [.., oauth, version, token]
                if is(oauth, "oauth2") && is(version, "v2.0") && is(token, "token") =>
            {
                (words.len() <= 5).then_some(Self::Token)
            }
            _ => None,
        }
    }

    /// Answers it.
    pub fn answer(self, site: &Site<'_>, head: &Head, body: &[u8]) -> FrontReply {
        match self {
            Self::Endpoints => item(endpoints(&Names::new(site, head))),
            Self::OpenId => item(openid(&Names::new(site, head))),
            Self::Token => match token(site, head, body) {
                Ok(reply) => reply,
                Err(refusal) => refusal.reply(site, head),
            },
        }
    }
}

/// What az reads when the cloud is registered.
fn endpoints(names: &Names) -> Value {
    let base = &names.base;
    json!({
        "name": "Sealdisk",
        "portal": base,
        "resourceManager": base,
        "gallery": base,
        "batch": base,
        "media": base,
        "graph": format!("{base}/"),
        "graphAudience": format!("{base}/"),
        "microsoftGraphResourceId": format!("{base}/"),
        "authentication": {
            "loginEndpoint": format!("{base}/adfs"),
            "audiences": [format!("{base}/")],
            "identityProvider": "AAD",
            "tenant": "common",
        },
        "suffixes": {
            "keyVaultDns": names.vaults,
            "storage": "storage.localhost",
        },
    })
}

fn openid(names: &Names) -> Value {
    let login = format!("{}/adfs", names.base);
    json!({
        "issuer": login,
        "authorization_endpoint": format!("{login}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{login}/oauth2/v2.0/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "scopes_supported": ["openid"],
    })
}

/// Why there is no token: OAuth's form (RFC 6749 §5.2), with what Azure's clients read besides.
struct Refusal {
    status: u16,
    error: &'static str,
    code: u32,
    message: String,
    claimed: Option<Uuid>,
}

impl Refusal {
    fn new(status: u16, error: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self {
            status,
            error,
            code,
            message: message.into(),
            claimed: None,
        }
    }

    fn reply(self, site: &Site<'_>, head: &Head) -> FrontReply {
        let claimed = self.claimed.map(|id| format!("; claimed client id {id}"));
        let detail = format!("{}{}", self.message, claimed.unwrap_or_default());
        site.note_refused(head.peer, "TokenRefused", Uuid::nil(), self.error, &detail);
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

fn token(site: &Site<'_>, head: &Head, body: &[u8]) -> Result<FrontReply, Refusal> {
    if head.method != "POST" {
        return Err(Refusal::new(
            405,
            "invalid_request",
            900561,
            "The endpoint only accepts POST requests.",
        ));
    }
    let field = |name: &str| {
        let mut fields = form_urlencoded::parse(body);
        fields
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    let required = |name: &str| {
        field(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| {
                let message =
                    format!("The request body must contain the following parameter: '{name}'.");
                Refusal::new(400, "invalid_request", 900144, message)
            })
    };
    if required("grant_type")? != "client_credentials" {
        let message = "Only the grant type client_credentials is supported: log in as a service principal, \
                       or with a managed identity.";
        return Err(Refusal::new(400, "unsupported_grant_type", 70003, message));
    }
    let client = required("client_id")?;
    let resource = match field("resource") {
        Some(resource) => resource,
        None => resource_of(&required("scope")?),
    };
    let client_id = Uuid::try_parse(&client).ok();
    let identity = match field("client_assertion") {
        Some(assertion) => {
            if required("client_assertion_type")? != ASSERTION_TYPE {
                let message = format!("The 'client_assertion_type' has to be '{ASSERTION_TYPE}'.");
                return Err(Refusal::new(400, "invalid_request", 700021, message));
            }
            by_assertion(site, client_id, &assertion)
        }
        None => by_secret(site, client_id, &required("client_secret")?),
    };
    let identity = identity.map_err(|refusal| Refusal {
        claimed: client_id,
        ..refusal
    })?;
    let issued = site
        .issue(&identity, &resource, head.peer)
        .map_err(|error| match error.status.as_u16() {
            400 => Refusal::new(400, "invalid_resource", 500011, error.message),
            _ => failed(&error.message),
        })?;
    Ok(item(json!({
        "token_type": "Bearer",
        "expires_in": issued.expires_in,
        "ext_expires_in": issued.expires_in,
        "expires_on": issued.expires_on.to_string(),
        "resource": resource,
        "access_token": issued.token,
    })))
}

/// The identity that proves itself by its secret.
fn by_secret(
    site: &Site<'_>,
    client_id: Option<Uuid>,
    secret: &str,
) -> Result<IdentityRecord, Refusal> {
    let found = site.installation().identity_by_secret(secret);
    let found = found.map_err(|error| failed(&error))?;
    found
        .filter(|identity| Some(identity.client_id) == client_id)
        .ok_or_else(|| {
            let message = "Invalid client secret provided.";
            Refusal::new(401, "invalid_client", 7000215, message)
        })
}

/// The identity that trusts whoever has signed an assertion.
fn by_assertion(
    site: &Site<'_>,
    client_id: Option<Uuid>,
    assertion: &str,
) -> Result<IdentityRecord, Refusal> {
    let refused = |why: AssertionError| {
        let (code, message) = match why {
            AssertionError::Malformed => (50027, "Invalid JWT token: it is malformed."),
            AssertionError::Unknown => (
                70021,
                "No matching federated identity record found for presented assertion. Check your federated identity \
                 credential Subject, Audience and Issuer against the presented assertion.",
            ),
            AssertionError::Signature => (
                700027,
                "Client assertion failed signature validation. The key was not found, or is another one.",
            ),
            AssertionError::Time => (
                700024,
                "Client assertion is not within its valid time range. Compare the clocks of both installations.",
            ),
        };
        Refusal::new(401, "invalid_client", code, message)
    };
    let installation = site.installation();
    let found = match client_id {
        Some(id) => installation.catalog().identity_by_client(id),
        None => Ok(None),
    };
    // Who is not there is told what one is told that trusts nobody.
    let found = found.map_err(|error| failed(&error))?;
    let identity = found.ok_or_else(|| refused(AssertionError::Unknown))?;
    let checked = installation.check_assertion(identity.object_id, assertion);
    let credential = checked.map_err(|error| failed(&error))?.map_err(refused)?;
    log::info!(
        "the federated credential '{}' of {} proves that {} asks",
        credential.name,
        identity.object_id,
        credential.subject
    );
    Ok(identity)
}

fn failed(error: &dyn std::fmt::Display) -> Refusal {
    log::error!("{error}");
    let message = "An internal error occurred; the server's log says more.";
    Refusal::new(500, "server_error", 90000, message)
}

/// The resource of which a scope is: az doubles the slash before `.default`.
fn resource_of(scope: &str) -> String {
    let first = scope.split_whitespace().next().unwrap_or_default();
    first.strip_suffix("/.default").unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_token_is_found_at_all_of_its_places() {
        let of = |path: &str| {
            let head = Head::new("GET", "localhost", path, ([127, 0, 0, 1], 1).into());
            Public::find(&head)
        };
        for (path, wanted) in [
            ("//metadata/endpoints", Some(Public::Endpoints)),
            (
                "/adfs/.well-known/openid-configuration",
                Some(Public::OpenId),
            ),
            ("/adfs/oauth2/v2.0/token", Some(Public::Token)),
            ("/adfs/oauth2/token", Some(Public::Token)),
            ("/adfs/tenant/oauth2/v2.0/token", Some(Public::Token)),
            (
                "/tenant/v2.0/.well-known/openid-configuration",
                Some(Public::OpenId),
            ),
            ("/tenant/oauth2/token", Some(Public::Token)),
            ("/metadata/endpoints/x", None),
            ("/subscriptions/s/resourceGroups/g/x/oauth2/token", None),
            ("/subscriptions", None),
        ] {
            assert_eq!(of(path), wanted, "{path}");
        }
    }

    #[test]
    fn a_scope_is_a_resource_with_a_word_behind_it() {
        assert_eq!(resource_of("https://h:1//.default"), "https://h:1/");
        assert_eq!(
            resource_of("https://h/.default offline_access"),
            "https://h"
        );
        assert_eq!(resource_of(""), "");
    }
}
