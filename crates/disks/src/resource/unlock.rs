//! Unwrapping the DEKs of a disk's layers, each in the name of the set that its layer is under.

use uuid::Uuid;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::verdict::as_far_as_known;
use installation::envelope::{
    Envelope, Header, HeaderPayload, LayerRecord, UnverifiedHeader, unwrap_one,
};
use installation::{Installation, KeyAccess};
use keys::{Dek, DekStack, with_wiped_call_stack};

/// Unwraps DEKs, and opens a vault once for all layers that are under the same set.
pub(crate) struct Unwrapper<'a> {
    installation: &'a Installation,
    /// A vault that is open already, and the set in whose name.
    known: Option<(Option<&'a str>, &'a KeyAccess)>,
    opened: Vec<(Option<String>, KeyAccess)>,
    /// It is a periodic check that asks.
    check: bool,
}

impl<'a> Unwrapper<'a> {
    pub(crate) fn new(installation: &'a Installation) -> Self {
        Self {
            installation,
            known: None,
            opened: Vec::new(),
            check: false,
        }
    }

    /// As [`Unwrapper::new`], to see whether the vaults still grant what was unwrapped before.
    pub(crate) fn checking(installation: &'a Installation) -> Self {
        Self {
            check: true,
            ..Self::new(installation)
        }
    }

    /// As [`Unwrapper::new`] with a vault that is open in the name of `set`.
    pub(crate) fn knowing(
        installation: &'a Installation,
        set: Option<&'a str>,
        access: &'a KeyAccess,
    ) -> Self {
        Self {
            known: Some((set, access)),
            ..Self::new(installation)
        }
    }

    /// The DEK of a layer of `disk`, by the identity of `set`.
    pub(crate) fn layer_as(
        &mut self,
        disk: &str,
        set: Option<&str>,
        layer: &LayerRecord,
    ) -> Result<Dek, DiskError> {
        let inner = self.one(disk, set, layer, &layer.envelope)?;
        let outer = self.outer(disk, layer)?;
        Ok(layer.joined(inner, outer)?)
    }

    /// The outer DEK of a layer of `disk`, where it has one.
    pub(crate) fn outer(
        &mut self,
        disk: &str,
        layer: &LayerRecord,
    ) -> Result<Option<Dek>, DiskError> {
        let envelope = layer.platform_envelope.as_ref();
        envelope
            .map(|envelope| self.one(disk, None, layer, envelope))
            .transpose()
    }

    fn one(
        &mut self,
        disk: &str,
        set: Option<&str>,
        layer: &LayerRecord,
        envelope: &Envelope,
    ) -> Result<Dek, DiskError> {
        let installation = self.installation;
        self.unwrapped(disk, set, layer, envelope)
            .map_err(|error| as_far_as_known(installation, &envelope.vault_url, error))
    }

    fn unwrapped(
        &mut self,
        disk: &str,
        set: Option<&str>,
        layer: &LayerRecord,
        envelope: &Envelope,
    ) -> Result<Dek, DiskError> {
        let check = self.check;
        let access = self.access(set, envelope)?;
        let mut caller = access.caller.for_layer(disk, layer.id);
        caller.purpose.check = check;
        let vault = access.vault.as_ref();
        // Every DEK that is unwrapped comes by here, and not every thread ends soon.
        Ok(with_wiped_call_stack(|| {
            unwrap_one(vault, &caller, layer.id, envelope)
        })?)
    }

    fn access(&mut self, set: Option<&str>, envelope: &Envelope) -> Result<&KeyAccess, DiskError> {
        let url = &envelope.vault_url;
        let fits = |of: Option<&str>, access: &KeyAccess| of == set && access.vault.url() == url;
        if let Some((of, access)) = self.known
            && fits(of, access)
        {
            return Ok(access);
        }
        let found = self
            .opened
            .iter()
            .position(|(of, access)| fits(of.as_deref(), access));
        let index = match found {
            Some(index) => index,
            None => {
                let key = envelope.key_id();
                let access = self.installation.unwrapping_key(set, url, key)?;
                self.opened.push((set.map(Into::into), access));
                self.opened.len() - 1
            }
        };
        Ok(&self.opened[index].1)
    }
}

impl Disk {
    /// Unwraps the top layer's DEK in the name of the identity that the header names, and
    /// authenticates the header with it.
    ///
    /// # Errors
    /// The vault's refusal, or what is wrong with the header.
    pub fn unlock(
        &self,
        installation: &Installation,
        header: UnverifiedHeader,
    ) -> Result<(Header, Dek), DiskError> {
        self.unlock_by(&mut Unwrapper::new(installation), header)
    }

    /// As [`Disk::unlock`], and unwraps the DEK of every other layer in the name of the set that
    /// the layer is under.
    ///
    /// # Errors
    /// As [`Disk::unlock`] for the top layer; [`DiskError::Layer`] for the others.
    pub fn unlock_all(
        &self,
        installation: &Installation,
        header: UnverifiedHeader,
    ) -> Result<(Header, DekStack), DiskError> {
        let mut keys = Unwrapper::new(installation);
        let (header, top) = self.unlock_by(&mut keys, header)?;
        let lower = header.layers.iter().rev().skip(1);
        let lower = lower
            .map(|layer| self.unlock_layer(&mut keys, &header, layer))
            .collect::<Result<_, _>>()?;
        Ok((header, DekStack::new(top, lower)))
    }

    /// As [`Disk::unlock`], and unwraps one DEK under each other key version, to see that the vaults
    /// still grant them. All of them are zeroed.
    ///
    /// # Errors
    /// As [`Disk::unlock_all`].
    pub fn check_keys(
        &self,
        installation: &Installation,
        header: UnverifiedHeader,
    ) -> Result<Header, DiskError> {
        let mut keys = Unwrapper::checking(installation);
        let (header, _) = self.unlock_by(&mut keys, header)?;
        let under = |layer: &LayerRecord| -> Vec<_> {
            let keys = layer.envelopes();
            keys.map(|(set, envelope)| (set.map(str::to_owned), envelope.key_url()))
                .collect()
        };
        let mut checked: Vec<_> = header.top().map(under).into_iter().collect();
        for layer in header.layers.iter().rev() {
            if !checked.contains(&under(layer)) {
                self.unlock_layer(&mut keys, &header, layer)?;
                checked.push(under(layer));
            }
        }
        Ok(header)
    }

    /// As [`Disk::unlock`], by an [`Unwrapper`] that may have the vault open.
    pub(crate) fn unlock_by(
        &self,
        keys: &mut Unwrapper<'_>,
        header: UnverifiedHeader,
    ) -> Result<(Header, Dek), DiskError> {
        let set = header.claims().disk_encryption_set.clone();
        self.unlock_as(keys, set.as_deref(), header)
    }

    /// As [`Disk::unlock_by`], in the name of the identity of `set`.
    pub(crate) fn unlock_as(
        &self,
        keys: &mut Unwrapper<'_>,
        set: Option<&str>,
        header: UnverifiedHeader,
    ) -> Result<(Header, Dek), DiskError> {
        let claims = header.claims();
        self.check_identity(claims)?;
        let top = claims.top().ok_or_else(|| self.no_layer())?;
        let dek = keys.layer_as(self.name(), set, top)?;
        Ok((header.authenticate(&dek)?, dek))
    }

    /// The DEK of a layer of the authenticated `header`; an error names the layer if it is not the
    /// top one, so that its owner is known.
    pub(crate) fn unlock_layer(
        &self,
        keys: &mut Unwrapper<'_>,
        header: &Header,
        layer: &LayerRecord,
    ) -> Result<Dek, DiskError> {
        let is_top = header.top().is_some_and(|top| top.id == layer.id);
        let installation = keys.installation;
        // Of the two keys of a layer that is encrypted twice the one that refuses is named.
        let refused_by = |envelope: &Envelope, source: DiskError| match is_top {
            true => source,
            false => DiskError::Layer {
                kind: header.kind,
                name: self.name().into(),
                layer: layer.id,
                from: came_from(installation, header, layer.origin),
                key_url: envelope.key_url(),
                source: Box::new(source),
            },
        };
        let set = layer.disk_encryption_set.as_deref();
        let inner = keys
            .one(self.name(), set, layer, &layer.envelope)
            .map_err(|source| refused_by(&layer.envelope, source))?;
        let outer = match &layer.platform_envelope {
            Some(envelope) => {
                let outer = keys.one(self.name(), None, layer, envelope);
                Some(outer.map_err(|source| refused_by(envelope, source))?)
            }
            None => None,
        };
        Ok(layer.joined(inner, outer)?)
    }
}

/// Whose layer it was, as far as that is known here.
fn came_from(installation: &Installation, header: &HeaderPayload, origin: Uuid) -> String {
    if origin == header.disk {
        return "itself".into();
    }
    let rows = installation.catalog().resources().unwrap_or_default();
    if let Some(row) = rows.into_iter().find(|row| row.record.id == origin) {
        return format!("the {} {}", row.record.kind, row.record.name);
    }
    match &header.source {
        Some(source) => format!("the {} {}", source.kind, source.name),
        None => format!("a disk that is not known here, {origin}"),
    }
}
