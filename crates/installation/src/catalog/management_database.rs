//! What the management API alone knows, in the catalog's database.

use database::{Mode, params};
use uuid::Uuid;

use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::lock_rows;
use super::locks::Change;
use super::management::{
    DEFAULT_GROUP, GroupRecord, ManagementCatalog, PlacementRecord, RoleAssignmentRecord,
};
use super::management_rows::{
    ASSIGNMENT, GROUP, PLACED_RESOURCES, PLACEMENT, insert_assignment, insert_group,
    insert_placement, is_copied, parse_assignment, parse_group, parse_placed, parse_placement,
};
use super::record::Kind;
use crate::envelope::ResourceKind;

impl ManagementCatalog for DatabaseCatalog {
    fn groups(&self) -> Result<Vec<GroupRecord>, CatalogError> {
        self.select(&format!("{GROUP} ORDER BY name"), &[], parse_group)
    }

    fn group(&self, name: &str) -> Result<Option<GroupRecord>, CatalogError> {
        let sql = format!("{GROUP} WHERE name = ?");
        Ok(self.select(&sql, params![name], parse_group)?.pop())
    }

    fn put_group(&self, record: &GroupRecord) -> Result<(), CatalogError> {
        let done = insert_group(&self.db(), record);
        self.copied(done)
    }

    fn delete_group(&self, name: &str) -> Result<bool, CatalogError> {
        let done = remove_group(self, name);
        self.copied(done)
    }

    fn placement(&self, kind: Kind, name: &str) -> Result<Option<PlacementRecord>, CatalogError> {
        let sql = format!("{PLACEMENT} WHERE kind = ? AND name = ?");
        let found = self.select(&sql, params![kind.as_str(), name], parse_placement)?;
        Ok(found.into_iter().next())
    }

    fn placements(&self) -> Result<Vec<PlacementRecord>, CatalogError> {
        self.select(PLACEMENT, &[], parse_placement)
    }

    fn placements_of(&self, kind: Kind) -> Result<Vec<PlacementRecord>, CatalogError> {
        let sql = format!("{PLACEMENT} WHERE kind = ?");
        self.select(&sql, params![kind.as_str()], parse_placement)
    }

    fn placed_resources(
        &self,
        kind: ResourceKind,
        group: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Option<PlacementRecord>)>, CatalogError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let kind = Kind::from(kind).as_str();
        let after = after.unwrap_or_default();
        self.select(
            PLACED_RESOURCES,
            params![kind, after, group, DEFAULT_GROUP, limit],
            parse_placed,
        )
    }

    fn put_placement(&self, record: &PlacementRecord) -> Result<(), CatalogError> {
        let done = insert_placement(&self.db(), record);
        match is_copied(record.kind) {
            true => self.copied(done),
            false => done,
        }
    }

    fn delete_placement(&self, kind: Kind, name: &str) -> Result<(), CatalogError> {
        let sql = "DELETE FROM placements WHERE kind = ? AND name = ?";
        self.db().execute(sql, params![kind.as_str(), name])?;
        Ok(())
    }

    fn name_of(&self, kind: Kind, name: &str) -> Result<Option<String>, CatalogError> {
        let sql = match kind {
            Kind::Vault => "SELECT name FROM vaults WHERE name = ?2 COLLATE NOCASE AND ?1 <> ''",
            Kind::DiskEncryptionSet => {
                "SELECT name FROM disk_encryption_sets WHERE name = ?2 COLLATE NOCASE AND ?1 <> ''"
            }
            Kind::Identity => {
                "SELECT name FROM identities WHERE name = ?2 COLLATE NOCASE AND ?1 <> ''"
            }
            Kind::Group => {
                "SELECT name FROM resource_groups WHERE name = ?2 COLLATE NOCASE AND ?1 <> ''"
            }
            Kind::Disk | Kind::Snapshot | Kind::Image => {
                "SELECT name FROM resources WHERE kind = ?1 AND name = ?2 COLLATE NOCASE"
            }
            Kind::RoleAssignment | Kind::FederatedCredential | Kind::DeviceLogin => {
                return Ok(None);
            }
        };
        let found = self.select(sql, params![kind.as_str(), name], |row| {
            Ok(row.get::<String>(0)?)
        })?;
        // The command line can have made two whose names differ in case only.
        let exact = found.iter().find(|found| *found == name);
        Ok(exact.or(found.first()).cloned())
    }

    fn role_assignments(&self) -> Result<Vec<RoleAssignmentRecord>, CatalogError> {
        let sql = format!("{ASSIGNMENT} ORDER BY scope, created");
        self.select(&sql, &[], parse_assignment)
    }

    fn roles_of(&self, principal: Uuid) -> Result<Vec<RoleAssignmentRecord>, CatalogError> {
        let sql = format!("{ASSIGNMENT} WHERE principal = ?");
        self.select(&sql, params![principal.to_string()], parse_assignment)
    }

    fn insert_role_assignment(&self, record: &RoleAssignmentRecord) -> Result<(), CatalogError> {
        let done = insert_assignment(&self.db(), record);
        self.copied(done)
    }

    fn delete_role_assignment(&self, id: Uuid) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM role_assignments WHERE id = ?";
        let done = self.db().execute(sql, params![id.to_string()]);
        self.copied(done.map(|count| count > 0).map_err(CatalogError::from))
    }
}

fn remove_group(catalog: &DatabaseCatalog, name: &str) -> Result<bool, CatalogError> {
    catalog.db().transaction(Mode::Write, |db| {
        lock_rows::refuse(db, Kind::Group, name, Change::Delete)?;
        let sql = "SELECT count(*) FROM placements WHERE in_group = ?";
        let count: i64 = db.the_value(sql, params![name])?;
        if count > 0 {
            let name = name.into();
            return Err(CatalogError::GroupInUse { name, count });
        }
        let sql = "DELETE FROM resource_groups WHERE name = ?";
        Ok(db.execute(sql, params![name])? > 0)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use time::OffsetDateTime;

    use super::super::contract::on_each;
    use super::super::{CatalogCopy, DEFAULT_GROUP, LOCATION, Touch};
    use super::*;

    fn touch() -> Touch {
        Touch {
            at: OffsetDateTime::UNIX_EPOCH,
            by: Uuid::nil(),
        }
    }

    fn placed(kind: Kind, name: &str, group: &str) -> PlacementRecord {
        PlacementRecord {
            kind,
            name: name.into(),
            group: group.into(),
            location: LOCATION.into(),
            tags: BTreeMap::new(),
            settings: json!({"a": 1}),
            created: touch(),
            changed: touch(),
        }
    }

    fn group(name: &str) -> GroupRecord {
        GroupRecord {
            name: name.into(),
            location: LOCATION.into(),
            tags: BTreeMap::new(),
            created: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_group_keeps_what_is_placed_in_it() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            assert_eq!(catalog.groups().unwrap()[0].name, DEFAULT_GROUP);
            let nowhere = catalog.put_placement(&placed(Kind::Disk, "d", "rg"));
            assert!(matches!(
                nowhere,
                Err(CatalogError::NotFound {
                    kind: Kind::Group,
                    ..
                })
            ));
            catalog.put_group(&group("RG")).unwrap();
            catalog
                .put_placement(&placed(Kind::Disk, "d", "rg"))
                .unwrap();
            assert_eq!(
                catalog.placement(Kind::Disk, "D").unwrap().unwrap().name,
                "d"
            );
            assert_eq!(catalog.placement(Kind::Image, "d").unwrap(), None);
            let refused = catalog.delete_group("rg");
            assert!(matches!(
                refused,
                Err(CatalogError::GroupInUse { count: 1, .. })
            ));
            catalog.delete_placement(Kind::Disk, "D").unwrap();
            assert!(catalog.delete_group("rg").unwrap());
            assert!(!catalog.delete_group("rg").unwrap());
        });
    }

    #[test]
    fn placement_and_roles_go_with_the_identity() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            let (alice, _) = installation.create_identity("alice").unwrap();
            let assignment = RoleAssignmentRecord {
                id: Uuid::new_v4(),
                scope: "/subscriptions/S".into(),
                role: Uuid::from_u128(1),
                principal: alice.object_id,
                principal_type: "ServicePrincipal".into(),
                created: touch(),
            };
            catalog.insert_role_assignment(&assignment).unwrap();
            let again = RoleAssignmentRecord {
                id: Uuid::new_v4(),
                scope: "/SUBSCRIPTIONS/s".into(),
                ..assignment.clone()
            };
            assert!(matches!(
                catalog.insert_role_assignment(&again),
                Err(CatalogError::Exists { .. })
            ));
            catalog
                .put_placement(&placed(Kind::Identity, "alice", DEFAULT_GROUP))
                .unwrap();
            assert_eq!(catalog.roles_of(alice.object_id).unwrap(), [assignment]);
            assert_eq!(
                catalog.name_of(Kind::Identity, "ALICE").unwrap().as_deref(),
                Some("alice")
            );
            installation.delete_identity("alice").unwrap();
            assert!(catalog.role_assignments().unwrap().is_empty());
            assert!(catalog.placements().unwrap().is_empty());
        });
    }

    #[test]
    fn a_catalog_that_is_made_again_has_groups_and_roles() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            catalog.put_group(&group("rg")).unwrap();
            let (alice, _) = installation.create_identity("alice").unwrap();
            catalog
                .put_placement(&placed(Kind::Identity, "alice", "rg"))
                .unwrap();
            let assignment = RoleAssignmentRecord {
                id: Uuid::new_v4(),
                scope: "/subscriptions/s".into(),
                role: Uuid::from_u128(1),
                principal: alice.object_id,
                principal_type: "ServicePrincipal".into(),
                created: touch(),
            };
            catalog.insert_role_assignment(&assignment).unwrap();
            let Some(path) = place.in_file() else {
                return;
            };
            drop(installation);
            std::fs::remove_file(&path).unwrap();
            let copy = CatalogCopy::read(&path).unwrap().unwrap();
            let again = DatabaseCatalog::make_again(&path, &copy).unwrap();
            assert_eq!(again.role_assignments().unwrap(), [assignment]);
            assert_eq!(
                again
                    .placement(Kind::Identity, "alice")
                    .unwrap()
                    .unwrap()
                    .group,
                "rg"
            );
            assert!(again.group("rg").unwrap().is_some());
        });
    }
}
