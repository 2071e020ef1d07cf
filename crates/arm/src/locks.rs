//! `Microsoft.Authorization/locks`: management locks, for the API and the command line.

use serde_json::{Value, json};
use server::FrontReply;

use crate::audit::recorded_as;
use crate::call::Call;
use crate::error::ArmError;
use crate::etag::{check_etag, with_etag};
use crate::id::{ArmPath, Typed, is_within};
use crate::locked;
use crate::names::{subscription, time_text};
use crate::places::name_lock;
use crate::reply::{done, list};
use crate::types::bodies::{one_of, optional_text};
use crate::types::{TYPES, type_of};
use installation::catalog::{
    CatalogError, DEFAULT_GROUP, Kind, Lock, LockLevel, LockRecord, LockTarget,
};
use installation::{Installation, PLATFORM_VAULT};
use vault::Caller;
use vault::audit::AuditRecord;

/// The full name of the type.
const TYPE: &str = "Microsoft.Authorization/locks";
/// Azure's limit of locks on one thing.
const MOST: usize = 20;
/// Azure's limits of their names and notes.
const NAME: usize = 260;
const NOTES: usize = 512;

/// The id of what a lock is on.
pub fn scope_of(installation: &Installation, lock: &Lock) -> String {
    locked::scope_of(installation, full_type, lock)
}

/// The full name of the type of what the catalog calls so.
pub(crate) fn full_type(kind: Kind) -> String {
    let known = TYPES.iter().find(|known| known.kind() == kind);
    known.map(|known| known.full_type()).unwrap_or_default()
}

/// Whether locks are on what the catalog calls so.
pub fn are_on(kind: Kind) -> bool {
    TYPES.iter().any(|known| known.kind() == kind)
}

/// Refuses to the command line what a lock forbids and no function of its own refuses.
///
/// # Errors
/// As the API does.
pub fn refuse(installation: &Installation, action: &str, scope: &str) -> Result<(), ArmError> {
    locked::refuse(installation, full_type, action, scope)
}

/// What an id means: the subscription, a group or a resource that is there.
///
/// # Errors
/// 400 for what is no id of these, 404 for what is not there.
pub fn target(installation: &Installation, scope: &str) -> Result<LockTarget, ArmError> {
    let wrong = || {
        ArmError::parameter(
            "scope",
            format!(
                "'{scope}' is no scope of locks: give the id of the subscription, a group or a resource in it."
            ),
        )
    };
    let path = ArmPath::parse(scope).map_err(|_| wrong())?;
    let own = subscription(installation).to_string();
    let is_own = |id: &str| id.eq_ignore_ascii_case(&own);
    if !path.subscription.as_deref().is_some_and(is_own) || !path.words.is_empty() {
        return Err(wrong());
    }
    match (path.group, path.typed.as_slice()) {
        (None, []) => Ok(LockTarget::Subscription),
        (Some(group), []) => match installation.catalog().group(&group)? {
            Some(known) => Ok(LockTarget::Group(known.name)),
            None => Err(ArmError::no_group(&group)),
        },
        (Some(group), [typed]) if typed.is_resource() => resource(installation, &group, typed),
        _ => Err(wrong()),
    }
}

fn resource(
    installation: &Installation,
    group: &str,
    typed: &Typed,
) -> Result<LockTarget, ArmError> {
    let Some(kind) = type_of(typed) else {
        return Err(ArmError::new(
            400,
            "FeatureNotOffered",
            "Sealdisk does not offer locks on a resource of that type: put one on what it is in. A lock on a vault is \
             none on its keys.",
        ));
    };
    let asked = typed.names.last().map_or("", String::as_str);
    let missing = || ArmError::no_resource(&typed.full_type(), asked, group);
    let name = find(installation, kind, asked)?.ok_or_else(missing)?;
    let placed = installation.catalog().placement(kind, &name)?;
    let place = placed.map_or_else(|| DEFAULT_GROUP.to_owned(), |placed| placed.group);
    match place.eq_ignore_ascii_case(group) {
        true => Ok(LockTarget::Resource(kind, name)),
        false => Err(missing()),
    }
}

/// The name as it is written of a resource that is there, and that the API shows: of vaults none that is deleted softly,
/// elsewhere or the platform's.
///
/// # Errors
/// When it cannot be found out.
pub fn find(
    installation: &Installation,
    kind: Kind,
    name: &str,
) -> Result<Option<String>, ArmError> {
    let found = installation.catalog().name_of(kind, name)?;
    if kind != Kind::Vault {
        return Ok(found);
    }
    let (here, deleted) = (installation.vaults_here()?, installation.deleted_vaults()?);
    let is_shown = |name: &String| {
        *name != PLATFORM_VAULT
            && here.iter().any(|vault| vault.name == *name)
            && deleted.iter().all(|vault| vault.name != *name)
    };
    Ok(found.filter(is_shown))
}

/// Makes a lock, or changes level and notes of the one of that name there; whether it is new.
///
/// # Errors
/// For a name or notes that are none, when there are enough locks, and 404 for what was deleted meanwhile.
pub fn put(
    installation: &Installation,
    by: &Caller,
    record: &LockRecord,
) -> Result<bool, ArmError> {
    let is_bad = |c: char| c.is_control() || "<>%&:\\?/".contains(c);
    if !(1..=NAME).contains(&record.name.chars().count()) || record.name.contains(is_bad) {
        return Err(ArmError::parameter(
            "lockName",
            format!(
                "The name of a lock has 1 to {NAME} characters, and none of <>%&:\\?/ among them."
            ),
        ));
    }
    let notes = record.notes.as_deref().unwrap_or_default();
    if notes.chars().count() > NOTES {
        let message = format!("The notes of a lock have {NOTES} characters at most.");
        return Err(ArmError::parameter("properties.notes", message));
    }
    // They are shown on terminals.
    if notes.contains(char::is_control) {
        let message = "The notes of a lock have no control characters.";
        return Err(ArmError::parameter("properties.notes", message));
    }
    let there = on(installation, &record.target)?;
    let is_new = named(&there, &record.name).is_none();
    if is_new && there.len() >= MOST {
        let message = format!("There are {MOST} locks on it already, which is the most.");
        return Err(ArmError::new(409, "TooManyLocks", message));
    }
    let audit = audit(by, "LockWrite", &record.target, &record.name);
    recorded_as(installation, audit, || {
        installation.catalog().put_lock(record)?;
        take_back(installation, record)
    })?;
    Ok(is_new)
}

/// Takes a lock off again whose resource was deleted before it was put: a later one of that name is another.
fn take_back(installation: &Installation, record: &LockRecord) -> Result<(), ArmError> {
    let LockTarget::Resource(kind, name) = &record.target else {
        return Ok(());
    };
    if find(installation, *kind, name)?.is_some() {
        return Ok(());
    }
    let catalog = installation.catalog();
    catalog.delete_lock(&record.target, &record.name)?;
    let missing = CatalogError::NotFound {
        kind: *kind,
        name: name.clone(),
    };
    Err(missing.into())
}

/// Takes a lock off; whether there was one.
///
/// # Errors
/// When it cannot be.
pub fn delete(
    installation: &Installation,
    by: &Caller,
    target: &LockTarget,
    name: &str,
) -> Result<bool, ArmError> {
    if named(&on(installation, target)?, name).is_none() {
        return Ok(false);
    }
    let audit = audit(by, "LockDelete", target, name);
    recorded_as(installation, audit, || {
        Ok(installation.catalog().delete_lock(target, name)?)
    })
}

/// The locks on one thing.
fn on(installation: &Installation, target: &LockTarget) -> Result<Vec<Lock>, ArmError> {
    let same = |lock: &Lock| match (&lock.record.target, target) {
        (LockTarget::Group(a), LockTarget::Group(b)) => a.eq_ignore_ascii_case(b),
        (LockTarget::Resource(kind, a), LockTarget::Resource(other, b)) => {
            kind == other && a.eq_ignore_ascii_case(b)
        }
        (a, b) => a == b,
    };
    let mut locks = installation.catalog().locks()?;
    locks.retain(same);
    Ok(locks)
}

fn named<'a>(locks: &'a [Lock], name: &str) -> Option<&'a Lock> {
    locks
        .iter()
        .find(|lock| lock.record.name.eq_ignore_ascii_case(name))
}

fn audit(by: &Caller, operation: &str, target: &LockTarget, name: &str) -> AuditRecord {
    let on = match target {
        LockTarget::Subscription => "the subscription".to_owned(),
        LockTarget::Group(group) => format!("the group {group}"),
        LockTarget::Resource(kind, of) => format!("the {kind} {of}"),
    };
    AuditRecord::new(by.object_id, by.origin.clone(), operation)
        .with_detail(format!("{name} on {on}"))
}

/// `GET {scope}/providers/Microsoft.Authorization/locks`: those at the scope, above it, and below it unless only those at
/// the scope are asked for.
///
/// # Errors
/// 403.
pub fn all(call: &Call<'_>, scope: &str) -> Result<FrontReply, ArmError> {
    call.require(&format!("{TYPE}/read"), scope)?;
    let not_below = call.query.filter.has_call("atScope");
    let mut views = Vec::new();
    for lock in call.catalog().locks()? {
        let locked = scope_of(call.installation(), &lock);
        if is_within(scope, &locked) || !not_below && is_within(&locked, scope) {
            views.push(view(&locked, &lock.record));
        }
    }
    Ok(list(views, None))
}

/// A lock, whose name follows the scope.
///
/// # Errors
/// 403, 404, and what is wrong with a body.
pub fn one(call: &Call<'_>, scope: &str, name: &str) -> Result<FrontReply, ArmError> {
    let verb = match call.head.method.as_str() {
        "GET" | "HEAD" => "read",
        "PUT" => "write",
        "DELETE" => "delete",
        _ => {
            let message = "A lock is read, put or deleted.";
            return Err(ArmError::new(405, "MethodNotAllowed", message));
        }
    };
    call.require(&format!("{TYPE}/{verb}"), scope)?;
    let installation = call.installation();
    let target = target(installation, scope)?;
    // What is being done with it is done before, or finds the lock.
    let _held = match (verb, &target) {
        ("write", LockTarget::Resource(kind, name)) => {
            let name = name_lock(&full_type(*kind), name);
            Some(call.changes.lock(&name, call.what())?)
        }
        _ => None,
    };
    // What a condition was met by is still there when it is changed.
    let _alone = match verb {
        "read" => None,
        _ => Some(
            call.changes
                .lock(&format!("{scope}/{TYPE}/{name}"), call.what())?,
        ),
    };
    let known = on(installation, &target)?;
    let known = named(&known, name);
    let now = known.map(|lock| view(&scope_of(installation, lock), &lock.record));
    match verb {
        "write" => check_etag(call.head, now.as_ref())?,
        "delete" if now.is_some() && call.head.header("if-match").is_some() => {
            check_etag(call.head, now.as_ref())?;
        }
        _ => {}
    }
    let by = Caller::remote(call.principal.object_id, call.head.peer);
    match (verb, known) {
        ("read", known) if call.head.method == "HEAD" => {
            Ok(done(if known.is_some() { 204 } else { 404 }))
        }
        ("read", Some(_)) => Ok(with_etag(now.unwrap_or_default(), 200)),
        ("read", None) => {
            let message = format!("The lock '{name}' could not be found.");
            Err(ArmError::new(404, "LockNotFound", message))
        }
        ("write", known) => {
            let record = wanted(call, target, name, known.map(|lock| &lock.record))?;
            let is_new = put(installation, &by, &record)?;
            let locks = on(installation, &record.target)?;
            let scope = named(&locks, name).map(|lock| scope_of(installation, lock));
            let shown = view(&scope.unwrap_or_default(), &record);
            Ok(with_etag(shown, if is_new { 201 } else { 200 }))
        }
        (_, Some(_)) => {
            delete(installation, &by, &target, name)?;
            Ok(done(200))
        }
        (_, None) => Ok(done(204)),
    }
}

/// The lock that a body asks for.
fn wanted(
    call: &Call<'_>,
    target: LockTarget,
    name: &str,
    known: Option<&LockRecord>,
) -> Result<LockRecord, ArmError> {
    let body = &call.body;
    let level = one_of(
        body,
        "/properties/level",
        &LockLevel::ALL.map(LockLevel::as_str),
    )?;
    let level = level.and_then(LockLevel::from_text).ok_or_else(|| {
        let message = "Required parameter 'properties.level' is missing (null).";
        ArmError::parameter("properties.level", message)
    })?;
    let owners = body.pointer("/properties/owners").and_then(Value::as_array);
    if owners.is_some_and(|owners| !owners.is_empty()) {
        return Err(ArmError::not_offered(
            "properties.owners",
            "owners of locks",
        ));
    }
    Ok(LockRecord {
        name: known.map_or_else(|| name.to_owned(), |known| known.name.clone()),
        target,
        level,
        notes: optional_text(body, "/properties/notes")?.map(str::to_owned),
        created: known.map_or_else(|| call.touch(), |known| known.created),
    })
}

fn view(scope: &str, record: &LockRecord) -> Value {
    let mut properties = json!({"level": record.level.as_str()});
    if let Some(notes) = &record.notes {
        properties["notes"] = json!(notes);
    }
    json!({
        "id": format!("{scope}/providers/{TYPE}/{}", record.name),
        "type": TYPE,
        "name": record.name,
        "properties": properties,
        "systemData": {
            "createdAt": time_text(record.created.at),
            "createdBy": record.created.by,
            "createdByType": "Application",
        },
    })
}
