//! A place in memory, for tests of whatever uses one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::{MAX_LISTED, NewLayer, Place, PlaceError};

/// A place that is gone with its process.
#[derive(Debug, Default)]
pub struct MemoryPlace(Mutex<There>);

#[derive(Debug, Default)]
struct There {
    entries: BTreeMap<Uuid, String>,
    headers: BTreeMap<Uuid, Header>,
    layers: BTreeMap<Uuid, Layer>,
}

#[derive(Debug)]
struct Header {
    bytes: Vec<u8>,
    claim: Option<String>,
}

#[derive(Debug)]
struct Layer {
    holders: BTreeSet<Uuid>,
    data_len: u64,
}

impl MemoryPlace {
    fn there(&self) -> MutexGuard<'_, There> {
        // Each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the ciphertext of a layer is, if it is there.
    pub fn data_len(&self, layer: Uuid) -> Option<u64> {
        Some(self.there().layers.get(&layer)?.data_len)
    }
}

fn header_of(resource: Uuid) -> String {
    format!("header of {resource}")
}

fn layer_of(layer: Uuid) -> String {
    format!("layer {layer}")
}

impl Place for MemoryPlace {
    fn resources(&self, after: Option<Uuid>) -> Result<Vec<(Uuid, String)>, PlaceError> {
        let there = self.there();
        let entries = there.entries.iter();
        let behind = entries.filter(|(id, _)| after.is_none_or(|after| **id > after));
        let some = behind.take(MAX_LISTED);
        Ok(some.map(|(id, entry)| (*id, entry.clone())).collect())
    }

    fn set_entry(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let mut there = self.there();
        if there.entries.get(&resource).map(String::as_str) != from {
            return Err(PlaceError::Changed(format!("entry of {resource}")));
        }
        match to {
            Some(entry) => drop(there.entries.insert(resource, entry.into())),
            None => drop(there.entries.remove(&resource)),
        }
        Ok(())
    }

    fn header(&self, resource: Uuid) -> Result<Option<Vec<u8>>, PlaceError> {
        let there = self.there();
        Ok(there.headers.get(&resource).map(|it| it.bytes.clone()))
    }

    fn create_header(&self, resource: Uuid, header: &[u8]) -> Result<(), PlaceError> {
        let mut there = self.there();
        if there.headers.contains_key(&resource) {
            return Err(PlaceError::There(header_of(resource)));
        }
        let header = Header {
            bytes: header.into(),
            claim: None,
        };
        there.headers.insert(resource, header);
        Ok(())
    }

    fn replace_header(&self, resource: Uuid, from: &[u8], to: &[u8]) -> Result<(), PlaceError> {
        let mut there = self.there();
        let missing = || PlaceError::Missing(header_of(resource));
        let header = there.headers.get_mut(&resource).ok_or_else(missing)?;
        if header.bytes != from {
            return Err(PlaceError::Changed(header_of(resource)));
        }
        header.bytes = to.into();
        Ok(())
    }

    fn remove_header(&self, resource: Uuid) -> Result<(), PlaceError> {
        self.there().headers.remove(&resource);
        Ok(())
    }

    fn claim(&self, resource: Uuid) -> Result<Option<String>, PlaceError> {
        let there = self.there();
        Ok(there.headers.get(&resource).and_then(|it| it.claim.clone()))
    }

    fn set_claim(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let mut there = self.there();
        let missing = || PlaceError::Missing(header_of(resource));
        let header = there.headers.get_mut(&resource).ok_or_else(missing)?;
        if header.claim.as_deref() != from {
            return Err(PlaceError::Changed(format!("claim of {resource}")));
        }
        header.claim = to.map(str::to_owned);
        Ok(())
    }

    fn create_layer(&self, new: NewLayer<'_>) -> Result<(), PlaceError> {
        let mut there = self.there();
        if there.layers.contains_key(&new.layer) {
            return Err(PlaceError::There(layer_of(new.layer)));
        }
        let layer = Layer {
            holders: [new.holder].into(),
            data_len: new.data_len,
        };
        there.layers.insert(new.layer, layer);
        Ok(())
    }

    fn grow_layer(&self, layer: Uuid, data_len: u64) -> Result<(), PlaceError> {
        let mut there = self.there();
        let missing = || PlaceError::Missing(layer_of(layer));
        let layer = there.layers.get_mut(&layer).ok_or_else(missing)?;
        layer.data_len = layer.data_len.max(data_len);
        Ok(())
    }

    fn hold(&self, layer: Uuid, holder: Uuid) -> Result<(), PlaceError> {
        let mut there = self.there();
        let missing = || PlaceError::Missing(layer_of(layer));
        let layer = there.layers.get_mut(&layer).ok_or_else(missing)?;
        layer.holders.insert(holder);
        Ok(())
    }

    fn let_go(&self, layer: Uuid, holder: Uuid) -> Result<bool, PlaceError> {
        let mut there = self.there();
        let Some(found) = there.layers.get_mut(&layer) else {
            return Ok(true);
        };
        found.holders.remove(&holder);
        let is_gone = found.holders.is_empty();
        if is_gone {
            there.layers.remove(&layer);
        }
        Ok(is_gone)
    }

    fn holders(&self, layer: Uuid) -> Result<Vec<Uuid>, PlaceError> {
        let there = self.there();
        let layer = there.layers.get(&layer);
        Ok(layer.map_or(Vec::new(), |it| it.holders.iter().copied().collect()))
    }
}
