//! What the page has, and what has changed since it asked last.
//!
//! A state is sections of items with an id each. Whoever has a state shows its cursor, and is told the items that have
//! changed since and the ids of those that are gone: what stays the same is sent once.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// Ids of items that are gone that are kept; who has an older state is told all of the state.
const MAX_GONE: usize = 4096;

/// The items, and when each has changed.
#[derive(Debug)]
pub(crate) struct Store {
    /// Tells the cursors of this store from those of another.
    epoch: String,
    revision: u64,
    sections: BTreeMap<&'static str, BTreeMap<String, Item>>,
    gone: VecDeque<Gone>,
    /// The newest revision whose changes are not all known any more.
    forgotten: u64,
}

#[derive(Debug)]
struct Item {
    revision: u64,
    value: Value,
}

#[derive(Debug)]
struct Gone {
    revision: u64,
    section: &'static str,
    id: String,
}

/// What has changed.
#[derive(Debug, Serialize)]
pub(crate) struct Changes<'a> {
    /// What to ask with the next time.
    cursor: String,
    /// Whether this is all there is, whatever the client had.
    full: bool,
    sections: BTreeMap<&'static str, SectionChanges<'a>>,
}

#[derive(Debug, Default, Serialize)]
struct SectionChanges<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    put: BTreeMap<&'a str, &'a Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<&'a str>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Uuid::new_v4().simple().to_string(),
            revision: 0,
            sections: BTreeMap::new(),
            gone: VecDeque::new(),
            forgotten: 0,
        }
    }

    /// Has a section be these items and no others. One of an id that came before is passed over.
    pub(crate) fn put(
        &mut self,
        section: &'static str,
        items: impl IntoIterator<Item = (String, Value)>,
    ) {
        let revision = self.revision + 1;
        let mut before = self.sections.remove(section).unwrap_or_default();
        let mut now = BTreeMap::new();
        let mut is_changed = false;
        for (id, value) in items {
            let item = match before.remove(&id) {
                Some(item) if item.value == value => item,
                _ => {
                    is_changed = true;
                    Item { revision, value }
                }
            };
            now.entry(id).or_insert(item);
        }
        for id in before.into_keys().filter(|id| !now.contains_key(id)) {
            is_changed = true;
            self.gone.push_back(Gone {
                revision,
                section,
                id,
            });
        }
        while self.gone.len() > MAX_GONE {
            self.forgotten = self.gone.pop_front().map_or(0, |gone| gone.revision);
        }
        self.sections.insert(section, now);
        if is_changed {
            self.revision = revision;
        }
    }

    /// What has changed since a cursor; all where that is none of this store's, or too old.
    pub(crate) fn since(&self, cursor: &str) -> Changes<'_> {
        let since = self.revision_of(cursor);
        let mut sections: BTreeMap<&'static str, SectionChanges<'_>> = BTreeMap::new();
        for (name, items) in &self.sections {
            let is_new = |item: &Item| since.is_none_or(|since| item.revision > since);
            let new = items.iter().filter(|(_, item)| is_new(item));
            let put: BTreeMap<_, _> = new.map(|(id, item)| (id.as_str(), &item.value)).collect();
            if !put.is_empty() {
                sections.entry(name).or_default().put = put;
            }
        }
        if let Some(since) = since {
            // An item that came back is in `put`.
            let is_gone = |gone: &&Gone| {
                let items = self.sections.get(gone.section);
                gone.revision > since && items.is_none_or(|items| !items.contains_key(&gone.id))
            };
            for gone in self.gone.iter().filter(is_gone) {
                let section = sections.entry(gone.section).or_default();
                section.gone.push(&gone.id);
            }
        }
        Changes {
            cursor: format!("{}-{}", self.epoch, self.revision),
            full: since.is_none(),
            sections,
        }
    }

    fn revision_of(&self, cursor: &str) -> Option<u64> {
        let (epoch, revision) = cursor.rsplit_once('-')?;
        let revision: u64 = revision.parse().ok()?;
        let is_known = epoch == self.epoch && revision <= self.revision;
        (is_known && revision >= self.forgotten).then_some(revision)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(store: &mut Store, items: &[(&str, u64)]) {
        let items = items.iter();
        store.put(
            "disks",
            items.map(|(id, value)| ((*id).into(), json!(value))),
        );
    }

    /// The changes, and the cursor after them.
    fn since(store: &Store, cursor: &str) -> (Value, String) {
        let mut changes = serde_json::to_value(store.since(cursor)).unwrap();
        let cursor = changes["cursor"].take();
        (changes, cursor.as_str().unwrap().into())
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let mut store = Store::new();
        put(&mut store, &[("a", 1), ("b", 2)]);
        let (all, first) = since(&store, "");
        let both = json!({ "disks": { "put": { "a": 1, "b": 2 } } });
        assert_eq!(
            all,
            json!({ "cursor": null, "full": true, "sections": both })
        );
        put(&mut store, &[("a", 1), ("b", 2)]);
        let (none, cursor) = since(&store, &first);
        assert_eq!(none["sections"], json!({}));
        assert_eq!((none["full"].as_bool(), &cursor), (Some(false), &first));
        put(&mut store, &[("a", 1), ("b", 3), ("c", 4)]);
        let (some, second) = since(&store, &first);
        assert_eq!(
            some["sections"]["disks"],
            json!({ "put": { "b": 3, "c": 4 } })
        );
        put(&mut store, &[("b", 3)]);
        let (some, _) = since(&store, &second);
        assert_eq!(some["sections"]["disks"], json!({ "gone": ["a", "c"] }));
        put(&mut store, &[("a", 1), ("b", 3)]);
        let (some, _) = since(&store, &second);
        let back = json!({ "gone": ["c"], "put": { "a": 1 } });
        assert_eq!(some["sections"]["disks"], back, "it came back");
    }

    #[test]
    fn a_cursor_of_another_store_or_too_old_gets_all() {
        let mut store = Store::new();
        put(&mut store, &[("a", 1)]);
        let (_, old) = since(&store, "");
        let mut other = Store::new();
        put(&mut other, &[("a", 1)]);
        let (_, foreign) = since(&other, "");
        let ahead = old.replace("-1", "-99");
        for cursor in ["", "-", "x-1", &foreign, &ahead] {
            assert_eq!(since(&store, cursor).0["full"], json!(true), "{cursor}");
        }
        for number in 0..=MAX_GONE as u64 {
            put(&mut store, &[(&number.to_string(), number)]);
        }
        assert_eq!(since(&store, &old).0["full"], json!(true));
        let (_, cursor) = since(&store, "");
        put(&mut store, &[]);
        assert_eq!(since(&store, &cursor).0["full"], json!(false));
    }
}
