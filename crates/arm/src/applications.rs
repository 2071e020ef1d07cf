//! Graph's applications, as far as `az ad sp` has to do with them: an application and its service principal are one
//! identity here, which has one object id, and one password at most.
//!
//! Who gives an identity a password can act as it. So that takes rights over the whole subscription that Owner and
//! User Access Administrator have, who could grant themselves what it was granted; whoever may merely write identities
//! has none of them. And only what was made as an application gets a password: the secrets of all other identities are
//! the operator's to give.

use serde_json::{Value, json};
use server::FrontReply;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::audit::recorded;
use crate::call::Call;
use crate::changing::NameLock;
use crate::error::{ArmError, text};
use crate::filter::Term;
use crate::graph_views;
use crate::names::time_text;
use crate::places::name_lock;
use crate::reply::{created, done, item, list};
use crate::types::bodies::{asks_for_nothing, optional_text};
use installation::catalog::{IdentityRecord, Kind};
use installation::check_identity_name;
use vault::Caller;

/// How long a password is good that is said to end at no time, as in Graph.
const LIFETIME: Duration = Duration::days(2 * 365);
/// A client whose clock is ahead by so much asks for a password that begins now.
const SKEW: Duration = Duration::days(1);
/// Longest name that is looked at.
const NAME: usize = 128;

/// `GET /applications`
///
/// # Errors
/// 400 for another filter than clients write, 403.
pub fn all(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    let found = matching(call, true)?;
    Ok(list(
        found.iter().map(graph_views::application).collect(),
        None,
    ))
}

/// The identities that the filter of a request is about, of which only those with a record are known.
///
/// # Errors
/// 400 for another filter than clients write, 403.
pub fn matching(call: &Call<'_>, only_applications: bool) -> Result<Vec<IdentityRecord>, ArmError> {
    require(call, "read")?;
    let mut found = Vec::new();
    for row in call.catalog().identities()? {
        let record = row.record;
        let mut is_wanted = record.is_application || !only_applications;
        for term in &call.query.filter.terms {
            is_wanted &= holds(term, &record)?;
        }
        if is_wanted {
            found.push(record);
        }
    }
    Ok(found)
}

fn holds(term: &Term, record: &IdentityRecord) -> Result<bool, ArmError> {
    let unsupported = || {
        let message =
            "Of a $filter displayName, appId, id and servicePrincipalNames are known here.";
        ArmError::new(400, "Request_UnsupportedQuery", message)
    };
    let name = record.owner.name();
    let (field, value) = match term {
        Term::Is(field, value) | Term::Any(field, value) => (field, value),
        Term::StartsWith(field, value) if field.eq_ignore_ascii_case("displayName") => {
            let begin = name.get(..value.len());
            return Ok(begin.is_some_and(|begin| begin.eq_ignore_ascii_case(value)));
        }
        _ => return Err(unsupported()),
    };
    let is = |id: Uuid| Uuid::try_parse(value).is_ok_and(|given| given == id);
    match field.to_ascii_lowercase().as_str() {
        "displayname" => Ok(name.eq_ignore_ascii_case(value)),
        "appid" | "serviceprincipalnames" => Ok(is(record.client_id)),
        "id" => Ok(is(record.object_id)),
        // No application has one.
        "identifieruris" => Ok(false),
        _ => Err(unsupported()),
    }
}

/// `GET /applications/{id}`
///
/// # Errors
/// 403, 404.
pub fn one(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    require(call, "read")?;
    Ok(item(graph_views::application(&application(call, id)?)))
}

/// `POST /applications`
///
/// # Errors
/// 403, 409 for a name that is taken, and what is wrong with the body.
pub fn create(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    require(call, "write")?;
    refuse_other(call, &["displayName"])?;
    let name = text(&call.body, "/displayName").filter(|name| name.len() <= NAME);
    let name = name.ok_or_else(|| {
        bad(format!(
            "An application needs a 'displayName' of {NAME} characters at most."
        ))
    })?;
    check_identity_name(name)?;
    let _lock = hold(call, name)?;
    if let Some(taken) = call.catalog().name_of(Kind::Identity, name)? {
        return Err(ArmError::conflict(format!(
            "The name '{taken}' is taken by another identity: names are unique in an installation. Choose another name."
        )));
    }
    // Where an identity of that name was about to be put is nothing to this one.
    call.catalog().forget_left(Kind::Identity, name)?;
    let record = recorded(call, "ApplicationCreate", name, || {
        Ok(call.installation().create_application(name)?)
    })?;
    Ok(created(graph_views::application(&record)))
}

/// `POST /servicePrincipals`: that of an application is there with it.
///
/// # Errors
/// 403, and 400 for one of no application.
pub fn create_principal(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    require(call, "write")?;
    refuse_other(call, &["appId", "accountEnabled"])?;
    let found = match text(&call.body, "/appId").map(Uuid::try_parse) {
        Some(Ok(id)) => call.catalog().identity_by_client(id)?,
        _ => None,
    };
    match found.filter(|record| record.is_application) {
        Some(record) => Ok(created(graph_views::service_principal(&record.into()))),
        None => Err(bad("There is no application of that 'appId' here.".into())),
    }
}

/// `PATCH`: what would change nothing is accepted.
///
/// # Errors
/// 403, 404, and 400 for what would.
pub fn patch(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    require(call, "write")?;
    refuse_other(call, &["displayName", "accountEnabled"])?;
    let record = application(call, id)?;
    // Graph takes away what a list has no more, and whoever sends an empty one would rely on it.
    if record.secret_hash.is_some() && call.body.get("passwordCredentials").is_some() {
        return Err(ArmError::not_offered(
            "passwordCredentials",
            "another list of passwords: removePassword takes one away",
        ));
    }
    match text(&call.body, "/displayName") {
        Some(name) if name != record.owner.name() => Err(ArmError::not_offered(
            "displayName",
            "another name of an application",
        )),
        _ => Ok(done(204)),
    }
}

/// `DELETE` of either: the identity goes with its password and roles.
///
/// # Errors
/// 403, 404, and why it cannot go.
pub fn delete(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    require(call, "delete")?;
    let _lock = hold(call, application(call, id)?.owner.name())?;
    let record = application(call, id)?;
    let kind = call
        .type_of_kind(Kind::Identity)
        .ok_or_else(|| ArmError::internal("there is no type of identities"))?;
    recorded(call, "ApplicationDelete", &named(&record), || {
        let delete = || kind.delete(call, record.owner.name());
        call.changes.retrying(delete)
    })?;
    Ok(done(204))
}

/// `POST …/addPassword`: the one answer that has it.
///
/// # Errors
/// 403, 404, 409 where there is one, and what is wrong with the body.
pub fn add_password(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    require(call, "write")?;
    let record = application(call, id)?;
    let ends = end(&call.body)?;
    let name = optional_text(&call.body, "/passwordCredential/displayName")?;
    // Whoever puts a management lock on it has its name too.
    let _lock = hold(call, record.owner.name())?;
    let installation = call.installation();
    let (record, secret) = installation.add_password(record.object_id, ends, &caller(call))?;
    Ok(item(json!({
        "@odata.type": "#microsoft.graph.passwordCredential",
        "keyId": record.password_id(),
        "displayName": name,
        "startDateTime": time_text(OffsetDateTime::now_utc()),
        "endDateTime": time_text(ends),
        "secretText": secret.expose(),
    })))
}

/// `POST …/removePassword`
///
/// # Errors
/// 403, 404, and 400 for one that it has not.
pub fn remove_password(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    require(call, "write")?;
    let record = application(call, id)?;
    let key = text(&call.body, "/keyId").and_then(|key| Uuid::try_parse(key).ok());
    let key = key.ok_or_else(|| bad("'keyId' has to be that of a password.".into()))?;
    let _lock = hold(call, record.owner.name())?;
    let installation = call.installation();
    installation.remove_password(record.object_id, key, &caller(call))?;
    Ok(done(204))
}

/// Until when a password is to be good.
fn end(body: &Value) -> Result<OffsetDateTime, ArmError> {
    let now = OffsetDateTime::now_utc();
    let given = |name: &str| -> Result<Option<OffsetDateTime>, ArmError> {
        let Some(text) = optional_text(body, &format!("/passwordCredential/{name}"))? else {
            return Ok(None);
        };
        let time = OffsetDateTime::parse(text, &Rfc3339).ok();
        let time = time.and_then(|time| time.checked_to_offset(UtcOffset::UTC));
        let wrong = || ArmError::parameter(name, format!("'{name}' is no time (RFC 3339)."));
        time.map(Some).ok_or_else(wrong)
    };
    if given("startDateTime")?.is_some_and(|begin| begin > now + SKEW) {
        return Err(ArmError::not_offered(
            "startDateTime",
            "passwords that begin later",
        ));
    }
    match given("endDateTime")? {
        None => Ok(now + LIFETIME),
        Some(end) if end > now => Ok(end),
        Some(_) => {
            let message = "'endDateTime' is past: nobody could use that password.";
            Err(ArmError::parameter("endDateTime", message))
        }
    }
}

/// The application with that object id.
fn application(call: &Call<'_>, id: &str) -> Result<IdentityRecord, ArmError> {
    let found = match Uuid::try_parse(id) {
        Ok(id) => call.catalog().identity_by_object(id)?,
        Err(_) => None,
    };
    match found {
        Some(record) if record.is_application => Ok(record),
        Some(record) => Err(bad(format!(
            "'{}' is no application but a managed identity: 'az identity' and 'sealdisk identity' are for those.",
            record.owner
        ))),
        None => Err(ArmError::new(
            404,
            "Request_ResourceNotFound",
            "There is no application of that id here.",
        )),
    }
}

/// Who asks, as the audit log has it.
fn caller(call: &Call<'_>) -> Caller {
    Caller::remote(call.principal.object_id, call.head.peer)
}

/// What the audit log calls it.
fn named(record: &IdentityRecord) -> String {
    format!("{} {}", record.object_id, record.owner)
}

/// Rights of their own, over everything: see above.
fn require(call: &Call<'_>, verb: &str) -> Result<(), ArmError> {
    call.require(&action(verb), &call.names.subscription_id())
}

/// Whether whoever asks may see applications, and what is told of their passwords.
pub fn may_read(call: &Call<'_>) -> bool {
    call.may(&action("read"), &call.names.subscription_id())
}

fn action(verb: &str) -> String {
    format!("Microsoft.Authorization/applications/{verb}")
}

/// Keeps a name from being taken, or given to another identity, by other requests.
fn hold<'a>(call: &'a Call<'_>, name: &str) -> Result<NameLock<'a>, ArmError> {
    let lock = name_lock(&call.full_type(Kind::Identity), name);
    call.changes.lock(&lock, call.what())
}

/// Refuses what an application does not have here: whoever asks for it would rely on it.
fn refuse_other(call: &Call<'_>, known: &[&str]) -> Result<(), ArmError> {
    let fields = call.body.as_object();
    let fields = fields.ok_or_else(|| bad("The body is no JSON object.".into()))?;
    for (name, value) in fields {
        let is_off = name == "accountEnabled" && *value == json!(false);
        if is_off || !known.contains(&name.as_str()) && !asks_for_nothing(value) {
            let what = format!("this '{name}' of an application");
            return Err(ArmError::not_offered(name, &what));
        }
    }
    Ok(())
}

fn bad(message: String) -> ArmError {
    ArmError::new(400, "Request_BadRequest", message)
}
