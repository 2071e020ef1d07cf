//! Which resources of a type there are, and where: all of few, or a part of thousands.

use std::collections::BTreeMap;

use crate::call::{Call, ResourceType, Wanted};
use crate::error::ArmError;
use crate::places::unplaced;
use installation::catalog::{Kind, PlacementRecord};
use installation::envelope::ResourceKind;

/// Those of a type that are wanted, by name.
///
/// # Errors
/// When they cannot be read.
pub fn placed(
    call: &Call<'_>,
    kind: &dyn ResourceType,
    wanted: &Wanted<'_>,
) -> Result<Vec<PlacementRecord>, ArmError> {
    match kind.listed(call, wanted)? {
        Some(found) => Ok(found),
        None => of_few(call, kind.kind(), kind.all(call)?, wanted),
    }
}

fn of_few(
    call: &Call<'_>,
    kind: Kind,
    mut names: Vec<String>,
    wanted: &Wanted<'_>,
) -> Result<Vec<PlacementRecord>, ArmError> {
    let known = call.catalog().placements_of(kind)?.into_iter();
    let mut known: BTreeMap<String, PlacementRecord> = known
        .map(|placed| (placed.name.to_ascii_lowercase(), placed))
        .collect();
    names.sort_unstable();
    let placed = names.into_iter().map(|name| {
        let placed = known.remove(&name.to_ascii_lowercase());
        with_name(kind, name, placed)
    });
    let is_wanted = |placed: &PlacementRecord| {
        let group = wanted.group;
        group.is_none_or(|group| placed.group.eq_ignore_ascii_case(group))
            && wanted
                .after
                .is_none_or(|after| placed.name.as_str() > after)
    };
    Ok(placed.filter(is_wanted).take(wanted.limit).collect())
}

/// Disks, snapshots or images, as the database finds them.
///
/// # Errors
/// When they cannot be read.
pub fn of_many(
    call: &Call<'_>,
    kind: ResourceKind,
    wanted: &Wanted<'_>,
) -> Result<Vec<PlacementRecord>, ArmError> {
    let Wanted {
        group,
        after,
        limit,
    } = *wanted;
    let found = call.catalog().placed_resources(kind, group, after, limit)?;
    let found = found.into_iter();
    Ok(found
        .map(|(name, placed)| with_name(kind.into(), name, placed))
        .collect())
}

/// With the name as the resource has it: a client may have put it in another case.
fn with_name(kind: Kind, name: String, placed: Option<PlacementRecord>) -> PlacementRecord {
    let placed = placed.unwrap_or_else(|| unplaced(kind, &name));
    PlacementRecord { name, ..placed }
}
