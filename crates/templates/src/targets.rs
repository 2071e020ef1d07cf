//! The resources of a template by all names that others call them: whatever its case.

use std::collections::HashMap;

use crate::error::shortened;

/// A resource that `dependsOn` and `reference` may name.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub id: String,
    pub name: String,
    pub kind: String,
    pub api_version: String,
    pub symbol: Option<String>,
    /// The loop that it is of, and its index.
    pub group: Option<(String, u64)>,
}

/// Lists of resources by a name in small letters.
type ByName = HashMap<String, Vec<usize>>;

#[derive(Debug, Default)]
pub(crate) struct Targets {
    list: Vec<Target>,
    /// What is looked at first comes first: ids, symbolic names, loops, types with names, names.
    by: [ByName; 5],
}

impl Targets {
    pub fn new(list: Vec<Target>) -> Self {
        let mut by: [ByName; 5] = Default::default();
        let mut note = |map: usize, name: &str, at: usize| {
            by[map]
                .entry(name.to_ascii_lowercase())
                .or_default()
                .push(at);
        };
        for (at, target) in list.iter().enumerate() {
            note(0, &target.id, at);
            if let Some(symbol) = &target.symbol {
                match &target.group {
                    Some((_, index)) => {
                        note(1, &format!("{symbol}[{index}]"), at);
                        note(2, symbol, at);
                    }
                    None => note(1, symbol, at),
                }
            }
            if let Some((group, _)) = &target.group {
                note(2, group, at);
            }
            if let Some(typed) = interleaved(&target.kind, &target.name) {
                note(3, &typed, at);
            }
            note(3, &format!("{}/{}", target.kind, target.name), at);
            note(4, &target.name, at);
        }
        for names in by.iter_mut().flat_map(HashMap::values_mut) {
            names.dedup();
        }
        Self { list, by }
    }

    pub fn get(&self, at: usize) -> Option<&Target> {
        self.list.get(at)
    }

    /// All resources of a loop, or the one of a name.
    pub fn all(&self, name: &str) -> &[usize] {
        let name = name.trim_matches('/').to_ascii_lowercase();
        let with_slash = format!("/{name}");
        let ids = self.by[0].get(&with_slash);
        let named = || self.by.iter().find_map(|by| by.get(&name));
        ids.or_else(named).map_or(&[], Vec::as_slice)
    }

    /// The one resource of a name.
    pub fn one(&self, name: &str) -> Result<Option<usize>, String> {
        match self.all(name) {
            [] => Ok(None),
            [at] => Ok(Some(*at)),
            _ => Err(format!(
                "The template reference '{}' is not valid: it is the name of several resources. Please use fully qualified resourceId.",
                shortened(name)
            )),
        }
    }
}

/// `Namespace/type/name/type/name` of a type with several parts.
fn interleaved(kind: &str, name: &str) -> Option<String> {
    let names: Vec<_> = name.split('/').collect();
    crate::functions::resource_id(kind, &names).ok()
}
