//! Login: what a cloud says of itself, OpenID Connect's configuration, and tokens.
//!
//! | Who | By what |
//! |---|---|
//! | A service principal | its client id and secret, or what an identity of another installation has signed |
//! | A user | a name and a password, or a code that the operator of the host approves |
//! | Either of them later | a token that renews the login |

mod attempts;
mod clients;
mod form;
mod refusal;
mod users;

use serde_json::{Value, json};
use server::{FrontReply, Head, Site};
use uuid::Uuid;

use clients::by_client;
use form::Form;
use refusal::{Refusal, failed};
use users::{by_device_code, by_password, by_refresh_token, device_code, user_tokens};

use crate::id::segments;
use crate::names::Names;
use crate::reply::item;
use installation::catalog::IdentityRecord;

pub use attempts::Attempts;

/// So much of a tenant's name is told to whoever has written it.
const TENANT_SHOWN: usize = 80;

/// What is asked of those that need no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Public {
    /// `/metadata/endpoints`
    Endpoints,
    /// `…/.well-known/openid-configuration`
    OpenId,
    /// `…/discovery/keys`
    Keys,
    /// `…/oauth2/[v2.0/]token`
    Token,
    /// `…/oauth2/[v2.0/]devicecode`
    DeviceCode,
}

/// The last word of a path that asks for one.
fn of_oauth(word: &str) -> Option<Public> {
    let is = |wanted: &str| word.eq_ignore_ascii_case(wanted);
    match () {
        () if is("token") => Some(Public::Token),
        () if is("devicecode") => Some(Public::DeviceCode),
        () => None,
    }
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
            [.., discovery, keys] if is(discovery, "discovery") && is(keys, "keys") => {
                (words.len() <= 3).then_some(Self::Keys)
            }
            [.., oauth, last] if is(oauth, "oauth2") && words.len() <= 4 => of_oauth(last),
            [.., oauth, version, last]
                if is(oauth, "oauth2") && is(version, "v2.0") && words.len() <= 5 =>
            {
                of_oauth(last)
            }
            _ => None,
        }
    }

    /// Answers it.
    pub fn answer(
        self,
        site: &Site<'_>,
        attempts: &Attempts,
        head: &Head,
        body: &[u8],
    ) -> FrontReply {
        let names = Names::new(site, head);
        let form = Form::new(body);
        let answer = match self {
            Self::Endpoints => Ok(endpoints(&names)),
            Self::Keys => Ok(site.token_keys()),
            _ if let Err(refusal) = check_tenant(head, &names) => Err(refusal),
            Self::OpenId => Ok(openid(&names)),
            _ if head.method != "POST" => Err(Refusal::new(
                405,
                "invalid_request",
                900561,
                "The endpoint only accepts POST requests.",
            )),
            Self::Token => token(site, attempts, head, &form),
            Self::DeviceCode => device_code(site, head, &form, &names),
        };
        answer.map_or_else(|refusal| refusal.reply(site, head), item)
    }
}

/// Refuses a path that names another tenant: whoever is configured for that is told, and gets no token of this one.
fn check_tenant(head: &Head, names: &Names) -> Result<(), Refusal> {
    let Some(named) = tenant_in(&head.path) else {
        return Ok(());
    };
    let is = |known: &str| named.eq_ignore_ascii_case(known);
    let is_ours = Uuid::try_parse(&named).is_ok_and(|id| id == names.tenant);
    if is_ours || is("common") || is("organizations") {
        return Ok(());
    }
    let shown: String = named.chars().take(TENANT_SHOWN).collect();
    let message = format!(
        "Tenant '{shown}' not found. Check to make sure you have the correct tenant ID and are signing into the correct \
         cloud. Here it is {}.",
        names.tenant
    );
    Err(Refusal::new(400, "invalid_request", 90002, message))
}

/// The tenant that a path names, if it names one: what is before `oauth2` or `.well-known`, but for `adfs` and a version.
fn tenant_in(path: &str) -> Option<String> {
    let words = segments(path).ok()?;
    let is_end = |word: &String| {
        word.eq_ignore_ascii_case("oauth2") || word.eq_ignore_ascii_case(".well-known")
    };
    let end = words.iter().position(is_end)?;
    let of_service =
        |word: &&String| !word.eq_ignore_ascii_case("adfs") && !word.eq_ignore_ascii_case("v2.0");
    words[..end].iter().find(of_service).cloned()
}

/// What az reads when the cloud is registered.
pub(crate) fn endpoints(names: &Names) -> Value {
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
        "device_authorization_endpoint": format!("{login}/oauth2/v2.0/devicecode"),
        "token_endpoint": format!("{login}/oauth2/v2.0/token"),
        "jwks_uri": format!("{login}/discovery/keys"),
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "grant_types_supported": ["client_credentials", "password", "refresh_token", DEVICE_GRANT],
        "response_types_supported": ["token", "id_token"],
        "subject_types_supported": ["public"],
        "scopes_supported": ["openid", "profile", "offline_access"],
    })
}

/// What asks for the tokens of a login on a device (RFC 8628 §3.4).
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

fn token(
    site: &Site<'_>,
    attempts: &Attempts,
    head: &Head,
    form: &Form<'_>,
) -> Result<Value, Refusal> {
    let grant = form.required("grant_type")?;
    let mut ends = None;
    let (identity, resource) = match grant.as_str() {
        "client_credentials" => {
            let identity = by_client(site, form)?;
            return access_token(site, head, &form.resource()?, &identity);
        }
        "password" => (by_password(site, attempts, head, form)?, form.resource()?),
        "refresh_token" => {
            let (identity, end) = by_refresh_token(site, form)?;
            ends = Some(end);
            (identity, form.resource()?)
        }
        DEVICE_GRANT | "device_code" => by_device_code(site, form)?,
        _ => {
            let message = "Only the grant types client_credentials, password, refresh_token and device_code are \
                           supported.";
            return Err(Refusal::new(400, "unsupported_grant_type", 70003, message));
        }
    };
    let access = access_token(site, head, &resource, &identity)?;
    user_tokens(site, form, &identity, ends, access)
}

/// The answer with an access token, once it is recorded who gets it.
fn access_token(
    site: &Site<'_>,
    head: &Head,
    resource: &str,
    identity: &IdentityRecord,
) -> Result<Value, Refusal> {
    let issued =
        site.issue(identity, resource, head.peer)
            .map_err(|error| match error.status.as_u16() {
                400 => Refusal::new(400, "invalid_resource", 500011, error.message),
                507 => Refusal::new(507, "temporarily_unavailable", 90033, error.message),
                _ => failed(&error.message),
            })?;
    Ok(json!({
        "token_type": "Bearer",
        "expires_in": issued.expires_in,
        "ext_expires_in": issued.expires_in,
        "expires_on": issued.expires_on.to_string(),
        "resource": resource,
        "access_token": issued.token,
    }))
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
            ("/adfs/discovery/keys", Some(Public::Keys)),
            ("/adfs/oauth2/v2.0/token", Some(Public::Token)),
            ("/adfs/oauth2/token", Some(Public::Token)),
            ("/adfs/tenant/oauth2/v2.0/token", Some(Public::Token)),
            (
                "/tenant/v2.0/.well-known/openid-configuration",
                Some(Public::OpenId),
            ),
            ("/tenant/oauth2/token", Some(Public::Token)),
            ("/adfs/oauth2/v2.0/devicecode", Some(Public::DeviceCode)),
            ("/adfs/oauth2/v2.0/authorize", None),
            ("/metadata/endpoints/x", None),
            ("/subscriptions/s/resourceGroups/g/x/oauth2/token", None),
            ("/subscriptions", None),
        ] {
            assert_eq!(of(path), wanted, "{path}");
        }
    }

    #[test]
    fn a_tenant_is_what_is_before_the_service() {
        for (path, wanted) in [
            ("/adfs/oauth2/v2.0/token", None),
            ("/ADFS/.well-known/openid-configuration", None),
            ("/oauth2/token", None),
            ("/adfs/other/oauth2/token", Some("other")),
            ("/other/oauth2/v2.0/devicecode", Some("other")),
            (
                "/other/v2.0/.well-known/openid-configuration",
                Some("other"),
            ),
            ("/metadata/endpoints", None),
        ] {
            assert_eq!(tenant_in(path).as_deref(), wanted, "{path}");
        }
    }
}
