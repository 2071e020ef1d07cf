//! A pool as a place of resources.

use std::sync::Arc;

use ceph::{CephError, Image, Operation, Pool};
use uuid::Uuid;

use super::lock::lock;
use super::names::{self, CLAIM, DATA_AT, DYING, HOLDER, LIVE, MAP_AT, RESOURCES, STATE};
use super::told;
use crate::PlaceError;
use crate::place::{MAX_HEADER_LEN, MAX_LISTED, NewLayer, Place};

/// How often it is tried to say that nobody has a layer any more, while others come and go.
const TRIES: u32 = 100;

/// A pool, or a namespace of one, in which nobody else reads objects by this handle.
pub(crate) struct RbdPlace(Arc<Pool>);

impl RbdPlace {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self(pool)
    }

    fn operation(&self) -> Operation {
        Operation::new(&self.0)
    }

    fn change(&self, object: &str, what: &str, operation: Operation) -> Result<(), PlaceError> {
        let changed = self.0.change(object, operation);
        changed.map_err(|error| told(&error, || what.into()))
    }

    /// Removes a layer that nobody has any more. Whoever finds one that is half removed does the rest.
    fn remove_layer(&self, layer: Uuid) -> Result<(), PlaceError> {
        let what = format!("layer {layer}");
        match self.0.remove_image(&names::image(layer)) {
            Err(error) if !error.is_missing() => return Err(told(&error, || what)),
            _ => {}
        }
        let gone = self.operation().if_value(STATE, DYING).remove();
        match self.change(&names::holders(layer), &what, gone) {
            // Somebody else has done the same.
            Ok(()) | Err(PlaceError::Missing(_)) => Ok(()),
            refused => refused,
        }
    }

    /// The image of a layer, which nobody else has open to write to it.
    fn alone(&self, layer: Uuid) -> Result<Image, PlaceError> {
        let image = Image::open(&self.0, &names::image(layer));
        let image = image.map_err(|error| told(&error, || format!("layer {layer}")))?;
        lock(&image, layer, None)?;
        Ok(image)
    }
}

/// A condition on a text, none of which is an empty one.
fn known(text: Option<&str>) -> &[u8] {
    text.unwrap_or_default().as_bytes()
}

fn put(operation: Operation, key: &str, value: Option<&str>) -> Operation {
    match value {
        Some(value) => operation.set(key, value.as_bytes()),
        None => operation.unset(key),
    }
}

fn text_of(bytes: &[u8], what: &str) -> Result<String, PlaceError> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned)
        .map_err(|_| PlaceError::Failed(format!("the {what} is no text")))
}

impl Place for RbdPlace {
    fn resources(&self, after: Option<Uuid>) -> Result<Vec<(Uuid, String)>, PlaceError> {
        let after = after.map_or(String::new(), |id| id.to_string());
        let found = self.0.omap_behind(RESOURCES, "", &after, MAX_LISTED);
        let found = found.map_err(|error| told(&error, || "list of resources".into()))?;
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        let named = found
            .values
            .iter()
            .map(|(key, entry)| -> Result<_, PlaceError> {
                let id = key
                    .parse()
                    .map_err(|_| PlaceError::Failed(format!("'{key}' is no resource")))?;
                Ok((id, text_of(entry, "entry of a resource")?))
            });
        named.collect()
    }

    fn set_entry(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let key = resource.to_string();
        let operation = self.operation().or_new().if_value(&key, known(from));
        let what = format!("entry of {resource}");
        self.change(RESOURCES, &what, put(operation, &key, to))
    }

    fn header(&self, resource: Uuid) -> Result<Option<Vec<u8>>, PlaceError> {
        let header = self.0.read(&names::header(resource), MAX_HEADER_LEN);
        header.map_err(|error| told(&error, || format!("header of {resource}")))
    }

    fn create_header(&self, resource: Uuid, header: &[u8]) -> Result<(), PlaceError> {
        let operation = self.operation().if_new().replace(header);
        let what = format!("header of {resource}");
        self.change(&names::header(resource), &what, operation)
    }

    fn replace_header(&self, resource: Uuid, from: &[u8], to: &[u8]) -> Result<(), PlaceError> {
        let operation = self.operation().if_there();
        let operation = operation.if_content(from).replace(to);
        let what = format!("header of {resource}");
        self.change(&names::header(resource), &what, operation)
    }

    fn remove_header(&self, resource: Uuid) -> Result<(), PlaceError> {
        let (object, what) = (names::header(resource), format!("header of {resource}"));
        let wiped = self.operation().if_there().replace(&[0; MAX_HEADER_LEN]);
        let removed = || self.operation().if_there().remove();
        let done = self.change(&object, &what, wiped);
        match done.and_then(|()| self.change(&object, &what, removed())) {
            Ok(()) | Err(PlaceError::Missing(_)) => Ok(()),
            refused => refused,
        }
    }

    fn claim(&self, resource: Uuid) -> Result<Option<String>, PlaceError> {
        let what = format!("claim of {resource}");
        let found = self.0.omap(&names::header(resource), CLAIM);
        let found = found.map_err(|error| told(&error, || what.clone()))?;
        let claim = found.and_then(|mut found| found.values.remove(CLAIM));
        claim.map(|claim| text_of(&claim, &what)).transpose()
    }

    fn set_claim(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let operation = self.operation().if_there().if_value(CLAIM, known(from));
        let what = format!("claim of {resource}");
        self.change(&names::header(resource), &what, put(operation, CLAIM, to))
    }

    fn create_layer(&self, new: NewLayer<'_>) -> Result<(), PlaceError> {
        let NewLayer {
            layer,
            holder,
            map_start,
            data_len,
        } = new;
        let what = format!("layer {layer}");
        let fail = |error: CephError| told(&error, || what.clone());
        let held = self.operation().if_new().set(STATE, LIVE);
        let held = held.set(&names::holder(holder), b"1");
        // First, so that whatever is half made is given up by its holder.
        self.change(&names::holders(layer), &what, held)?;
        let bytes = DATA_AT.saturating_add(data_len);
        let made = self.0.create_image(&names::image(layer), bytes);
        made.map_err(fail)?;
        let image = self.alone(layer)?;
        image.write(MAP_AT, map_start).map_err(fail)?;
        image.flush().map_err(fail)
    }

    fn grow_layer(&self, layer: Uuid, data_len: u64) -> Result<(), PlaceError> {
        let fail = |error: CephError| told(&error, || format!("layer {layer}"));
        let bytes = DATA_AT.saturating_add(data_len);
        let image = self.alone(layer)?;
        match image.size().map_err(fail)? >= bytes {
            true => Ok(()),
            false => image.resize(bytes).map_err(fail),
        }
    }

    fn hold(&self, layer: Uuid, holder: Uuid) -> Result<(), PlaceError> {
        let operation = self.operation().if_there().if_value(STATE, LIVE);
        let operation = operation.set(&names::holder(holder), b"1");
        let what = format!("layer {layer}");
        match self.change(&names::holders(layer), &what, operation) {
            // The last one has just let go of it.
            Err(PlaceError::Changed(what)) => Err(PlaceError::Missing(what)),
            held => held,
        }
    }

    fn let_go(&self, layer: Uuid, holder: Uuid) -> Result<bool, PlaceError> {
        let (object, what) = (names::holders(layer), format!("layer {layer}"));
        let operation = self.operation().if_there().unset(&names::holder(holder));
        match self.change(&object, &what, operation) {
            Err(PlaceError::Missing(_)) => return Ok(true),
            let_go => let_go?,
        }
        for _ in 0..TRIES {
            let found = self.0.omap(&object, "");
            let found = found.map_err(|error| told(&error, || what.clone()))?;
            let Some(found) = found else {
                return Ok(true);
            };
            let is_live = found.values.get(STATE).is_some_and(|state| state == LIVE);
            if is_live && found.values.keys().any(|key| key.starts_with(HOLDER)) {
                return Ok(false);
            }
            if !is_live {
                return self.remove_layer(layer).map(|()| true);
            }
            let dying = self.operation().if_version(found.version);
            match self.change(&object, &what, dying.set(STATE, DYING)) {
                Ok(()) => return self.remove_layer(layer).map(|()| true),
                // Somebody has come, or gone, meanwhile.
                Err(PlaceError::Changed(_) | PlaceError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(PlaceError::Changed(what))
    }

    fn holders(&self, layer: Uuid) -> Result<Vec<Uuid>, PlaceError> {
        let found = self.0.omap(&names::holders(layer), "");
        let found = found.map_err(|error| told(&error, || format!("layer {layer}")))?;
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        let is_live = found.values.get(STATE).is_some_and(|state| state == LIVE);
        let holders = found
            .values
            .keys()
            .filter_map(|key| key.strip_prefix(HOLDER));
        Ok(holders
            .filter(|_| is_live)
            .filter_map(|id| id.parse().ok())
            .collect())
    }
}
