//! Unwrapping the DEK of a layer.

use super::wrap::traced;
use super::{Envelope, EnvelopeError, LayerRecord};
use keys::Dek;
use uuid::Uuid;
use vault::{Caller, KeyVault};

/// Unwraps the key of one envelope of a layer: its DEK, or one of two ([`LayerRecord::envelopes`]), from which
/// [`LayerRecord::joined`] makes the DEK.
///
/// # Errors
/// The vault's refusal; [`EnvelopeError::OtherVault`].
pub fn unwrap_one(
    vault: &dyn KeyVault,
    caller: &Caller,
    layer: Uuid,
    envelope: &Envelope,
) -> Result<Dek, EnvelopeError> {
    if vault.url() != envelope.vault_url {
        return Err(EnvelopeError::OtherVault {
            wanted: envelope.vault_url.clone(),
            given: vault.url().to_owned(),
        });
    }
    let key = envelope.key_id();
    let span = traced("unwrap DEK", vault, &key);
    span.set("sealdisk.layer", layer.to_string());
    let _entered = span.enter();
    let bytes = vault.unwrap_key(caller, &key, envelope.algorithm, &envelope.wrapped);
    let bytes = span.came_to(bytes, |error| error.code.as_str())?;
    Ok(Dek::from_locked(bytes)?)
}

impl LayerRecord {
    /// The DEK of the layer, of what its envelopes held: `outer` is what the one of the platform did.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongDek`] when a vault gave a key back that is not this layer's, or one of two is missing.
    pub fn joined(&self, inner: Dek, outer: Option<Dek>) -> Result<Dek, EnvelopeError> {
        if outer.is_some() != self.is_double() {
            return Err(EnvelopeError::WrongDek { layer: self.id });
        }
        let dek = match outer {
            Some(outer) => inner.with_outer(outer)?,
            None => inner,
        };
        self.check.verify(self.id, &dek)?;
        Ok(dek)
    }
}
