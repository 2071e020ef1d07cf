//! Access that was granted, in the catalog's database.

use database::{Mode, params};
use uuid::Uuid;

use super::access::{Access, AccessCatalog, AccessRecord};
use super::access_rows::{SELECT, parse};
use super::columns::{constraint, time_text};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::record::Kind;

impl AccessCatalog for DatabaseCatalog {
    fn insert_access(&self, record: &AccessRecord, most: usize) -> Result<bool, CatalogError> {
        let name = &record.name;
        let resource = record.resource.to_string();
        self.db().transaction(Mode::Write, |db| {
            let sql = "SELECT count(*) FROM access_grants WHERE resource = ?";
            let left = match record.access {
                // It takes the place of all.
                Access::Write => 0,
                Access::Read => db.the_value::<i64>(sql, params![resource])?,
            };
            if usize::try_from(left).unwrap_or(usize::MAX) >= most {
                return Ok(false);
            }
            if record.access == Access::Write {
                let sql = "DELETE FROM access_grants WHERE resource = ?";
                db.execute(sql, params![resource])?;
            }
            let inserted = db.execute(
                "INSERT INTO access_grants VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    record.id.to_string(),
                    resource,
                    record.access.as_str(),
                    record.token,
                    time_text(name, record.expires)?,
                    time_text(name, record.created.at)?,
                    record.created.by.to_string(),
                ],
            );
            inserted.map_err(|e| constraint(e, Kind::from(record.kind), name, None))?;
            Ok(true)
        })
    }

    fn access(&self, id: Uuid) -> Result<Option<AccessRecord>, CatalogError> {
        let sql = format!("{SELECT} WHERE access_grants.id = ?");
        Ok(self.select(&sql, params![id.to_string()], parse)?.pop())
    }

    fn accesses(&self, resource: Option<Uuid>) -> Result<Vec<AccessRecord>, CatalogError> {
        match resource {
            Some(id) => self.select(
                &format!("{SELECT} WHERE resource = ?"),
                params![id.to_string()],
                parse,
            ),
            None => self.select(SELECT, &[], parse),
        }
    }

    fn delete_access(&self, id: Uuid) -> Result<(), CatalogError> {
        let sql = "DELETE FROM access_grants WHERE id = ?";
        self.db().execute(sql, params![id.to_string()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::catalog::contract::on_each;
    use crate::catalog::{DiskRecord, DiskState, Rev, Touch};
    use crate::envelope::ResourceKind;

    #[test]
    fn a_grant_goes_with_its_disk_and_tells_its_name() {
        on_each(|place| {
            let installation = place.installation();
            let catalog = installation.catalog();
            let now = OffsetDateTime::UNIX_EPOCH;
            let mut disk = DiskRecord {
                id: Uuid::from_u128(1),
                kind: ResourceKind::Disk,
                name: "d".into(),
                directory: PathBuf::from("/nowhere"),
                size: 1 << 20,
                disk_encryption_set: None,
                key_url: "k".into(),
                layers: Vec::new(),
                created: now,
                state: DiskState::Ready,
            };
            let record = AccessRecord {
                id: Uuid::from_u128(2),
                resource: disk.id,
                kind: ResourceKind::Disk,
                name: "d".into(),
                access: Access::Write,
                token: [7; 32],
                expires: now + Duration::SECOND,
                created: Touch {
                    at: now,
                    by: Uuid::nil(),
                },
            };
            assert!(
                catalog.insert_access(&record, 64).is_err(),
                "there is no disk"
            );
            let rev = catalog.insert_disk(&disk).unwrap();
            assert!(catalog.insert_access(&record, 1).unwrap());
            let again = AccessRecord {
                id: Uuid::from_u128(3),
                ..record.clone()
            };
            assert!(catalog.insert_access(&again, 1).unwrap());
            assert_eq!(catalog.access(record.id).unwrap(), None, "one writes");
            assert!(catalog.insert_access(&record, 1).unwrap());
            let reader = AccessRecord {
                access: Access::Read,
                ..again
            };
            assert!(!catalog.insert_access(&reader, 1).unwrap(), "there is one");
            assert_eq!(catalog.access(reader.id).unwrap(), None);
            assert_eq!(catalog.access(record.id).unwrap(), Some(record.clone()));
            assert!(record.is_live(now) && !record.is_live(record.expires));
            disk.name = "e".into();
            assert_eq!(catalog.update_disk(rev, &disk).unwrap(), Rev(2));
            assert_eq!(catalog.accesses(Some(disk.id)).unwrap()[0].name, "e");
            assert!(catalog.accesses(Some(Uuid::nil())).unwrap().is_empty());
            catalog.delete_disk(&disk, Rev(2)).unwrap();
            assert!(catalog.accesses(None).unwrap().is_empty());
        });
    }
}
