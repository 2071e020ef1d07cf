//! Which server goes on with an operation, where several serve an installation whose catalog is on a server.
//!
//! An operation says in the catalog by which server it goes on. One of a server that is gone is taken over by whoever notes
//! that first; it is gone when it was not there at two looks some seconds apart, since one whose connection to the catalog
//! is lost makes another. Where the catalog is a file one server has all of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::error::ArmError;
use installation::catalog::{Catalog, OperationRecord};
use installation::{Place, Presence};

/// How long a server is away before others go on with its operations: longer than it takes to connect again.
const AWAY: Duration = Duration::from_secs(10);

/// Who this server is, and which others are gone.
pub struct Owners {
    presence: Presence,
    /// Since when servers are away.
    away: Mutex<HashMap<Uuid, Instant>>,
}

impl Owners {
    /// For a server of an installation there.
    pub fn of(place: &Place) -> Self {
        Self {
            presence: Presence::of(place),
            away: Mutex::default(),
        }
    }

    /// The id of this server, if there may be others.
    pub fn own_id(&self) -> Option<Uuid> {
        self.presence.id()
    }

    /// Has the others see that this server is there.
    pub fn keep(&self) {
        if let Err(error) = self.presence.keep() {
            log::warn!("other servers do not see that this one is there: {error}");
        }
    }

    /// Whether an operation is another server's, be that there or not.
    pub fn is_of_another(&self, record: &OperationRecord) -> bool {
        self.own_id().is_some_and(|own| owner(record) != Some(own))
    }

    /// Another operation about the same resource that goes on at another server, or did so until that ended.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn elsewhere(
        &self,
        catalog: &dyn Catalog,
        record: &OperationRecord,
    ) -> Result<Option<OperationRecord>, ArmError> {
        if self.own_id().is_none() {
            return Ok(None);
        }
        let mut running = catalog.running_operations()?.into_iter();
        Ok(running.find(|other| {
            other.id != record.id
                && other.target.eq_ignore_ascii_case(&record.target)
                && self.is_of_another(other)
        }))
    }

    /// Has this server go on with an operation that nobody goes on with; whether it is to.
    ///
    /// # Errors
    /// When that cannot be found out or noted.
    pub fn take(
        &self,
        catalog: &dyn Catalog,
        record: &mut OperationRecord,
    ) -> Result<bool, ArmError> {
        let Some(own) = self.own_id() else {
            return Ok(true);
        };
        if !self.is_left(record)? {
            return Ok(false);
        }
        let mut request = record.request.clone();
        request["server"] = json!(own);
        let is_taken = catalog.take_operation(record.id, &record.request, &request)?;
        record.request = request;
        Ok(is_taken)
    }

    /// Whether the server is gone that had an operation.
    fn is_left(&self, record: &OperationRecord) -> Result<bool, ArmError> {
        // One from before the catalog was moved to a server has none.
        let Some(by) = owner(record) else {
            return Ok(true);
        };
        let is_there = self.presence.is_there(by)?;
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if is_there {
            away.remove(&by);
            return Ok(false);
        }
        let since = *away.entry(by).or_insert_with(Instant::now);
        Ok(since.elapsed() >= AWAY)
    }
}

fn owner(record: &OperationRecord) -> Option<Uuid> {
    Uuid::try_parse(record.request["server"].as_str()?).ok()
}
