//! Operations, from their beginning to their end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use server::Site;
use time::OffsetDateTime;
use uuid::Uuid;

use super::asking::Worker;
use super::failure::preempted;
use super::going::{Entered, Going, Share};
use super::parts::Server;
use crate::call::{Call, Work};
use crate::error::ArmError;
use crate::names::Names;
use installation::catalog::{CatalogError, Kind, OperationRecord, OperationState};

/// How long a request waits for its operation.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is known what has become of an operation.
const KEPT: time::Duration = time::Duration::days(7);

/// Says which work a record is of, for whoever knows the server by these names.
pub type WorkOf = fn(&OperationRecord, &Names) -> Result<Box<dyn Work>, ArmError>;

/// A new operation about a resource.
pub fn new(call: &Call<'_>, target: String, work: &dyn Work) -> OperationRecord {
    let started = call.touch();
    OperationRecord {
        id: Uuid::new_v4(),
        deployment: None,
        target,
        state: OperationState::Running,
        started,
        changed: started.at,
        request: request(call, work),
        answer: json!({}),
    }
}

/// What is needed to do work, and to go on with it.
fn request(call: &Call<'_>, work: &dyn Work) -> Value {
    json!({
        "authority": call.head.authority,
        "peer": call.head.peer.to_string(),
        "server": call.changes.owners.own_id(),
        "work": work.kept(),
    })
}

/// Begins an operation; its id. The same that goes on already is the one.
///
/// # Errors
/// 409 while another about the same resource goes on, 429 when too many go on; nothing is begun then.
pub fn begin(
    call: &Call<'_>,
    record: OperationRecord,
    work: Box<dyn Work>,
) -> Result<Uuid, ArmError> {
    begin_after(call, record, work, || Ok(()))
}

/// The same once `first` is done, which is short and makes what the operation is about: from before that on the operation
/// is in the catalog, so that whatever dies meanwhile leaves nothing of which nobody knows. Where `first` fails nothing is
/// begun.
///
/// # Errors
/// As [`begin`]; those of `first`.
pub fn begin_after(
    call: &Call<'_>,
    record: OperationRecord,
    work: Box<dyn Work>,
    first: impl FnOnce() -> Result<(), ArmError>,
) -> Result<Uuid, ArmError> {
    let (id, share) = (record.id, work.share());
    let going = &call.changes.going;
    match going.enter(&record.target, id, share, share.most()) {
        Entered::New => {
            let begun = begin_alone(call, record, work, first);
            if !begun.as_ref().is_ok_and(|begun| *begun == id) {
                going.leave(id);
            }
            begun
        }
        Entered::Already(id) => joined(call.catalog().operation(id)?, &record),
        Entered::TooMany => Err(too_many(share)),
    }
}

/// Begins what nobody else does at this server, unless another server does.
fn begin_alone(
    call: &Call<'_>,
    record: OperationRecord,
    work: Box<dyn Work>,
    first: impl FnOnce() -> Result<(), ArmError>,
) -> Result<Uuid, ArmError> {
    let id = record.id;
    let elsewhere = || call.changes.owners.elsewhere(call.catalog(), &record);
    // That of a deployment would go, and what it does end, with the new one.
    if let Some(other) = elsewhere()? {
        return joined(Some(other), &record);
    }
    call.catalog().put_operation(&record)?;
    // Of two that are begun at the same time one at least sees the other now.
    let ready = elsewhere().and_then(|other| match other {
        None => first(),
        Some(_) => Err(another(&record.target)),
    });
    ready.inspect_err(|_| forget(call.site, id))?;
    Server::of(call).spawn(record, work).map(|()| id)
}

/// The operation that goes on, if it is the same.
fn joined(known: Option<OperationRecord>, wanted: &OperationRecord) -> Result<Uuid, ArmError> {
    match known.filter(|known| known.request["work"] == wanted.request["work"]) {
        Some(known) => Ok(known.id),
        None => Err(another(&wanted.target)),
    }
}

fn another(target: &str) -> ArmError {
    ArmError {
        retry_after: Some(10),
        ..ArmError::conflict(format!("Another operation about '{target}' goes on."))
    }
}

/// Waits for an operation, but no longer than that: what is known of it then.
///
/// # Errors
/// 409 when it was deleted meanwhile.
pub fn wait(call: &Call<'_>, id: Uuid, patience: Duration) -> Result<OperationRecord, ArmError> {
    call.changes.going.wait(id, patience);
    let known = call.catalog().operation(id)?;
    known.ok_or_else(|| ArmError::conflict("What the operation is about was deleted meanwhile."))
}

fn too_many(share: Share) -> ArmError {
    let most = share.most();
    let why = match share {
        Share::Copy => format!("The data of {most} disks is being copied. Try again later."),
        Share::Work | Share::Watch => {
            format!("{most} operations go on; try again when one has ended.")
        }
    };
    ArmError {
        retry_after: Some(10),
        ..ArmError::new(429, "TooManyRequests", why)
    }
}

impl<'a> Server<'a> {
    fn spawn(self, record: OperationRecord, work: Box<dyn Work>) -> Result<(), ArmError> {
        let Self {
            site,
            changes,
            access,
            types,
            route,
        } = self;
        let (changes, access) = (Arc::clone(changes), Arc::clone(access));
        let id = record.id;
        let run = move |site: &Site<'_>| {
            let server = Server {
                site,
                changes: &changes,
                access: &access,
                types,
                route,
            };
            server.run(record, work);
        };
        site.spawn("operation", run).map_err(|error| {
            forget(site, id);
            ArmError::internal(format!("an operation has no thread: {error}"))
        })
    }

    fn run(self, mut record: OperationRecord, work: Box<dyn Work>) {
        // Also after a panic: what it held is for others.
        let _leaves = Leaves(&self.changes.going, record.id);
        let target = record.target.clone();
        let worker = self.worker(&record);
        let outcome = worker.and_then(|worker| {
            let perform = |call: &Call<'_>| work.perform(call, &mut record);
            worker.as_call("PUT", &target, "", Value::Null, perform)
        });
        end(self.site, &mut record, outcome);
    }

    /// For whoever has begun an operation.
    fn worker(self, record: &OperationRecord) -> Result<Worker<'a>, ArmError> {
        let of = |name: &str| record.request[name].as_str().unwrap_or_default();
        let peer = of("peer").parse();
        Ok(Worker {
            server: self,
            principal: record.started.by,
            authority: of("authority").into(),
            peer: peer.map_err(|_| ArmError::internal("the record of an operation is damaged"))?,
        })
    }
}

/// What is not begun is not gone on with.
fn forget(site: &Site<'_>, id: Uuid) {
    if let Err(error) = site.installation().catalog().delete_operation(id) {
        log::error!("an operation that never began stays in the catalog: {error}");
    }
}

/// An operation that leaves when it is dropped.
struct Leaves<'a>(&'a Going, Uuid);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// Notes what has become of an operation.
fn end(site: &Site<'_>, record: &mut OperationRecord, outcome: Result<OperationState, ArmError>) {
    record.state = match outcome {
        Ok(state) => state,
        Err(error) => {
            record.answer["status"] = json!(error.status);
            if record.answer["error"].is_null() {
                record.answer["error"] = error.view();
            }
            OperationState::Failed
        }
    };
    record.changed = OffsetDateTime::now_utc();
    let noted = site.installation().catalog().put_operation(record);
    let target = &record.target;
    match noted {
        Ok(()) => {}
        // A deployment goes with its group.
        Err(CatalogError::NotFound {
            kind: Kind::Group, ..
        }) => log::info!("{target} ended with its resource group, which was deleted meanwhile"),
        Err(error) => {
            log::error!("what has become of an operation about {target} is not noted: {error}");
        }
    }
}

/// Forgets what became of operations long ago.
///
/// # Errors
/// When the catalog cannot be written.
pub fn forget_ended(server: Server<'_>) -> Result<(), ArmError> {
    let catalog = server.site.installation().catalog();
    Ok(catalog.forget_operations(OffsetDateTime::now_utc() - KEPT)?)
}

/// Goes on with what the end of a server has cut off; `work_of` says what it was.
///
/// # Errors
/// When the catalog cannot be read, or an operation has no thread.
pub fn go_on(server: Server<'_>, work_of: WorkOf) -> Result<(), ArmError> {
    let (catalog, going) = (server.site.installation().catalog(), &server.changes.going);
    let mut left = Vec::new();
    // A resource has one operation at a time, the newest. All are known before the first goes on: what a deployment
    // asks for is the operation that it has begun before.
    for mut record in catalog.running_operations()?.into_iter().rev() {
        if !server.changes.owners.take(catalog, &mut record)? {
            continue;
        }
        let worker = server.worker(&record);
        let work = match worker.and_then(|worker| work_of(&record, &worker.names())) {
            Ok(work) => work,
            Err(error) => {
                end(server.site, &mut record, Err(error));
                continue;
            }
        };
        let (target, share) = (&record.target, work.share());
        let entered = match going.enter(target, record.id, share, share.most()) {
            // What was begun goes on, if need be when there is room.
            Entered::TooMany => going.enter(target, record.id, Share::Watch, usize::MAX),
            entered => entered,
        };
        if entered == Entered::New {
            left.push((record, work));
        } else {
            let why = "Another operation about the same resource was begun since.";
            let state = preempted(&mut record, why);
            end(server.site, &mut record, Ok(state));
        }
    }
    let mut spawned = Ok(());
    for (record, work) in left.into_iter().rev() {
        let id = record.id;
        log::info!("going on with an operation about {}", record.target);
        if let Err(error) = server.spawn(record, work) {
            going.leave(id);
            spawned = Err(error);
        }
    }
    spawned
}
