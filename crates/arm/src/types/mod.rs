//! The types of resources that there are.
//!
//! A new type is a file here that implements [`ResourceType`], and its line in [`TYPES`].

pub(crate) mod bodies;
mod disks;
mod identities;
mod images;
pub mod import_source;
pub(crate) mod importing;
mod set_identity;
mod sets;
mod snapshots;
mod sources;
mod vault_keys;
mod vault_network;
mod vault_policies;
mod vaults;

use crate::call::ResourceType;
use crate::id::Typed;
use installation::catalog::Kind;

/// All types, in the order in which those of a group can be deleted.
pub const TYPES: &[&dyn ResourceType] = &[
    &disks::Disks,
    &snapshots::Snapshots,
    &images::Images,
    &sets::Sets,
    &identities::Identities,
    &vaults::Vaults,
];

/// What the catalog calls the type of a resource.
pub fn type_of(typed: &Typed) -> Option<Kind> {
    let is = |kind: &&&dyn ResourceType| typed.is(kind.provider(), &[kind.name()]);
    TYPES.iter().find(is).map(|kind| kind.kind())
}
