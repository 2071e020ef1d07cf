//! `createOption: Import` of disks: an operation of its own, which outlives its request and the server.
//!
//! # Order of steps
//!
//! 1. the request is checked, and the source found (`import_source.rs`);
//! 2. the placement is written, which names the operation and a disk that is not there;
//! 3. the operation is in the catalog and goes on;
//! 4. the disk is made from the source, as the command line makes one: as a whole or not at all;
//! 5. the operation ends. A failure of 4 removes the placement.
//!
//! From 3 to 5 the disk is shown as one that is being created, whatever there is of it. A process that dies meanwhile
//! leaves an operation that the next start does again from the beginning: what was half made is swept away before,
//! and a disk that is whole is one that this operation has made, which its placement says.
//!
//! The group is kept from being deleted during 4. Whoever deletes the disk or the group cancels the import.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::one_of;
use super::disks::{GIB, OPTIONS, find_of, wanted_size};
use super::import_source::{ImportSource, without_signature};
use super::sources::encryption;
use crate::audit::recorded;
use crate::call::{Call, Put, ResourceType, Wanted, Work};
use crate::error::{ArmError, text};
use crate::imported::{going_on, operation_of, placed_by};
use crate::names::time_text;
use crate::operations;
use crate::places::{hold_group, summary};
use disks::import::Cancel;
use disks::{CreateRequest, DEFAULT_SECTOR_SIZE};
use installation::catalog::{Kind, OperationRecord, OperationState, PlacementRecord};
use installation::envelope::ResourceKind;

/// How often it is looked whether an import is still wanted and allowed.
const LOOK: Duration = Duration::from_millis(300);
/// How long whoever deletes a disk waits until its import has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a body asks for an import.
fn is_asked_for(body: &Value) -> Result<bool, ArmError> {
    let option = one_of(body, "/properties/creationData/createOption", OPTIONS)?;
    Ok(option == Some("Import"))
}

/// An import of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportDisk {
    name: String,
    group: String,
    source: ImportSource,
    /// The body, without what is secret in it.
    body: Value,
}

impl ImportDisk {
    /// The import that a PUT asks for, if it is of a disk, and of one that is not there.
    ///
    /// # Errors
    /// What is wrong with its source.
    pub fn of(
        call: &Call<'_>,
        kind: Kind,
        put: &Put<'_>,
        group: &str,
    ) -> Result<Option<Self>, ArmError> {
        if kind != Kind::Disk || put.exists || !is_asked_for(put.body)? {
            return Ok(None);
        }
        Ok(Some(Self {
            name: put.placed.name.clone(),
            group: group.into(),
            source: ImportSource::of_body(call, put.body)?,
            body: without_signature(put.body),
        }))
    }

    /// What [`kept`](Work::kept) has kept, if it is an import.
    pub fn again(kept: &Value) -> Option<Self> {
        let kept = kept.get("importDisk")?;
        Some(Self {
            name: text(kept, "/name")?.into(),
            group: text(kept, "/group")?.into(),
            source: ImportSource::again(&kept["source"])?,
            body: kept["body"].clone(),
        })
    }

    /// Begins it, about the resource with that id; its operation. The same that goes on already is the one.
    ///
    /// # Errors
    /// As [`operations::begin`].
    pub fn begin(
        self,
        call: &Call<'_>,
        id: String,
        placed: &PlacementRecord,
    ) -> Result<Uuid, ArmError> {
        let record = operations::new(call, id, &self);
        let named = |id: Uuid| call.catalog().put_placement(&placed_by(id, placed));
        let new = record.id;
        named(new)?;
        let begun = operations::begin(call, record, Box::new(self))?;
        if begun != new {
            named(begun)?;
        }
        Ok(begun)
    }

    fn perform_once(&self, call: &Call<'_>, operation: Uuid) -> Result<(), ArmError> {
        let id = call
            .names
            .resource_id(&self.group, "Microsoft.Compute/disks", &self.name);
        call.require("Microsoft.Compute/disks/write", &id)?;
        let (_group, _) = hold_group(call, &self.group)?;
        let placed = call.catalog().placement(Kind::Disk, &self.name)?;
        let own = placed.filter(|placed| operation_of(placed) == Some(operation));
        let found = find_of(call, ResourceKind::Disk, &self.name)?;
        match (found, &own) {
            // It goes with the row of what a dead process has left half made.
            (None, Some(placed)) => call.catalog().put_placement(placed)?,
            // An end of the server came between the disk and the end of the operation.
            (Some(name), Some(_)) if is_ready(call, &name)? => return Ok(()),
            _ => {
                return Err(ArmError::conflict(format!(
                    "The disk '{}' was made by somebody else meanwhile.",
                    self.name
                )));
            }
        }
        let what = format!("{id} from {}", self.source);
        recorded(call, "DiskImport", &what, || self.import(call, operation))
    }

    fn import(&self, call: &Call<'_>, operation: Uuid) -> Result<(), ArmError> {
        let wanted = wanted_size(&self.body)?.map(|size| size * GIB);
        let set = encryption(call, &self.body)?.flatten();
        let cancel = Cancel::default();
        let source = self.source.open(call, &cancel)?;
        let request = CreateRequest {
            name: self.name.clone(),
            size: wanted,
            source: None,
            disk_encryption_set: set,
            sector_size: DEFAULT_SECTOR_SIZE,
            logical_sector_size: source.logical_sector_size,
            data_dir: None,
        };
        let catalog = call.catalog();
        let is_cancelled = || catalog.is_operation_cancelled(operation);
        let (mut looked, size) = (Instant::now(), source.image.size());
        let watch = |done: u64| {
            // Once more in the end, after which the disk is there.
            if done < size && looked.elapsed() < LOOK {
                return;
            }
            looked = Instant::now();
            // What cannot be found out is not allowed.
            if is_cancelled().unwrap_or(true) || !self.source.is_good(call).unwrap_or(false) {
                cancel.request();
            }
        };
        let made = disks::create_from(call.installation(), &request, source, &cancel, |_| watch);
        let Err(error) = made else {
            return Ok(());
        };
        if is_cancelled()? {
            let message = "The import was cancelled, since the disk or its group was deleted.";
            return Err(ArmError::new(409, "OperationCanceled", message));
        }
        match self.source.is_good(call)? {
            true => Err(error.into()),
            false => Err(ImportSource::over()),
        }
    }

    /// Removes the placement of a disk that was not made.
    fn forget(&self, call: &Call<'_>, operation: Uuid) -> Result<(), ArmError> {
        let catalog = call.catalog();
        let placed = catalog.placement(Kind::Disk, &self.name)?;
        let is_own = placed.is_some_and(|placed| operation_of(&placed) == Some(operation));
        if is_own && catalog.name_of(Kind::Disk, &self.name)?.is_none() {
            catalog.delete_placement(Kind::Disk, &self.name)?;
        }
        Ok(())
    }
}

fn is_ready(call: &Call<'_>, name: &str) -> Result<bool, ArmError> {
    let view = disks::outline(call.installation(), ResourceKind::Disk, name)?;
    Ok(!matches!(view.disk_state, "Creating" | "Deleting"))
}

impl Work for ImportDisk {
    fn kept(&self) -> Value {
        json!({"importDisk": {
            "name": self.name,
            "group": self.group,
            "source": self.source.kept(),
            "body": self.body,
        }})
    }

    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        match self.perform_once(call, record.id) {
            Ok(()) => Ok(OperationState::Succeeded),
            Err(error) => {
                if let Err(error) = self.forget(call, record.id) {
                    log::error!(
                        "the placement of the disk '{}' stays: {}",
                        self.name,
                        error.message
                    );
                }
                Err(error)
            }
        }
    }
}

/// A disk of that name, as long as it is being imported, and the operation.
///
/// # Errors
/// When the catalog cannot be read.
pub fn going(
    call: &Call<'_>,
    kind: Kind,
    name: &str,
) -> Result<Option<(PlacementRecord, OperationRecord)>, ArmError> {
    if kind != Kind::Disk {
        return Ok(None);
    }
    let Some(placed) = call.catalog().placement(kind, name)? else {
        return Ok(None);
    };
    let record = going_on(call.catalog(), &placed)?;
    Ok(record.map(|record| (placed, record)))
}

/// The disks that are being imported, for lists: the catalog finds those alone that are there.
#[derive(Default)]
pub struct Imports(Vec<(Uuid, PlacementRecord)>);

impl Imports {
    /// Those of now.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn read(call: &Call<'_>) -> Result<Self, ArmError> {
        let catalog = call.catalog();
        let mut found = Vec::new();
        for record in catalog.running_operations()? {
            let Some(import) = ImportDisk::again(&record.request["work"]) else {
                continue;
            };
            let placed = catalog.placement(Kind::Disk, &import.name)?;
            let own = placed.filter(|placed| operation_of(placed) == Some(record.id));
            found.extend(own.map(|placed| (record.id, placed)));
        }
        Ok(Self(found))
    }

    /// Whether that is one of them.
    pub fn have(&self, placed: &PlacementRecord) -> bool {
        let operation = operation_of(placed);
        operation.is_some_and(|operation| self.0.iter().any(|(id, _)| *id == operation))
    }

    /// A part of a list of disks, with those of them that belong into it.
    pub fn join(
        &self,
        wanted: &Wanted<'_>,
        mut found: Vec<PlacementRecord>,
    ) -> Vec<PlacementRecord> {
        let is_full = found.len() >= wanted.limit;
        let last = found.last().map(|placed| placed.name.clone());
        let is_wanted = |placed: &PlacementRecord| {
            let (name, group) = (placed.name.as_str(), placed.group.as_str());
            let is_later = is_full && last.as_deref().is_some_and(|last| name > last);
            !is_later
                && wanted.after.is_none_or(|after| name > after)
                && wanted
                    .group
                    .is_none_or(|wanted| group.eq_ignore_ascii_case(wanted))
        };
        for (_, placed) in self.0.iter().filter(|(_, placed)| is_wanted(placed)) {
            let is_same = |other: &PlacementRecord| other.name.eq_ignore_ascii_case(&placed.name);
            if !found.iter().any(is_same) {
                found.push(placed.clone());
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        found.truncate(wanted.limit);
        found
    }
}

/// A disk that is being imported.
pub fn view(call: &Call<'_>, kind: &dyn ResourceType, placed: &PlacementRecord) -> Value {
    let settings = &placed.settings;
    let sku = settings["sku"].as_str().unwrap_or("Premium_LRS");
    let mut body = summary(call, kind, placed);
    body["sku"] = json!({"name": sku, "tier": sku.split('_').next()});
    body["properties"] = json!({
        "creationData": settings["creationData"],
        "diskState": "Unattached",
        "provisioningState": "Creating",
        "timeCreated": time_text(placed.created.at),
    });
    body
}

/// 409: nothing else is done to a disk while it is being imported.
pub fn refuse_going(name: &str) -> ArmError {
    ArmError {
        retry_after: Some(10),
        ..ArmError::conflict(format!(
            "The disk '{name}' is being imported. Wait for that, or delete the disk, which cancels it."
        ))
    }
}

/// Joins an import that goes on, if the same is asked for again.
///
/// # Errors
/// 409 for another one.
pub fn join(
    call: &Call<'_>,
    (placed, record): &(PlacementRecord, OperationRecord),
) -> Result<Uuid, ArmError> {
    let body = without_signature(&call.body);
    let kept = ImportDisk::again(&record.request["work"]);
    match kept.is_some_and(|kept| kept.body == body) {
        true => Ok(record.id),
        false => Err(refuse_going(&placed.name)),
    }
}

/// Cancels the import of a disk that is to be deleted, if one goes on, and waits for a while until it has ended;
/// whether it was cancelled. `id` is that of the disk.
///
/// # Errors
/// 409 while it goes on all the same.
pub fn cancel(
    call: &Call<'_>,
    kind: Kind,
    (group, name): (&str, &str),
    id: &str,
) -> Result<bool, ArmError> {
    let found = || -> Result<Option<OperationRecord>, ArmError> {
        let found = going(call, kind, name)?;
        let found = found.filter(|(placed, _)| placed.group.eq_ignore_ascii_case(group));
        Ok(found.map(|(_, record)| record))
    };
    let Some(record) = found()? else {
        return Ok(false);
    };
    recorded(call, "ResourceDelete", id, || {
        call.catalog().cancel_operation(record.id)?;
        call.changes.going.wait(record.id, PATIENCE);
        match found()? {
            Some(_) => Err(refuse_going(name)),
            None => Ok(true),
        }
    })
}

/// Cancels the imports of a group, which is to be deleted.
///
/// # Errors
/// When the catalog cannot be read or written.
pub fn cancel_all(call: &Call<'_>, group: &str) -> Result<(), ArmError> {
    for placed in call.catalog().placements_of(Kind::Disk)? {
        if placed.group.eq_ignore_ascii_case(group)
            && let Some(record) = going_on(call.catalog(), &placed)?
        {
            call.catalog().cancel_operation(record.id)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::unplaced;

    #[test]
    fn each_page_has_the_imports_that_belong_into_it() {
        let placed = |name: &&str| unplaced(Kind::Disk, name);
        let going = ["b", "d", "z"].map(|name| (Uuid::nil(), placed(&name)));
        let imports = Imports(going.into());
        let page = |found: &[&str], after: Option<&str>, limit: usize| {
            let wanted = Wanted {
                group: Some("DEFAULT"),
                after,
                limit,
            };
            let joined = imports.join(&wanted, found.iter().map(placed).collect());
            let names: Vec<String> = joined.into_iter().map(|placed| placed.name).collect();
            names.join("")
        };
        // What is pushed out of a page is in the next one.
        assert_eq!(page(&["a", "c", "e"], None, 3), "abc");
        assert_eq!(page(&["e", "f"], Some("c"), 3), "def");
        assert_eq!(page(&[], Some("f"), 3), "z");
        assert_eq!(page(&[], Some("z"), 3), "");
        assert_eq!(page(&[], None, 9), "bdz");
        // One that is there by now is there once.
        assert_eq!(page(&["a", "B"], None, 9), "Badz");
        let elsewhere = Wanted {
            group: Some("other"),
            after: None,
            limit: 9,
        };
        assert!(imports.join(&elsewhere, Vec::new()).is_empty());
    }
}
