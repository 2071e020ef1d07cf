//! Service principals: who proves to be one.

use server::Site;
use uuid::Uuid;

use super::form::Form;
use super::refusal::{Refusal, failed};
use installation::AssertionError;
use installation::catalog::IdentityRecord;

/// What kind of proof an assertion is (RFC 7523 §2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The identity with the client id of a request, by its secret or an assertion.
///
/// # Errors
/// Why it is not known who asks.
pub(super) fn by_client(site: &Site<'_>, form: &Form<'_>) -> Result<IdentityRecord, Refusal> {
    let client = form.required("client_id")?;
    let resource = form.resource()?;
    let client_id = Uuid::try_parse(&client).ok();
    let identity = match form.field("client_assertion") {
        Some(assertion) => {
            if form.required("client_assertion_type")? != ASSERTION_TYPE {
                let message = format!("The 'client_assertion_type' has to be '{ASSERTION_TYPE}'.");
                return Err(Refusal::new(400, "invalid_request", 700021, message));
            }
            by_assertion(site, client_id, &assertion, &resource)
        }
        None => by_secret(site, client_id, &form.required("client_secret")?),
    };
    identity.map_err(|refusal| Refusal {
        claimed: client_id.map(|id| format!("client id {id}")),
        ..refusal
    })
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
    resource: &str,
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
            // This says nothing of the identity: a client whose answer was lost signs another one.
            AssertionError::Used => {
                let message =
                    "Assertion is invalid: it was used before. Sign another one for each token.";
                return Refusal::new(409, "invalid_grant", 50013, message);
            }
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
    let checked = installation.check_assertion(identity.object_id, assertion, resource);
    let credential = checked.map_err(|error| failed(&error))?.map_err(refused)?;
    log::info!(
        "the federated credential '{}' of {} proves that {} asks",
        credential.name,
        identity.object_id,
        credential.subject
    );
    Ok(identity)
}
