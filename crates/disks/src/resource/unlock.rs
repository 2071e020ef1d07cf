//! Unwrapping the DEKs of a disk's layers, each in the name of the set that its layer is under.

use uuid::Uuid;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::verdict::as_far_as_known;
use installation::envelope::{
    Envelope, EnvelopeError, Header, HeaderPayload, LayerRecord, UnverifiedHeader, unwrap_one,
};
use installation::{Installation, KeyAccess};
use keys::{Dek, DekStack, with_wiped_call_stack};
use vault::{VaultErrorCode, Verdict};

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

    /// Asks for the keys of a layer of `disk`, of which one that is refused is told before one that
    /// cannot be asked for.
    pub(crate) fn check_layer(&mut self, disk: &str, layer: &LayerRecord) -> Result<(), DiskError> {
        let mut answers = Answers::default();
        self.ask(disk, layer, &mut answers, |_, source| source)?;
        answers.all_granted()
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

    /// Asks for the keys of a layer of `disk` as far as they were not asked for yet; the layer's DEK
    /// where all of them were granted now. `named` says of which key an error is.
    ///
    /// # Errors
    /// A refusal. What decides nothing is among the `answers`.
    fn ask(
        &mut self,
        disk: &str,
        layer: &LayerRecord,
        answers: &mut Answers,
        named: impl Fn(&Envelope, DiskError) -> DiskError,
    ) -> Result<Option<Dek>, DiskError> {
        let mut granted = Vec::new();
        for (set, envelope) in layer.envelopes() {
            if answers.is_to_ask(set, envelope) {
                let answer = self.one(disk, set, layer, envelope);
                let answer = answer.map_err(|source| named(envelope, source));
                granted.extend(answers.take(set, envelope, answer)?);
            }
        }
        let mut granted = granted.into_iter();
        match (granted.next(), granted.next()) {
            (Some(inner), outer) if outer.is_some() == layer.is_double() => {
                answers.take_joined(layer.joined(inner, outer))
            }
            _ => Ok(None),
        }
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

/// What the vaults have said in one check. One that does not answer must not hide that another one
/// refuses, or the disk would be served for its grace period without the key.
#[derive(Default)]
struct Answers {
    /// The sets in whose names it was asked for which key versions.
    asked: Vec<(Option<String>, String)>,
    /// The sets in whose names which vaults could not be reached. It takes its time to find that out.
    silent: Vec<(Option<String>, String)>,
    /// The first answer that decides nothing.
    undecided: Option<DiskError>,
}

impl Answers {
    /// Whether a key is still to be asked for; it counts as asked for then.
    fn is_to_ask(&mut self, set: Option<&str>, envelope: &Envelope) -> bool {
        let of = |what: &str| (set.map(str::to_owned), what.to_owned());
        let key = of(&envelope.key_url());
        if self.asked.contains(&key) || self.silent.contains(&of(&envelope.vault_url)) {
            return false;
        }
        self.asked.push(key);
        true
    }

    /// Takes the answer to a question; what was granted.
    ///
    /// # Errors
    /// A refusal, which decides whatever the others say.
    fn take(
        &mut self,
        set: Option<&str>,
        envelope: &Envelope,
        answer: Result<Dek, DiskError>,
    ) -> Result<Option<Dek>, DiskError> {
        let unreachable = |error: &DiskError| {
            let said = error.vault_error();
            said.is_some_and(|error| error.code == VaultErrorCode::Unreachable)
        };
        if answer.as_ref().is_err_and(unreachable) {
            let vault = envelope.vault_url.clone();
            self.silent.push((set.map(str::to_owned), vault));
        }
        self.judge(answer)
    }

    /// Takes what came of the keys of a layer.
    fn take_joined(&mut self, dek: Result<Dek, EnvelopeError>) -> Result<Option<Dek>, DiskError> {
        self.judge(dek.map_err(DiskError::from))
    }

    fn judge(&mut self, answer: Result<Dek, DiskError>) -> Result<Option<Dek>, DiskError> {
        match answer {
            Ok(dek) => Ok(Some(dek)),
            Err(error) if error.key_verdict() == Verdict::Refused => Err(error),
            Err(error) => {
                self.undecided.get_or_insert(error);
                Ok(None)
            }
        }
    }

    /// # Errors
    /// What one of them has said instead of granting its key.
    fn all_granted(self) -> Result<(), DiskError> {
        self.undecided.map_or(Ok(()), Err)
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
    /// still grant them. All of them are zeroed. A vault that decides nothing does not keep the others
    /// from being asked: what another one refuses is refused.
    ///
    /// # Errors
    /// The first refusal; or else as [`Disk::unlock_all`].
    pub fn check_keys(
        &self,
        installation: &Installation,
        header: UnverifiedHeader,
    ) -> Result<Header, DiskError> {
        let mut keys = Unwrapper::checking(installation);
        let mut answers = Answers::default();
        // Until it is authenticated it is believed only in which keys are to be asked for, whoever has
        // written it: that is as much as is believed of the top layer's.
        let claims = header.claims().clone();
        self.check_identity(&claims)?;
        let top = claims.top().ok_or_else(|| self.no_layer())?;
        let dek = keys.ask(self.name(), top, &mut answers, |_, source| source)?;
        let header = dek.map(|dek| header.authenticate(&dek)).transpose()?;
        for layer in claims.layers.iter().rev().skip(1) {
            let refused_by = |envelope: &Envelope, source| {
                self.layer_refused(installation, &claims, layer, envelope, source)
            };
            keys.ask(self.name(), layer, &mut answers, refused_by)?;
        }
        answers.all_granted()?;
        header.ok_or_else(|| EnvelopeError::Unauthentic { name: claims.name }.into())
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
            false => self.layer_refused(installation, header, layer, envelope, source),
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

    /// An error about the key of a layer that is not the top one, whose owner has to be known.
    fn layer_refused(
        &self,
        installation: &Installation,
        header: &HeaderPayload,
        layer: &LayerRecord,
        envelope: &Envelope,
        source: DiskError,
    ) -> DiskError {
        DiskError::Layer {
            kind: header.kind,
            name: self.name().into(),
            layer: layer.id,
            from: came_from(installation, header, layer.origin),
            key_url: envelope.key_url(),
            source: Box::new(source),
        }
    }
}

/// Whose layer it was, as far as that is known here.
fn came_from(installation: &Installation, header: &HeaderPayload, origin: Uuid) -> String {
    if origin == header.disk {
        return "itself".into();
    }
    let rows = installation.catalog().resources_with_ids(&[origin]);
    if let Some(row) = rows.unwrap_or_default().into_iter().next() {
        return format!("the {} {}", row.record.kind, row.record.name);
    }
    match &header.source {
        Some(source) => format!("the {} {}", source.kind, source.name),
        None => format!("a disk that is not known here, {origin}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vault::{VaultError, WrapAlgorithm};

    fn envelope(vault: &str, version: &str) -> Envelope {
        Envelope {
            vault_url: format!("https://{vault}.vault.localhost"),
            key_name: "k".into(),
            key_version: version.into(),
            algorithm: WrapAlgorithm::RsaOaep256,
            wrapped: Vec::new(),
        }
    }

    fn said(code: VaultErrorCode) -> Result<Dek, DiskError> {
        Err(VaultError::new(code, "why").into())
    }

    #[test]
    fn a_refusal_counts_whatever_was_not_decided_before() {
        let mut answers = Answers::default();
        let (away, other) = (envelope("away", "1"), envelope("other", "1"));
        assert!(answers.is_to_ask(Some("s"), &away));
        let unknown = answers.take(Some("s"), &away, said(VaultErrorCode::Unreachable));
        assert!(unknown.is_ok_and(|dek| dek.is_none()));
        assert!(answers.is_to_ask(Some("t"), &other));
        let refused = answers.take(Some("t"), &other, said(VaultErrorCode::KeyDisabled));
        let code = refused.map(drop).unwrap_err().vault_error().unwrap().code;
        assert_eq!(code, VaultErrorCode::KeyDisabled);
        let undecided = answers.all_granted().unwrap_err();
        let code = undecided.vault_error().unwrap().code;
        assert_eq!(code, VaultErrorCode::Unreachable);
    }

    #[test]
    fn nothing_is_asked_twice_and_a_vault_that_is_away_not_for_each_of_its_keys() {
        let mut answers = Answers::default();
        let [first, second] = ["1", "2"].map(|version| envelope("v", version));
        assert!(answers.is_to_ask(Some("s"), &first));
        assert!(!answers.is_to_ask(Some("s"), &first));
        assert!(answers.is_to_ask(Some("t"), &first), "by another identity");
        let away = answers.take(Some("s"), &first, said(VaultErrorCode::Unreachable));
        assert!(away.is_ok());
        assert!(!answers.is_to_ask(Some("s"), &second));
        let broken = answers.take(Some("t"), &first, said(VaultErrorCode::Tampered));
        assert!(broken.is_ok());
        assert!(answers.is_to_ask(Some("t"), &second));
    }
}
