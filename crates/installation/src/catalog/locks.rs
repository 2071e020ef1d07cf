//! Management locks: what keeps a resource, a group or the whole subscription from being deleted or changed.
//!
//! A lock names what it is on by kind and name, so that it goes where that goes: into another group, to another name,
//! and away with it, by the database's own doing. Locks are of the control plane: what attached disks and vaults do
//! asks for none.

use serde::{Deserialize, Serialize};

use super::error::CatalogError;
use super::management::{DEFAULT_GROUP, ManagementCatalog, Touch};
use super::record::Kind;

/// The step of the catalog's schema that adds the table. `kind` is that of a resource, `group` or `subscription`.
pub(super) const TABLE: &str = "
CREATE TABLE locks (
    kind       TEXT NOT NULL,
    target     TEXT NOT NULL COLLATE NOCASE,
    name       TEXT NOT NULL COLLATE NOCASE,
    level      TEXT NOT NULL,
    notes      TEXT,
    created    TEXT NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (kind, target, name)
) STRICT;
CREATE TRIGGER locks_of_resource AFTER DELETE ON resources BEGIN
    DELETE FROM locks WHERE kind = OLD.kind AND target = OLD.name;
END;
CREATE TRIGGER locks_of_renamed AFTER UPDATE OF name ON resources WHEN OLD.name <> NEW.name BEGIN
    UPDATE OR REPLACE locks SET target = NEW.name WHERE kind = OLD.kind AND target = OLD.name;
END;
CREATE TRIGGER locks_of_vault AFTER DELETE ON vaults BEGIN
    DELETE FROM locks WHERE kind = 'vault' AND target = OLD.name;
END;
CREATE TRIGGER locks_of_set AFTER DELETE ON disk_encryption_sets BEGIN
    DELETE FROM locks WHERE kind = 'disk-encryption-set' AND target = OLD.name;
END;
CREATE TRIGGER locks_of_identity AFTER DELETE ON identities BEGIN
    DELETE FROM locks WHERE kind = 'identity' AND target = OLD.name;
END;
CREATE TRIGGER locks_of_group AFTER DELETE ON resource_groups BEGIN
    DELETE FROM locks WHERE kind = 'group' AND target = OLD.name;
END;
";

/// What a lock forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockLevel {
    /// To delete it.
    CanNotDelete,
    /// To change it, too.
    ReadOnly,
}

impl LockLevel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::CanNotDelete, Self::ReadOnly];

    /// Azure's word for it, which is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CanNotDelete => "CanNotDelete",
            Self::ReadOnly => "ReadOnly",
        }
    }

    /// What a word means.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == text)
    }

    /// Whether it keeps a change from being made.
    pub fn forbids(self, change: Change) -> bool {
        match change {
            Change::Delete => true,
            Change::Write => self == Self::ReadOnly,
        }
    }
}

/// What is about to happen to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is made or changed.
    Write,
    /// It goes.
    Delete,
}

impl Change {
    /// Azure's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Delete => "delete",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Write => "made or changed",
            Self::Delete => "deleted",
        }
    }
}

/// What a lock is on: that, and all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LockTarget {
    /// All that there is.
    Subscription,
    /// A resource group.
    Group(String),
    /// One resource.
    Resource(Kind, String),
}

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LockRecord {
    /// Its name, unique on what it is on, in any case.
    pub name: String,
    /// What it is on.
    pub target: LockTarget,
    /// What it forbids.
    pub level: LockLevel,
    /// What whoever made it says about it.
    pub notes: Option<String>,
    /// When it was made, and by whom.
    pub created: Touch,
}

/// A lock, and the group of what it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The lock.
    pub record: LockRecord,
    /// The group that it is on, or that the resource is in.
    pub group: Option<String>,
}

impl Lock {
    /// Whether it is on a resource, on its group or on the subscription.
    fn is_over(&self, kind: Kind, name: &str, group: &str) -> bool {
        match &self.record.target {
            LockTarget::Subscription => true,
            LockTarget::Group(locked) => locked.eq_ignore_ascii_case(group),
            LockTarget::Resource(of, locked) => *of == kind && locked.eq_ignore_ascii_case(name),
        }
    }

    /// For a message.
    fn said(&self) -> String {
        let LockRecord {
            name,
            target,
            level,
            ..
        } = &self.record;
        let on = match target {
            LockTarget::Subscription => "the subscription".to_owned(),
            LockTarget::Group(group) => format!("the resource group '{group}'"),
            LockTarget::Resource(..) => "it".to_owned(),
        };
        format!("the lock '{name}' ({}) is on {on}", level.as_str())
    }
}

/// The part of the catalog that is about locks.
pub trait LockCatalog: ManagementCatalog {
    /// All locks.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn locks(&self) -> Result<Vec<Lock>, CatalogError>;

    /// Adds a lock, or replaces level and notes of the one of that name there.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn put_lock(&self, record: &LockRecord) -> Result<(), CatalogError>;

    /// Deletes a lock; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_lock(&self, target: &LockTarget, name: &str) -> Result<bool, CatalogError>;

    /// Refuses a change that a lock on a resource, its group or the subscription forbids. What is not there yet is in
    /// the group where it is about to be made.
    ///
    /// # Errors
    /// [`CatalogError::Locked`].
    fn refuse_locked(&self, kind: Kind, name: &str, change: Change) -> Result<(), CatalogError> {
        let mut locks = self.locks()?;
        locks.retain(|lock| lock.record.level.forbids(change));
        if locks.is_empty() {
            return Ok(());
        }
        let placed = self.placement(kind, name)?;
        let group = placed.map_or_else(|| DEFAULT_GROUP.to_owned(), |placed| placed.group);
        match locks.iter().find(|lock| lock.is_over(kind, name, &group)) {
            None => Ok(()),
            Some(lock) => Err(CatalogError::Locked {
                kind,
                name: name.into(),
                change: change.done(),
                lock: lock.said(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::super::SqliteCatalog;
    use super::*;
    use crate::Installation;
    use crate::catalog::CatalogCopy;

    fn lock(name: &str, target: LockTarget, level: LockLevel) -> LockRecord {
        LockRecord {
            name: name.into(),
            target,
            level,
            notes: Some("why".into()),
            created: Touch {
                at: OffsetDateTime::UNIX_EPOCH,
                by: Uuid::nil(),
            },
        }
    }

    #[test]
    fn a_lock_is_on_what_it_names_and_on_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let catalog = installation.catalog();
        let allowed =
            |name: &str, change| catalog.refuse_locked(Kind::Identity, name, change).is_ok();
        for target in [
            LockTarget::Subscription,
            LockTarget::Group("DEFAULT".into()),
            LockTarget::Resource(Kind::Identity, "Alice".into()),
        ] {
            let others = matches!(target, LockTarget::Resource(..));
            catalog
                .put_lock(&lock("l", target.clone(), LockLevel::CanNotDelete))
                .unwrap();
            assert!(!allowed("alice", Change::Delete), "{target:?}");
            assert!(allowed("alice", Change::Write), "{target:?}");
            assert_eq!(allowed("bob", Change::Delete), others, "{target:?}");
            catalog
                .put_lock(&lock("L", target.clone(), LockLevel::ReadOnly))
                .unwrap();
            assert_eq!(catalog.locks().unwrap().len(), 1);
            assert!(!allowed("alice", Change::Delete) && !allowed("alice", Change::Write));
            assert!(catalog.delete_lock(&target, "l").unwrap());
            assert!(!catalog.delete_lock(&target, "l").unwrap());
            assert!(allowed("alice", Change::Delete), "{target:?}");
        }
        let elsewhere = lock("l", LockTarget::Group("rg".into()), LockLevel::ReadOnly);
        catalog.put_lock(&elsewhere).unwrap();
        assert!(allowed("alice", Change::Delete));
    }

    #[test]
    fn locks_go_with_what_they_are_on_and_outlive_the_catalog() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let catalog = installation.catalog();
        installation.create_identity("alice").unwrap();
        let on = |name: &str| LockTarget::Resource(Kind::Identity, name.into());
        catalog
            .put_lock(&lock("a", on("ALICE"), LockLevel::ReadOnly))
            .unwrap();
        catalog
            .put_lock(&lock("b", on("bob"), LockLevel::CanNotDelete))
            .unwrap();
        // Past the front that refuses it.
        let identity = catalog.identity("alice").unwrap();
        catalog.delete_identity(&identity).unwrap();
        let left = catalog.locks().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].record.name, "b");
        assert_eq!(left[0].group.as_deref(), Some(DEFAULT_GROUP));

        let path = dir.path().join("catalog.db");
        drop(installation);
        std::fs::remove_file(&path).unwrap();
        let copy = CatalogCopy::read(&path).unwrap().unwrap();
        let again = SqliteCatalog::make_again(&path, &copy).unwrap();
        assert_eq!(again.locks().unwrap(), left);
    }
}
