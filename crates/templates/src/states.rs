//! What is known of resources while a deployment goes on.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::value::{Budget, Shared};

/// The states of resources, by their ids in small letters.
#[derive(Debug, Default)]
pub(crate) struct States {
    known: HashMap<String, Option<State>>,
}

#[derive(Debug)]
struct State {
    properties: Shared,
    full: Shared,
}

impl States {
    /// Notes a resource as ARM would answer it, or that there is none.
    pub fn note(
        &mut self,
        id: &str,
        api_version: &str,
        resource: Option<Value>,
        budget: &mut Budget,
    ) -> Result<(), String> {
        let state = match resource {
            None => None,
            Some(resource) => {
                let properties = resource.get("properties").cloned();
                let properties = properties.unwrap_or_else(|| Value::Object(Map::new()));
                Some(State {
                    properties: budget.admit(properties)?,
                    full: budget.admit(full(id, api_version, resource))?,
                })
            }
        };
        self.known.insert(id.to_ascii_lowercase(), state);
        Ok(())
    }

    /// The state of a resource: nothing if it is not known, and nothing inside if the resource does not exist.
    pub fn get(&self, id: &str, full: bool) -> Option<Option<Shared>> {
        let state = self.known.get(&id.to_ascii_lowercase())?.as_ref();
        Some(state.map(|state| {
            let shared = if full { &state.full } else { &state.properties };
            Shared::clone(shared)
        }))
    }
}

/// What `reference(…, 'full')` gives: the resource, and what Azure adds to it.
fn full(id: &str, api_version: &str, resource: Value) -> Value {
    let Value::Object(mut map) = resource else {
        return resource;
    };
    let part = |name: &str| {
        let mut parts = id.split('/');
        parts.find(|part| part.eq_ignore_ascii_case(name))?;
        parts.next().map(Value::from)
    };
    let added = [
        ("apiVersion", Some(Value::from(api_version))),
        ("resourceId", Some(Value::from(id))),
        ("subscriptionId", part("subscriptions")),
        ("resourceGroupName", part("resourceGroups")),
    ];
    for (name, value) in added {
        if let Some(value) = value {
            map.entry(name).or_insert(value);
        }
    }
    Value::Object(map)
}
