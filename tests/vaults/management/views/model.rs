//! What an installation is to be after a change, and which refusals are due.

use std::collections::{BTreeMap, BTreeSet};

use super::change::{By, Change, Key, Kind};

/// The group of what the command line makes.
pub const DEFAULT: &str = "default";
pub const PLATFORM: &str = "EncryptionAtRestWithPlatformKey";
pub const CUSTOMER: &str = "EncryptionAtRestWithCustomerKey";
pub const BOTH: &str = "EncryptionAtRestWithPlatformAndCustomerKeys";

/// Why a change is refused, as far as both views tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Something that it names is not there.
    NotFound,
    /// Something else has the name.
    Taken,
    /// A key is disabled, or not granted.
    Key,
    /// Something needs it.
    InUse,
    /// It makes no sense.
    Invalid,
}

/// A disk, a snapshot or an image, whose layers are all under one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    pub group: String,
    pub tags: BTreeMap<String, String>,
    /// GiB.
    pub size: u64,
    pub set: Option<String>,
    pub twice: bool,
    /// What it shares layers with.
    pub source: Option<(Kind, String)>,
    /// What the API was told that it is of, and tells again.
    pub said: Option<(Kind, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub group: String,
    pub tags: BTreeMap<String, String>,
    pub key: Key,
    pub granted: bool,
    pub twice: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub groups: BTreeMap<String, BTreeMap<String, String>>,
    pub things: BTreeMap<(Kind, String), Thing>,
    pub sets: BTreeMap<String, Set>,
    /// Keys that are disabled.
    pub disabled: BTreeSet<Key>,
}

/// The tags that a change gives: one, or none.
fn tags(value: &str) -> BTreeMap<String, String> {
    let one = |value: &str| ("tag".to_owned(), value.to_owned());
    Some(value)
        .filter(|v| !v.is_empty())
        .map(one)
        .into_iter()
        .collect()
}

impl Model {
    /// Why a change is refused; nothing when it is done. `None` for one that is not made: what it does depends on
    /// more than is known here.
    pub fn due(&self, change: &Change, by: By) -> Option<BTreeSet<Cause>> {
        let mut causes = BTreeSet::new();
        let mut add = |cause, holds: bool| {
            if holds {
                causes.insert(cause);
            }
        };
        let thing = |kind: Kind, name: &str| self.things.get(&(kind, name.to_owned()));
        match change {
            Change::PutGroup { .. } => {}
            Change::DeleteGroup { name } => {
                add(Cause::NotFound, !self.groups.contains_key(name));
                if self.is_used_from_outside(name) || !self.may_merge() {
                    return None;
                }
            }
            Change::CreateSet {
                name, group, key, ..
            } => {
                self.add_place(
                    group,
                    self.sets.get(name).map(|set| &set.group),
                    by,
                    &mut add,
                )?;
                add(Cause::Key, self.disabled.contains(key));
            }
            Change::MoveSet { name, key } => {
                let set = self.sets.get(name)?;
                let same = set.key == *key;
                if same || !self.may_use(Some(name)) || self.disabled.contains(key) {
                    return None;
                }
            }
            Change::DeleteSet { name } => {
                add(
                    Cause::NotFound,
                    by == By::CommandLine && !self.sets.contains_key(name),
                );
                add(Cause::InUse, self.is_used(name));
            }
            Change::Grant { set, .. } => {
                self.sets.get(set)?;
            }
            Change::Enable { key, on } => {
                if self.disabled.contains(key) != *on {
                    return None;
                }
            }
            Change::Rotate { key } => {
                if self.disabled.contains(key) {
                    return None;
                }
            }
            Change::CreateDisk {
                name, group, set, ..
            } => {
                let there = thing(Kind::Disk, name).map(|thing| &thing.group);
                self.add_place(group, there, by, &mut add)?;
                add(
                    Cause::NotFound,
                    set.as_ref().is_some_and(|set| !self.sets.contains_key(set)),
                );
                add(Cause::Key, !self.may_use(set.as_deref()));
            }
            Change::Copy {
                kind,
                name,
                group,
                of,
            } => {
                let there = thing(*kind, name).map(|thing| &thing.group);
                self.add_place(group, there, by, &mut add)?;
                let of = self.things.get(of);
                // To the command line, what is no name may be a file.
                if of.is_none() && by == By::CommandLine && *kind != Kind::Snapshot {
                    return None;
                }
                add(Cause::NotFound, of.is_none());
                add(
                    Cause::Key,
                    of.is_some_and(|of| !self.may_use(of.set.as_deref())),
                );
            }
            Change::Resize { name, size } => {
                let disk = thing(Kind::Disk, name);
                add(Cause::NotFound, disk.is_none());
                if let Some(disk) = disk {
                    if disk.size == *size {
                        return None;
                    }
                    add(Cause::Invalid, *size < disk.size);
                    add(Cause::Key, !self.may_use(disk.set.as_deref()));
                }
            }
            Change::Move { kind, name, set } => {
                let thing = thing(*kind, name);
                add(Cause::NotFound, thing.is_none());
                add(
                    Cause::NotFound,
                    set.as_ref().is_some_and(|set| !self.sets.contains_key(set)),
                );
                add(Cause::Key, !self.may_use(set.as_deref()));
                if *kind == Kind::Image && by == By::Api {
                    return None;
                }
                if let Some(thing) = thing {
                    let moves = self.is_twice(set.as_deref()) != thing.twice;
                    if thing.set == *set || moves && by == By::Api {
                        return None;
                    }
                    add(Cause::Key, !self.may_use(thing.set.as_deref()));
                    add(Cause::Invalid, moves && *kind != Kind::Disk);
                }
            }
            Change::Tag { kind, name, .. } => add(Cause::NotFound, thing(*kind, name).is_none()),
            Change::Delete { kind, name } => {
                let there = thing(*kind, name).is_some();
                add(Cause::NotFound, by == By::CommandLine && !there);
                add(Cause::InUse, self.has_clones(*kind, name));
                if *kind != Kind::Disk && !self.may_merge() {
                    return None;
                }
            }
        }
        Some(causes)
    }

    /// Where something new is to be. `None` when it is there: then it is a change of that.
    fn add_place(
        &self,
        group: &str,
        there: Option<&String>,
        by: By,
        add: &mut impl FnMut(Cause, bool),
    ) -> Option<()> {
        if by == By::Api && there.is_some_and(|there| there == group) {
            return None;
        }
        add(
            Cause::NotFound,
            by == By::Api && !self.groups.contains_key(group),
        );
        add(Cause::Taken, there.is_some());
        Some(())
    }

    fn may_use(&self, set: Option<&str>) -> bool {
        let Some(set) = set.and_then(|set| self.sets.get(set)) else {
            return true;
        };
        set.granted && !self.disabled.contains(&set.key)
    }

    /// Whether layers that deleted snapshots leave can be merged now.
    fn may_merge(&self) -> bool {
        self.things
            .values()
            .all(|thing| self.may_use(thing.set.as_deref()))
    }

    fn is_twice(&self, set: Option<&str>) -> bool {
        set.and_then(|set| self.sets.get(set))
            .is_some_and(|set| set.twice)
    }

    fn is_used(&self, set: &str) -> bool {
        self.things
            .values()
            .any(|thing| thing.set.as_deref() == Some(set))
    }

    fn has_clones(&self, kind: Kind, name: &str) -> bool {
        let source = Some((kind, name.to_owned()));
        self.things.values().any(|thing| thing.source == source)
    }

    /// Whether something outside of a group needs something in it.
    fn is_used_from_outside(&self, group: &str) -> bool {
        self.things
            .values()
            .filter(|thing| thing.group != group)
            .any(|thing| {
                let set = thing.set.as_ref().and_then(|set| self.sets.get(set));
                let source = thing
                    .source
                    .as_ref()
                    .and_then(|source| self.things.get(source));
                set.is_some_and(|set| set.group == group)
                    || source.is_some_and(|source| source.group == group)
            })
    }

    /// What a change that is done leaves.
    pub fn apply(&mut self, change: &Change, by: By) {
        let place = |group: &String| match by {
            By::Api => group.clone(),
            By::CommandLine => DEFAULT.to_owned(),
        };
        match change {
            Change::PutGroup { name, tag } => {
                self.groups.insert(name.clone(), tags(tag));
            }
            Change::DeleteGroup { name } => {
                self.groups.remove(name);
                self.things.retain(|_, thing| thing.group != *name);
                self.sets.retain(|_, set| set.group != *name);
            }
            Change::CreateSet {
                name,
                group,
                key,
                twice,
            } => {
                let set = Set {
                    group: place(group),
                    tags: BTreeMap::new(),
                    key: *key,
                    granted: false,
                    twice: *twice,
                };
                self.sets.insert(name.clone(), set);
            }
            Change::MoveSet { name, key } => {
                self.sets
                    .entry(name.clone())
                    .and_modify(|set| set.key = *key);
            }
            Change::DeleteSet { name } => {
                self.sets.remove(name);
            }
            Change::Grant { set, on } => {
                self.sets
                    .entry(set.clone())
                    .and_modify(|set| set.granted = *on);
            }
            Change::Enable { key, on } => {
                match on {
                    true => self.disabled.remove(key),
                    false => self.disabled.insert(*key),
                };
            }
            Change::Rotate { .. } => {}
            Change::CreateDisk {
                name,
                group,
                size,
                set,
            } => {
                let disk = Thing {
                    group: place(group),
                    tags: BTreeMap::new(),
                    size: *size,
                    twice: self.is_twice(set.as_deref()),
                    set: set.clone(),
                    source: None,
                    said: None,
                };
                self.things.insert((Kind::Disk, name.clone()), disk);
            }
            Change::Copy {
                kind,
                name,
                group,
                of,
            } => {
                let from = self.things[of].clone();
                let new = Thing {
                    group: place(group),
                    tags: BTreeMap::new(),
                    source: (*kind == Kind::Disk).then(|| of.clone()),
                    said: (by == By::Api).then(|| of.clone()),
                    ..from
                };
                self.things.insert((*kind, name.clone()), new);
            }
            Change::Resize { name, size } => {
                let disk = self.things.entry((Kind::Disk, name.clone()));
                disk.and_modify(|disk| disk.size = *size);
            }
            Change::Move { kind, name, set } => {
                let twice = self.is_twice(set.as_deref());
                self.things
                    .entry((*kind, name.clone()))
                    .and_modify(|thing| {
                        if thing.twice != twice {
                            // Its data was copied.
                            thing.source = None;
                        }
                        thing.set.clone_from(set);
                        thing.twice = twice;
                    });
            }
            Change::Tag { kind, name, tag } => {
                let thing = self.things.entry((*kind, name.clone()));
                thing.and_modify(|thing| thing.tags = tags(tag));
            }
            Change::Delete { kind, name } => {
                self.things.remove(&(*kind, name.clone()));
            }
        }
    }
}
