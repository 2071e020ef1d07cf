//! Management locks: what keeps a resource, a group or the whole subscription from being deleted or changed.
//!
//! A lock names what it is on by kind and name, so that it goes where that goes: into another group, to another name,
//! and away with it, by the database's own doing. Locks are of the control plane: what attached disks and vaults do
//! asks for none.

use serde::{Deserialize, Serialize};

use super::error::CatalogError;
use super::management::{ManagementCatalog, Touch};
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

/// Keeps everybody from putting a lock, and from changing anything else in the catalog, until it is dropped.
pub trait LocksHeld {}

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
    /// [`CatalogError::NotFound`] for one on what is being deleted.
    fn put_lock(&self, record: &LockRecord) -> Result<(), CatalogError>;

    /// Deletes a lock; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_lock(&self, target: &LockTarget, name: &str) -> Result<bool, CatalogError>;

    /// Refuses a change that a lock on a resource, its group or the subscription forbids. What is not there yet is in
    /// the group where it is about to be made. What the catalog deletes itself it refuses as well, in the transaction
    /// that does so: no lock comes in between.
    ///
    /// # Errors
    /// [`CatalogError::Locked`].
    fn refuse_locked(&self, kind: Kind, name: &str, change: Change) -> Result<(), CatalogError>;

    /// As [`refuse_locked`](LockCatalog::refuse_locked) for a change that is not the catalog's own doing: nobody puts a
    /// lock, or changes anything else in the catalog, until that is dropped. Whoever has it must not use the catalog,
    /// which would wait for ever.
    ///
    /// # Errors
    /// [`CatalogError::Locked`].
    fn hold_unlocked(
        &self,
        kind: Kind,
        name: &str,
        change: Change,
    ) -> Result<Box<dyn LocksHeld + '_>, CatalogError>;
}

/// Refuses a change of something in a group that one of these locks forbids.
pub(super) fn refuse(
    locks: &[Lock],
    (kind, name): (Kind, &str),
    group: &str,
    change: Change,
) -> Result<(), CatalogError> {
    let forbids =
        |lock: &&Lock| lock.record.level.forbids(change) && lock.is_over(kind, name, group);
    match locks.iter().find(forbids) {
        None => Ok(()),
        Some(lock) => Err(CatalogError::Locked {
            kind,
            name: name.into(),
            change: change.done(),
            lock: lock.said(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::super::contract::{Place, on_each};
    use super::super::{
        CatalogCopy, DEFAULT_GROUP, DatabaseCatalog, DepartedRecord, Departure, DiskRecord,
        DiskState, GroupRecord, LOCATION, Rev, VaultKind, VaultRecord,
    };
    use super::*;
    use crate::InstallationError;
    use crate::envelope::ResourceKind;

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
        on_each(|place| {
            let installation = place.installation();
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
        });
    }

    #[test]
    fn locks_go_with_what_they_are_on_and_outlive_the_catalog() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            let vault = VaultRecord {
                name: "alice".into(),
                url: "https://alice.example".into(),
                kind: VaultKind::Https {
                    ca: None,
                    token_endpoint: None,
                },
                created: OffsetDateTime::UNIX_EPOCH,
            };
            catalog.insert_vault(&vault).unwrap();
            let on = |name: &str| LockTarget::Resource(Kind::Vault, name.into());
            catalog
                .put_lock(&lock("a", on("ALICE"), LockLevel::ReadOnly))
                .unwrap();
            catalog
                .put_lock(&lock("b", on("bob"), LockLevel::CanNotDelete))
                .unwrap();
            // As one goes whose retention is over.
            catalog.forget_vault("alice").unwrap();
            let left = catalog.locks().unwrap();
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].record.name, "b");
            assert_eq!(left[0].group.as_deref(), Some(DEFAULT_GROUP));

            let Some(path) = place.in_file() else {
                return;
            };
            drop(installation);
            std::fs::remove_file(&path).unwrap();
            let copy = CatalogCopy::read(&path).unwrap().unwrap();
            let again = DatabaseCatalog::make_again(&path, &copy).unwrap();
            assert_eq!(again.locks().unwrap(), left);
        });
    }

    fn row(name: &str, state: DiskState) -> DiskRecord {
        DiskRecord {
            id: Uuid::new_v4(),
            kind: ResourceKind::Disk,
            name: name.into(),
            directory: "/nowhere".into(),
            size: 1 << 30,
            disk_encryption_set: None,
            key_url: "https://v.vault.localhost/keys/k/1".into(),
            layers: Vec::new(),
            created: OffsetDateTime::UNIX_EPOCH,
            state,
        }
    }

    /// Whoever deletes has asked for locks before; one that is put since counts.
    #[test]
    fn what_is_locked_is_not_deleted_in_the_catalog() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            let is_locked = |done: Result<(), CatalogError>| {
                assert!(matches!(done, Err(CatalogError::Locked { .. })), "{done:?}");
            };
            let ready = row("d", DiskState::Ready);
            let rev = catalog.insert_disk(&ready).unwrap();
            let deleting = DiskRecord {
                state: DiskState::Deleting,
                ..ready.clone()
            };
            let departed = DepartedRecord::new(&ready, None, Departure::Unregistered);
            let on_disk = LockTarget::Resource(Kind::Disk, "d".into());
            for target in [
                on_disk.clone(),
                LockTarget::Group(DEFAULT_GROUP.into()),
                LockTarget::Subscription,
            ] {
                catalog
                    .put_lock(&lock("l", target.clone(), LockLevel::CanNotDelete))
                    .unwrap();
                is_locked(catalog.update_disk(rev, &deleting).map(drop));
                is_locked(catalog.delete_disk(&ready, rev));
                is_locked(catalog.depart_disk(&ready, rev, &departed));
                is_locked(
                    catalog
                        .hold_unlocked(Kind::Disk, "d", Change::Delete)
                        .map(drop),
                );
                catalog.delete_lock(&target, "l").unwrap();
            }
            // What is being deleted goes, and has no lock of its own any more.
            let rev = catalog.update_disk(rev, &deleting).unwrap();
            let late = catalog.put_lock(&lock("l", on_disk, LockLevel::CanNotDelete));
            assert!(matches!(late, Err(CatalogError::NotFound { .. })));
            let all = lock("l", LockTarget::Subscription, LockLevel::ReadOnly);
            catalog.put_lock(&all).unwrap();
            catalog.delete_disk(&deleting, rev).unwrap();
            // So does what never was whole.
            let made = row("made", DiskState::Creating);
            let rev = catalog.insert_disk(&made).unwrap();
            catalog.delete_disk(&made, rev).unwrap();
        });
    }

    #[test]
    fn sets_identities_and_groups_are_not_deleted_while_they_are_locked() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            let is_locked = |done: Result<(), CatalogError>| {
                assert!(matches!(done, Err(CatalogError::Locked { .. })), "{done:?}");
            };
            installation.create_identity("alice").unwrap();
            let group = GroupRecord {
                name: "rg".into(),
                location: LOCATION.into(),
                tags: Default::default(),
                created: OffsetDateTime::UNIX_EPOCH,
            };
            catalog.put_group(&group).unwrap();
            let alice = catalog.identity("alice").unwrap();
            let all = lock("l", LockTarget::Subscription, LockLevel::CanNotDelete);
            catalog.put_lock(&all).unwrap();
            is_locked(catalog.delete_identity(&alice));
            is_locked(catalog.delete_group("rg").map(drop));
            is_locked(catalog.delete_des("s", Rev(1)));
            catalog.delete_lock(&LockTarget::Subscription, "l").unwrap();
            catalog
                .put_lock(&lock(
                    "l",
                    LockTarget::Group("RG".into()),
                    LockLevel::ReadOnly,
                ))
                .unwrap();
            is_locked(catalog.delete_group("rg").map(drop));
            catalog.delete_identity(&alice).unwrap();
        });
    }

    #[test]
    fn vaults_and_what_identities_trust_are_not_changed_while_they_are_locked() {
        on_each(|place| {
            let elsewhere = Place::file();
            let [installation, other] = [place, &elsewhere].map(Place::installation);
            let settings = vault::VaultSettings::default();
            installation.create_vault("kv1", &settings).unwrap();
            installation.create_identity("alice").unwrap();
            let subject = Uuid::new_v4();
            let trusts = |name: &str| {
                let trust = other.trust().unwrap();
                installation.add_federated_credential("alice", name, trust, subject)
            };
            let connects = |name: &str| {
                installation.connect_vault(name, "https://far.example:8443", None, None)
            };
            trusts("known").unwrap();
            connects("far").unwrap();
            let is_locked = |error: Option<InstallationError>| {
                assert!(
                    matches!(
                        error,
                        Some(InstallationError::Catalog(CatalogError::Locked { .. }))
                    ),
                    "{error:?}"
                );
            };
            let catalog = installation.catalog();
            let lock_all = |level| {
                catalog
                    .put_lock(&lock("l", LockTarget::Subscription, level))
                    .unwrap();
            };
            let place = vault::MasterPlace::Beside;
            lock_all(LockLevel::ReadOnly);
            is_locked(installation.reseal_vault("kv1", &place).err());
            is_locked(trusts("new").err());
            is_locked(connects("far").err());
            lock_all(LockLevel::CanNotDelete);
            is_locked(installation.disconnect_vault("far", |_| Ok(())).err());
            is_locked(
                installation
                    .delete_federated_credential("alice", "known")
                    .err(),
            );
            trusts("new").unwrap();
            connects("far").unwrap();
            installation.reseal_vault("kv1", &place).unwrap();
            catalog.delete_lock(&LockTarget::Subscription, "l").unwrap();
            installation.disconnect_vault("far", |_| Ok(())).unwrap();
            installation
                .delete_federated_credential("alice", "known")
                .unwrap();
        });
    }

    /// While something is deleted that is not the catalog's, a lock waits.
    #[test]
    fn no_lock_is_put_while_they_are_held() {
        on_each(|place| {
            let installation = place.installation();
            let other = place.installation();
            let held = installation
                .catalog()
                .hold_unlocked(Kind::Vault, "v", Change::Delete)
                .unwrap();
            let all = lock("l", LockTarget::Subscription, LockLevel::CanNotDelete);
            std::thread::scope(|scope| {
                let puts = scope.spawn(|| other.catalog().put_lock(&all).unwrap());
                std::thread::sleep(std::time::Duration::from_millis(100));
                assert!(!puts.is_finished());
                drop(held);
                puts.join().unwrap();
            });
            let refused = installation
                .catalog()
                .hold_unlocked(Kind::Vault, "v", Change::Delete);
            assert!(matches!(refused, Err(CatalogError::Locked { .. })));
            // It has not stayed in that transaction.
            assert_eq!(installation.catalog().locks().unwrap().len(), 1);
            let target = LockTarget::Subscription;
            assert!(installation.catalog().delete_lock(&target, "l").unwrap());
        });
    }
}
