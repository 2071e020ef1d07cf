//! The parts of a new resource: its place, its row and its top layer.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::resource::error::DiskError;
use crate::resource::lookup::refuse_taken_name;
use crate::resource::reconcile::layer_uses;
use crate::resource::staging::sweep_before;
use installation::catalog::{DiskRecord, DiskState};
use installation::envelope::{
    DekCheck, Envelope, EnvelopeError, HeaderPayload, LayerRecord, ResourceKind, unwrap_one,
    wrap_dek,
};
use installation::files::private_dir;
use installation::{Installation, KeyAccess};
use keys::{Dek, with_wiped_call_stack};

/// A layer to be made.
pub(crate) struct NewLayer<'a> {
    /// The disk's name.
    pub(crate) name: &'a str,
    /// The disk for which it is made.
    pub(crate) origin: Uuid,
    pub(crate) size: u64,
    pub(crate) data_unit: u32,
    /// The set whose key wraps it.
    pub(crate) set: Option<&'a str>,
}

/// A fresh DEK, wrapped, and unwrapped again to see that it can be. Where the set has double encryption it is two keys.
pub(crate) fn new_layer(
    access: &KeyAccess,
    new: &NewLayer<'_>,
) -> Result<(Dek, LayerRecord), DiskError> {
    // Every new DEK comes by here, and not every thread ends soon.
    with_wiped_call_stack(|| made_layer(access, new))
}

fn made_layer(access: &KeyAccess, new: &NewLayer<'_>) -> Result<(Dek, LayerRecord), DiskError> {
    let dek = match access.platform {
        Some(_) => Dek::generate()?.with_outer(Dek::generate()?)?,
        None => Dek::generate()?,
    };
    let id = Uuid::new_v4();
    let wrap = |access: &KeyAccess, dek: &Dek| wrapped(access, new.name, id, dek);
    let platform = access.platform.as_deref().zip(dek.outer());
    let layer = LayerRecord {
        id,
        origin: new.origin,
        size: new.size,
        data_unit: new.data_unit,
        disk_encryption_set: new.set.map(Into::into),
        envelope: wrap(access, &dek)?,
        platform_envelope: platform
            .map(|(platform, outer)| wrap(platform, outer))
            .transpose()?,
        check: DekCheck::new(id, &dek),
    };
    let unwrap = |access, envelope| unwrapped(access, new.name, id, envelope);
    let envelopes = access
        .platform
        .as_deref()
        .zip(layer.platform_envelope.as_ref());
    let outer = envelopes.map(|(platform, envelope)| unwrap(platform, envelope));
    layer.joined(unwrap(access, &layer.envelope)?, outer.transpose()?)?;
    Ok((dek, layer))
}

/// The key of a layer of `disk`, wrapped.
pub(crate) fn wrapped(
    access: &KeyAccess,
    disk: &str,
    layer: Uuid,
    dek: &Dek,
) -> Result<Envelope, EnvelopeError> {
    let caller = access.caller.for_layer(disk, layer);
    wrap_dek(access.vault.as_ref(), &caller, &access.key, dek)
}

/// What [`wrapped`] wrapped.
pub(crate) fn unwrapped(
    access: &KeyAccess,
    disk: &str,
    layer: Uuid,
    envelope: &Envelope,
) -> Result<Dek, EnvelopeError> {
    let caller = access.caller.for_layer(disk, layer);
    unwrap_one(access.vault.as_ref(), &caller, layer, envelope)
}

/// The row of a resource in the making.
pub(crate) fn row(payload: &HeaderPayload, directory: &Path) -> DiskRecord {
    DiskRecord {
        id: payload.disk,
        kind: payload.kind,
        name: payload.name.clone(),
        directory: directory.into(),
        size: payload.size,
        disk_encryption_set: payload.disk_encryption_set.clone(),
        key_url: payload
            .top()
            .map(|layer| layer.envelope.key_url())
            .unwrap_or_default(),
        layers: layer_uses(payload),
        created: payload.created,
        state: DiskState::Creating,
    }
}

/// The row of a resource whose files are there.
pub(crate) fn ready_row(header: &HeaderPayload, directory: &Path) -> DiskRecord {
    DiskRecord {
        state: DiskState::Ready,
        ..row(header, directory)
    }
}

/// The directory that a new resource gets in `parent`, which is there and swept then. Neither its
/// name nor its place is taken.
pub(crate) fn free_place(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    parent: &Path,
) -> Result<PathBuf, DiskError> {
    private_dir(parent)?;
    sweep_before(installation, parent)?;
    let directory = parent.join(name);
    refuse_taken_name(installation, kind, name)?;
    if directory.symlink_metadata().is_ok() {
        return Err(DiskError::PathTaken { path: directory });
    }
    Ok(directory)
}

/// The absolute path of `--data-dir`, made if it is missing. Others must not be able to exchange
/// what is in it.
pub(crate) fn data_dir(directory: &Path) -> Result<PathBuf, DiskError> {
    private_dir(directory)?;
    directory
        .canonicalize()
        .map_err(DiskError::file("find", directory))
}
