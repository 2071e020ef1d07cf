//! Unwrapping the DEK of a layer.

use super::wrap::traced;
use super::{EnvelopeError, LayerRecord};
use keys::Dek;
use vault::{Caller, KeyVault};

/// Unwraps a layer's DEK and compares it with the layer's check value.
///
/// # Errors
/// The vault's refusal; [`EnvelopeError::OtherVault`]; [`EnvelopeError::WrongDek`] when the vault
/// gave a key back that is not this layer's.
pub fn unwrap_dek(
    vault: &dyn KeyVault,
    caller: &Caller,
    layer: &LayerRecord,
) -> Result<Dek, EnvelopeError> {
    let envelope = &layer.envelope;
    if vault.url() != envelope.vault_url {
        return Err(EnvelopeError::OtherVault {
            wanted: envelope.vault_url.clone(),
            given: vault.url().to_owned(),
        });
    }
    let key = envelope.key_id();
    let span = traced("unwrap DEK", vault, &key);
    span.set("sealdisk.layer", layer.id.to_string());
    let _entered = span.enter();
    let bytes = vault.unwrap_key(caller, &key, envelope.algorithm, &envelope.wrapped);
    let bytes = span.came_to(bytes, |error| error.code.as_str())?;
    let dek = Dek::from_locked(bytes)?;
    layer.check.verify(layer.id, &dek)?;
    Ok(dek)
}
