//! Users: who proves to be one, and what their clients get besides a token.
//!
//! Everything here is signed with the key of the token service, and none of it is a token for a service: an id token is
//! for the client, and what renews a login is for this endpoint alone. That one is bound to the password and the secret
//! of the identity: whoever changes either ends all logins.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use server::{Head, Site};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::attempts::{Attempts, NotNow};
use super::form::Form;
use super::refusal::{PENDING, Refusal, failed};
use crate::names::Names;
use installation::catalog::IdentityRecord;
use installation::{DEVICE_LIFETIME, DeviceState, InstallationError};
use vault::VaultErrorCode;

/// For whom what renews a login is: nobody's token has it as its audience.
const REFRESH: &str = "urn:sealdisk:refresh";
/// How long a login can be renewed, from its beginning on: less than the keys are kept that verify.
const REFRESH_LIFETIME: Duration = Duration::hours(12);
/// Seconds between two questions of a device.
const INTERVAL: u32 = 2;
/// Longest user name and password that are looked at.
const LONGEST: usize = 1024;

/// What renews a login.
#[derive(Debug, Serialize, Deserialize)]
struct Refresh {
    aud: String,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    sub: Uuid,
    client: String,
    stamp: String,
}

fn invalid_grant(code: u32, message: &str) -> Refusal {
    Refusal::new(400, "invalid_grant", code, message)
}

/// The user of that name and password.
///
/// # Errors
/// Why it is not known who asks; it tells nothing of which users there are.
pub(super) fn by_password(
    site: &Site<'_>,
    attempts: &Attempts,
    head: &Head,
    form: &Form<'_>,
) -> Result<IdentityRecord, Refusal> {
    let (given, password) = (form.required("username")?, form.required("password")?);
    form.resource()?;
    let claimed = |refusal: Refusal| Refusal {
        claimed: Some(format!("user name {given}")),
        ..refusal
    };
    let wrong = || {
        let message = "Error validating credentials due to invalid username or password.";
        claimed(invalid_grant(50126, message))
    };
    if given.len() > LONGEST || password.len() > LONGEST {
        return Err(wrong());
    }
    let name = site.installation().user_name(&given);
    let attempt = attempts.begin(name, head.peer.ip(), Instant::now());
    let attempt = attempt.map_err(|why| match why {
        NotNow::Locked => claimed(invalid_grant(
            50053,
            "The account is locked, because somebody tried to sign in too many times with an incorrect password. Try \
             again later.",
        )),
        NotNow::Busy => Refusal::new(
            503,
            "temporarily_unavailable",
            90033,
            "A transient error has occurred. Please try again.",
        ),
    })?;
    let found = site.installation().user_by_password(name, &password);
    let found = found.map_err(|error| failed(&error))?;
    attempt.end(found.is_some(), Instant::now());
    found.ok_or_else(wrong)
}

/// The user whose login is renewed, and when the login ends: no later than without that.
///
/// # Errors
/// Why it is not.
pub(super) fn by_refresh_token(
    site: &Site<'_>,
    form: &Form<'_>,
) -> Result<(IdentityRecord, i64), Refusal> {
    let (token, client) = (form.required("refresh_token")?, form.required("client_id")?);
    let ended = || {
        let message =
            "The provided grant has expired due to it being revoked, a fresh auth token is needed.";
        invalid_grant(50173, message)
    };
    let refresh: Refresh = site.signed(&token, REFRESH).map_err(|_| ended())?;
    let catalog = site.installation().catalog();
    let found = catalog.identity_by_object(refresh.sub);
    let identity = found.map_err(|error| failed(&error))?.ok_or_else(ended)?;
    let stamp = site.installation().login_stamp(&identity);
    let stamp = stamp.map_err(|error| failed(&error))?;
    match refresh.stamp == stamp && refresh.client == client {
        true => Ok((identity, refresh.exp)),
        false => Err(ended()),
    }
}

/// Begins a login on a device.
///
/// # Errors
/// When too many wait.
pub(super) fn device_code(
    site: &Site<'_>,
    head: &Head,
    form: &Form<'_>,
    names: &Names,
) -> Result<Value, Refusal> {
    let client = form.required("client_id")?;
    let resource = form.resource()?;
    if resource.len() > LONGEST {
        let message = "The provided value for the input parameter 'scope' is not valid.";
        return Err(Refusal::new(400, "invalid_scope", 70011, message));
    }
    let installation = site.installation();
    let begun = installation.begin_device_login(head.peer, &client, &resource);
    let login = begun.map_err(|error| match error {
        InstallationError::Vault(error) if error.code == VaultErrorCode::Throttled => {
            Refusal::new(429, "temporarily_unavailable", 90055, error.message)
        }
        error => failed(&error),
    })?;
    let code = &login.user_code;
    let message = format!(
        "To sign in, have the operator of the host run: sealdisk identity approve {code} --identity-name YOUR_NAME"
    );
    Ok(json!({
        "user_code": code,
        "device_code": login.device_code.as_str(),
        "verification_uri": format!("{}/adfs/oauth2/deviceauth", names.base),
        "expires_in": DEVICE_LIFETIME.whole_seconds(),
        "interval": INTERVAL,
        "message": message,
    }))
}

/// The identity for which a login on a device was approved, and the service that it was begun for: who asks for the
/// tokens need not say it again.
///
/// # Errors
/// While it was not, and when it is too late.
pub(super) fn by_device_code(
    site: &Site<'_>,
    form: &Form<'_>,
) -> Result<(IdentityRecord, String), Refusal> {
    let code = match form.field("device_code") {
        Some(code) => code,
        None => form.required("code")?,
    };
    let client = form.required("client_id")?;
    let state = site.installation().poll_device_login(&code, &client);
    match state.map_err(|error| failed(&error))? {
        DeviceState::Approved(identity, resource) => Ok((identity, resource)),
        DeviceState::Pending => Err(Refusal::new(
            400,
            PENDING,
            70016,
            "OAuth 2.0 device flow error. Authorization is pending. Continue polling.",
        )),
        DeviceState::Expired => Err(Refusal::new(
            400,
            "expired_token",
            70019,
            "Verification code expired.",
        )),
    }
}

/// The answer for a user: an access token, with what a client keeps of the login. `ends` is when the login does, unless
/// it is a new one.
///
/// # Errors
/// When nothing can be signed.
pub(super) fn user_tokens(
    site: &Site<'_>,
    form: &Form<'_>,
    identity: &IdentityRecord,
    ends: Option<i64>,
    mut answer: Value,
) -> Result<Value, Refusal> {
    let client = form.required("client_id")?;
    let installation = site.installation();
    let (tenant, user) = (installation.id(), installation.principal_name(identity));
    let now = OffsetDateTime::now_utc();
    let exp = answer["expires_in"].as_i64().unwrap_or_default();
    let id_token = json!({
        "aud": client,
        "iss": site.issuer(),
        "iat": now.unix_timestamp(),
        "nbf": now.unix_timestamp(),
        "exp": now.unix_timestamp().saturating_add(exp),
        "sub": identity.object_id,
        "oid": identity.object_id,
        "tid": tenant,
        "upn": user,
        "preferred_username": user,
        "name": identity.owner.name(),
        "ver": "2.0",
    });
    let stamp = installation.login_stamp(identity);
    let ends = ends.unwrap_or_else(|| (now + REFRESH_LIFETIME).unix_timestamp());
    let refresh = Refresh {
        aud: REFRESH.into(),
        iss: site.issuer().into(),
        iat: now.unix_timestamp(),
        nbf: now.unix_timestamp(),
        exp: ends,
        sub: identity.object_id,
        client,
        stamp: stamp.map_err(|error| failed(&error))?,
    };
    let info = json!({"uid": identity.object_id, "utid": tenant}).to_string();
    let signed = |signed: Result<String, server::ApiError>| signed.map_err(|e| failed(&e.message));
    answer["id_token"] = json!(signed(site.sign(&id_token))?);
    answer["refresh_token"] = json!(signed(site.sign(&refresh))?);
    answer["refresh_token_expires_in"] = json!(ends.saturating_sub(now.unix_timestamp()));
    answer["client_info"] = json!(URL_SAFE_NO_PAD.encode(info));
    answer["scope"] = json!(form.field("scope").unwrap_or_default());
    Ok(answer)
}
