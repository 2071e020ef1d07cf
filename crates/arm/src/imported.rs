//! Which placements are those of disks that are being imported.

use serde_json::json;
use uuid::Uuid;

use crate::error::ArmError;
use installation::catalog::{Catalog, OperationRecord, OperationState, PlacementRecord};

/// What of the settings of a placement names the operation that has made the disk, or makes it.
const OPERATION: &str = "import";

/// The placement of a disk that this operation makes.
pub fn placed_by(operation: Uuid, placed: &PlacementRecord) -> PlacementRecord {
    let mut placed = placed.clone();
    placed.settings[OPERATION] = json!(operation);
    placed
}

/// The operation that has made the disk, or makes it.
pub fn operation_of(placed: &PlacementRecord) -> Option<Uuid> {
    Uuid::try_parse(placed.settings[OPERATION].as_str()?).ok()
}

/// The import that makes what is placed there, if it goes on.
///
/// # Errors
/// When the catalog cannot be read.
pub fn going_on(
    catalog: &dyn Catalog,
    placed: &PlacementRecord,
) -> Result<Option<OperationRecord>, ArmError> {
    let Some(id) = operation_of(placed) else {
        return Ok(None);
    };
    let known = catalog.operation(id)?;
    Ok(known.filter(|record| record.state == OperationState::Running))
}
