//! Operations, from their beginning to their end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use server::Site;
use time::OffsetDateTime;
use uuid::Uuid;

use super::asking::Worker;
use super::going::Entered;
use crate::access::Sessions;
use crate::call::{Call, ResourceType, Route, Work};
use crate::changing::Changes;
use crate::error::ArmError;
use crate::names::Names;
use installation::catalog::{CatalogError, Kind, OperationRecord, OperationState};

/// How long a request waits for its operation.
const PATIENCE: Duration = Duration::from_secs(2);
/// Operations at once; each has a thread.
const MOST: usize = 64;
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
    let id = record.id;
    match call.changes.going.enter(&record.target, id, MOST) {
        Entered::New => {
            let noted = call.catalog().put_operation(&record);
            let begun = noted
                .map_err(ArmError::from)
                .and_then(|()| Server::of(call).spawn(record, work));
            if begun.is_err() {
                call.changes.going.leave(id);
            }
            begun.map(|()| id)
        }
        Entered::Already(id) => {
            let known = call.catalog().operation(id)?;
            match known.is_some_and(|known| known.request["work"] == record.request["work"]) {
                true => Ok(id),
                false => Err(another(&record.target)),
            }
        }
        Entered::TooMany => Err(too_many()),
    }
}

fn another(target: &str) -> ArmError {
    ArmError {
        retry_after: Some(10),
        ..ArmError::conflict(format!("Another operation about '{target}' goes on."))
    }
}

/// Waits for an operation for a moment: what is known of it then.
///
/// # Errors
/// 409 when it was deleted meanwhile.
pub fn wait(call: &Call<'_>, id: Uuid) -> Result<OperationRecord, ArmError> {
    call.changes.going.wait(id, PATIENCE);
    let known = call.catalog().operation(id)?;
    known.ok_or_else(|| ArmError::conflict("What the operation is about was deleted meanwhile."))
}

fn too_many() -> ArmError {
    ArmError {
        retry_after: Some(10),
        ..ArmError::new(
            429,
            "TooManyRequests",
            format!("{MOST} operations go on; try again when one has ended."),
        )
    }
}

/// What operations use of a server.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    /// What it has.
    pub site: &'a Site<'a>,
    /// What makes changes.
    pub changes: &'a Arc<Changes>,
    /// The disks whose data somebody has access to.
    pub access: &'a Arc<Sessions>,
    /// The types of resources.
    pub types: &'static [&'static dyn ResourceType],
    /// What answers requests.
    pub route: Route,
}

impl<'a> Server<'a> {
    fn of(call: &'a Call<'a>) -> Self {
        Self {
            site: call.site,
            changes: call.changes,
            access: call.access,
            types: call.types,
            route: call.route,
        }
    }

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
            // What is not begun is not gone on with.
            if let Err(error) = site.installation().catalog().delete_operation(id) {
                log::error!("an operation that never began stays in the catalog: {error}");
            }
            ArmError::internal(format!("an operation has no thread: {error}"))
        })
    }

    fn run(self, mut record: OperationRecord, work: Box<dyn Work>) {
        let (id, target) = (record.id, record.target.clone());
        let worker = self.worker(&record);
        let outcome = worker.and_then(|worker| {
            let perform = |call: &Call<'_>| work.perform(call, &mut record);
            worker.as_call("PUT", &target, "", Value::Null, perform)
        });
        end(self.site, &mut record, outcome);
        self.changes.going.leave(id);
    }

    /// For whoever has begun an operation.
    fn worker(self, record: &OperationRecord) -> Result<Worker<'a>, ArmError> {
        let of = |name: &str| record.request[name].as_str().unwrap_or_default();
        let peer = of("peer").parse();
        Ok(Worker {
            site: self.site,
            changes: self.changes,
            access: self.access,
            types: self.types,
            route: self.route,
            principal: record.started.by,
            authority: of("authority").into(),
            peer: peer.map_err(|_| ArmError::internal("the record of an operation is damaged"))?,
        })
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

/// Goes on with what the end of the server has cut off; `work_of` says what it was.
///
/// # Errors
/// When the catalog cannot be read.
pub fn go_on(server: Server<'_>, work_of: WorkOf) -> Result<(), ArmError> {
    let catalog = server.site.installation().catalog();
    catalog.forget_operations(OffsetDateTime::now_utc() - KEPT)?;
    for mut record in catalog.running_operations()? {
        let worker = server.worker(&record);
        let work = match worker.and_then(|worker| work_of(&record, &worker.names())) {
            Ok(work) => work,
            Err(error) => {
                end(server.site, &mut record, Err(error));
                continue;
            }
        };
        let id = record.id;
        // A resource has one operation at a time.
        if server.changes.going.enter(&record.target, id, usize::MAX) == Entered::New {
            log::info!("going on with an operation about {}", record.target);
            if let Err(error) = server.spawn(record, work) {
                server.changes.going.leave(id);
                return Err(error);
            }
        }
    }
    Ok(())
}
