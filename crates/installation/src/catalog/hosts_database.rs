//! Hosts and attachments in the catalog's database.

use std::time::Duration;

use database::{ErrorKind, Mode, params};
use uuid::Uuid;

use super::columns::{missing, stale, uuid};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::host_rows::{
    MAKER, known_hosts, lease_seconds, parse_attachment, parse_host, parse_maker, seen,
    select_attachments, select_hosts,
};
use super::hosts::{
    AttachmentRecord, AttachmentState, HostCatalog, HostEntry, HostRecord, Maker, NewAttachment,
};
use super::operation_rows::{OPERATION, parse};
use super::operations::{OperationCatalog, OperationRecord, OperationState};
use super::record::Kind;
use crate::host::this_host_id;

/// Nothing of another machine that has the lease is changed. One statement, so that those who renew theirs at once are
/// not in each other's way.
const RENEW: &str = "
INSERT INTO hosts VALUES (?1, ?2, ?3, ?4, ?5, unixepoch(), unixepoch() + ?6, 0, ?7)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, machine = excluded.machine, boot = excluded.boot, version = excluded.version, evicted = 0,
    lease = CASE WHEN hosts.expires > unixepoch() THEN hosts.lease ELSE excluded.lease END,
    since = CASE WHEN hosts.expires > unixepoch() THEN hosts.since ELSE excluded.since END,
    expires = excluded.expires
WHERE hosts.expires <= unixepoch() OR (hosts.machine = excluded.machine AND hosts.boot = excluded.boot)";

/// Only the attachment that was looked at is replaced.
const PUT: &str = "
INSERT INTO attachments VALUES (?1, ?2, ?3, 1, ?4, ?5, unixepoch(), ?6)
ON CONFLICT (disk) DO UPDATE SET
    host = excluded.host, host_name = excluded.host_name, epoch = attachments.epoch + 1, state = excluded.state,
    attach = excluded.attach, since = excluded.since, storage_client = excluded.storage_client
WHERE attachments.epoch = ?7";

impl HostCatalog for DatabaseCatalog {
    fn is_shared(&self) -> bool {
        self.is_on_server()
    }

    fn renew_lease(&self, host: &HostEntry) -> Result<Uuid, CatalogError> {
        let renewed = self.db().execute(
            RENEW,
            params![
                host.id,
                host.name,
                host.machine,
                host.boot,
                Uuid::new_v4().to_string(),
                lease_seconds(),
                env!("CARGO_PKG_VERSION"),
            ],
        )?;
        let sql = "SELECT lease, expires FROM hosts WHERE id = ?";
        let found = self.db().first(sql, params![host.id], |row| {
            let expires: i64 = row.get(1)?;
            Ok::<_, CatalogError>((uuid(&host.name, row.text(0)?)?, expires))
        })?;
        match found {
            Some((lease, _)) if renewed > 0 => Ok(lease),
            Some((_, expires)) => Err(CatalogError::HostTaken {
                name: host.name.clone(),
                seen: seen(&host.name, expires)?,
            }),
            None => Err(CatalogError::NoHost {
                name: host.name.clone(),
            }),
        }
    }

    fn end_lease(&self, host: &HostEntry) -> Result<(), CatalogError> {
        let sql = "UPDATE hosts SET expires = unixepoch() \
                   WHERE id = ? AND machine = ? AND boot = ? AND expires > unixepoch()";
        let values = params![host.id, host.machine, host.boot];
        self.db().execute(sql, values)?;
        Ok(())
    }

    fn hosts(&self) -> Result<Vec<HostRecord>, CatalogError> {
        self.select(&known_hosts(), &[], parse_host)
    }

    fn hosts_called(&self, name: &str) -> Result<Vec<HostRecord>, CatalogError> {
        let sql = select_hosts("id = ?1 OR name = ?1");
        self.select(&sql, params![name], parse_host)
    }

    fn evict_host(&self, id: &str) -> Result<u64, CatalogError> {
        self.db().transaction(Mode::Write, |db| {
            let sql = "UPDATE hosts SET evicted = 1 WHERE id = ? AND expires <= unixepoch()";
            if db.execute(sql, params![id])? == 0 {
                let found = db.select(&select_hosts("id = ?"), params![id], parse_host)?;
                return Err(match found.into_iter().next() {
                    Some(host) => CatalogError::HostLives {
                        name: host.name,
                        seen: host.seen,
                    },
                    None => CatalogError::NoHost { name: id.into() },
                });
            }
            let sql = "UPDATE attachments SET state = ?, epoch = epoch + 1 WHERE host = ? AND state IN (?, ?)";
            let evicted = AttachmentState::Evicted.as_str();
            let [open, fencing] =
                [AttachmentState::Open, AttachmentState::Fencing].map(AttachmentState::as_str);
            Ok(db.execute(sql, params![evicted, id, open, fencing])?)
        })
    }

    fn attachment(&self, disk: Uuid) -> Result<Option<AttachmentRecord>, CatalogError> {
        let sql = select_attachments("disk = ?");
        let found = self.select(&sql, params![disk.to_string()], parse_attachment)?;
        Ok(found.into_iter().next())
    }

    fn attachments(&self, host: Option<&str>) -> Result<Vec<AttachmentRecord>, CatalogError> {
        match host {
            Some(host) => {
                let sql = select_attachments("host = ? AND state <> 'closed'");
                self.select(&sql, params![host], parse_attachment)
            }
            None => {
                let sql = select_attachments("state <> 'closed'");
                self.select(&sql, &[], parse_attachment)
            }
        }
    }

    fn put_attachment(&self, new: &NewAttachment, after: i64) -> Result<i64, CatalogError> {
        let disk = new.disk.to_string();
        let (host, host_name) = &new.host;
        let put = self.db().execute(
            PUT,
            params![
                disk,
                host,
                host_name,
                new.state.as_str(),
                new.attach.to_string(),
                new.storage_client,
                after,
            ],
        );
        match put {
            Ok(0) => Err(stale(Kind::Disk, &disk)),
            Ok(_) => Ok(after + 1),
            Err(error) if error.kind() == ErrorKind::ForeignKey => Err(missing(Kind::Disk, &disk)),
            Err(error) => Err(error.into()),
        }
    }

    fn close_attachment(&self, disk: Uuid, attach: Uuid) -> Result<bool, CatalogError> {
        let sql = "UPDATE attachments SET state = ? WHERE disk = ? AND attach = ? AND host = ?";
        let closed = self.db().execute(
            sql,
            params![
                AttachmentState::Closed.as_str(),
                disk.to_string(),
                attach.to_string(),
                this_host_id(),
            ],
        )?;
        Ok(closed > 0)
    }

    fn merges_here(&self) -> Result<Vec<Uuid>, CatalogError> {
        let sql = "SELECT layer FROM merges WHERE NOT EXISTS (
                SELECT 1 FROM layer_uses JOIN attachments ON attachments.disk = layer_uses.resource
                WHERE layer_uses.layer = merges.layer AND attachments.state <> 'closed' AND attachments.host <> ?
            ) ORDER BY layer";
        self.select(sql, params![this_host_id()], |row| {
            uuid("merges", row.text(0)?)
        })
    }

    fn maker(&self, resource: Uuid) -> Result<Option<Maker>, CatalogError> {
        let found = self.select(MAKER, params![resource.to_string()], parse_maker)?;
        Ok(found.into_iter().next())
    }

    fn own_operations(&self) -> Result<Vec<OperationRecord>, CatalogError> {
        if !self.is_shared() {
            return self.running_operations();
        }
        // Those of before that was noted are whose server begins first.
        let sql = format!(
            "{OPERATION} WHERE state = ? AND (host = ? OR host IS NULL) ORDER BY started, id"
        );
        let running = OperationState::Running.as_str();
        self.select(&sql, params![running, this_host_id()], parse)
    }

    fn adopt_operations(
        &self,
        without_lease: Duration,
    ) -> Result<Vec<OperationRecord>, CatalogError> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let since = i64::try_from(without_lease.as_secs()).unwrap_or(i64::MAX / 2);
        let running = OperationState::Running.as_str();
        let orphans = format!(
            "{OPERATION} WHERE state = ?1 AND host <> ?2 AND NOT EXISTS (
                 SELECT 1 FROM hosts WHERE hosts.id = operations.host AND hosts.expires + ?3 > unixepoch()
             ) ORDER BY started, id"
        );
        self.db().transaction(Mode::Write, |db| {
            let found = db.select(&orphans, params![running, this_host_id(), since], parse)?;
            for operation in &found {
                let sql = "UPDATE operations SET host = ? WHERE id = ?";
                db.execute(sql, params![this_host_id(), operation.id.to_string()])?;
            }
            Ok(found)
        })
    }

    fn another_goes_on(&self, target: &str, than: Uuid) -> Result<bool, CatalogError> {
        let sql =
            "SELECT count(*) FROM operations WHERE state = ? AND lower(target) = ? AND id <> ?";
        let running = OperationState::Running.as_str();
        let target = target.to_ascii_lowercase();
        let others: i64 = self
            .db()
            .the_value(sql, params![running, target, than.to_string()])?;
        Ok(others > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use time::OffsetDateTime;

    use super::super::contract::{Place, on_each};
    use super::super::management::Touch;
    use super::super::{Catalog, DiskRecord, DiskState, LayerUse, Stored};
    use super::*;
    use crate::envelope::ResourceKind;

    fn entry(id: &str, machine: &str, boot: &str) -> HostEntry {
        HostEntry {
            id: id.into(),
            name: format!("name of {id}"),
            machine: machine.into(),
            boot: boot.into(),
        }
    }

    /// As if that many seconds had passed for the leases, whatever the hosts' own clocks say.
    fn pass(catalog: &DatabaseCatalog, seconds: i64) {
        let sql = "UPDATE hosts SET since = since - ?1, expires = expires - ?1";
        catalog.db().execute(sql, params![seconds]).unwrap();
    }

    fn disk(catalog: &DatabaseCatalog, name: &str) -> Uuid {
        let record = DiskRecord {
            id: Uuid::new_v4(),
            kind: ResourceKind::Disk,
            name: name.into(),
            directory: PathBuf::from("/data").join(name),
            size: 1 << 20,
            disk_encryption_set: None,
            key_url: "https://v.vault.localhost/keys/k/0".into(),
            layers: Vec::new(),
            created: OffsetDateTime::UNIX_EPOCH,
            state: DiskState::Ready,
        };
        catalog.insert_disk(&record).unwrap();
        record.id
    }

    fn attachment(disk: Uuid, host: &str, attach: u128) -> NewAttachment {
        NewAttachment {
            disk,
            host: (host.into(), format!("name of {host}")),
            state: AttachmentState::Open,
            attach: Uuid::from_u128(attach),
            storage_client: None,
        }
    }

    #[test]
    fn a_lease_stays_the_same_until_it_has_ended() {
        on_each(|place| {
            let catalog = place.catalog();
            let (one, two) = (entry("1", "m1", "b1"), entry("2", "m2", "b2"));
            let lease = catalog.renew_lease(&one).unwrap();
            assert_ne!(catalog.renew_lease(&two).unwrap(), lease);
            pass(&catalog, lease_seconds() - 2);
            assert_eq!(catalog.renew_lease(&one).unwrap(), lease);
            let hosts = catalog.hosts().unwrap();
            assert!(hosts.iter().all(|host| host.lives), "{hosts:?}");
            // So it is for a host that was frozen, or whose database's clock was set.
            pass(&catalog, 3600);
            let hosts = catalog.hosts().unwrap();
            assert!(hosts.iter().all(|host| !host.lives), "{hosts:?}");
            assert_ne!(catalog.renew_lease(&one).unwrap(), lease);
            let found = catalog.hosts_called("name of 1").unwrap();
            assert_eq!(found, catalog.hosts_called("1").unwrap());
            assert!(found[0].lives && found[0].seen >= found[0].since);
            assert_eq!(found[0].version, env!("CARGO_PKG_VERSION"));
            catalog.end_lease(&one).unwrap();
            assert!(!catalog.hosts_called("1").unwrap()[0].lives);
        });
    }

    /// Of two machines that were given one name, or the same machine before its last boot.
    #[test]
    fn a_host_is_one_machine_at_a_time() {
        on_each(|place| {
            let catalog = place.catalog();
            let lease = catalog.renew_lease(&entry("1", "m1", "b1")).unwrap();
            for other in [entry("1", "m2", "b2"), entry("1", "m1", "b2")] {
                let refused = catalog.renew_lease(&other);
                assert!(
                    matches!(&refused, Err(CatalogError::HostTaken { name, .. }) if name == "name of 1"),
                    "{refused:?}"
                );
                // Nor does it end what is not its own.
                catalog.end_lease(&other).unwrap();
                let again = catalog.renew_lease(&entry("1", "m1", "b1"));
                assert_eq!(again.unwrap(), lease);
            }
            pass(&catalog, lease_seconds());
            let other = catalog.renew_lease(&entry("1", "m2", "b2")).unwrap();
            assert_ne!(other, lease);
            let refused = catalog.renew_lease(&entry("1", "m1", "b1"));
            assert!(matches!(refused, Err(CatalogError::HostTaken { .. })));
        });
    }

    #[test]
    fn each_attachment_has_the_next_epoch_and_one_of_those_who_are_at_once_has_it() {
        on_each(|place| {
            let catalog = place.catalog();
            let (disk, nowhere) = (disk(&catalog, "d"), Uuid::new_v4());
            assert_eq!(catalog.attachment(disk).unwrap(), None);
            let refused = catalog.put_attachment(&attachment(nowhere, "1", 1), 0);
            assert!(matches!(refused, Err(CatalogError::NotFound { .. })));
            let made = std::thread::scope(|scope| {
                let makers = [1, 2, 3, 4].map(|number: u128| {
                    scope.spawn(move || {
                        let catalog = place.catalog();
                        let new = attachment(disk, &number.to_string(), number);
                        catalog.put_attachment(&new, 0).is_ok()
                    })
                });
                makers.map(|maker| maker.join().unwrap())
            });
            assert_eq!(made.iter().filter(|made| **made).count(), 1);
            let first = catalog.attachment(disk).unwrap().unwrap();
            assert_eq!((first.epoch, first.state), (1, AttachmentState::Open));
            // It has never had a lease.
            assert_eq!((first.host_lives, first.host_seen), (None, None));
            let refused = catalog.put_attachment(&attachment(disk, "9", 9), 0);
            assert!(matches!(refused, Err(CatalogError::Changed { .. })));
            catalog.renew_lease(&entry("9", "m", "b")).unwrap();
            let epoch = catalog.put_attachment(&attachment(disk, "9", 9), 1);
            assert_eq!(epoch.unwrap(), 2);
            let second = catalog.attachment(disk).unwrap().unwrap();
            assert_eq!(second.host_lives, Some(true));
            assert_eq!(catalog.attachments(Some("9")).unwrap(), [second]);
            assert_eq!(catalog.hosts_called("9").unwrap()[0].disks, 1);
            assert!(catalog.attachments(Some(&first.host)).unwrap().is_empty());
            let Stored { rev, record } = catalog.disk("d").unwrap();
            catalog.delete_disk(&record, rev).unwrap();
            assert_eq!(catalog.attachment(disk).unwrap(), None);
        });
    }

    #[test]
    fn who_lets_go_of_a_disk_takes_nothing_from_who_has_it_since() {
        on_each(|place| {
            let catalog = place.catalog();
            let disk = disk(&catalog, "d");
            let mine = NewAttachment::here(disk, Uuid::from_u128(1), AttachmentState::Open);
            catalog.put_attachment(&mine, 0).unwrap();
            catalog
                .put_attachment(&attachment(disk, "other", 2), 1)
                .unwrap();
            for attach in [1, 2] {
                let attach = Uuid::from_u128(attach);
                assert!(!catalog.close_attachment(disk, attach).unwrap());
            }
            let back = NewAttachment::here(disk, Uuid::from_u128(3), AttachmentState::Open);
            assert_eq!(catalog.put_attachment(&back, 2).unwrap(), 3);
            assert!(catalog.attachment(disk).unwrap().unwrap().is_here());
            assert!(catalog.close_attachment(disk, back.attach).unwrap());
            assert!(catalog.attachments(None).unwrap().is_empty());
            let last = catalog.attachment(disk).unwrap().unwrap();
            assert_eq!((last.epoch, last.state), (3, AttachmentState::Closed));
        });
    }

    #[test]
    fn only_a_host_without_a_lease_is_evicted_and_its_attachments_go_with_it() {
        on_each(|place| {
            let catalog = place.catalog();
            let [open, closed] = ["open", "closed"].map(|name| disk(&catalog, name));
            let host = entry("1", "m", "b");
            let refused = catalog.evict_host("1");
            assert!(matches!(refused, Err(CatalogError::NoHost { .. })));
            catalog.renew_lease(&host).unwrap();
            for disk in [open, closed] {
                let new = attachment(disk, "1", 1);
                catalog.put_attachment(&new, 0).unwrap();
            }
            let close = NewAttachment {
                state: AttachmentState::Closed,
                ..attachment(closed, "1", 1)
            };
            catalog.put_attachment(&close, 1).unwrap();
            let refused = catalog.evict_host("1");
            assert!(matches!(refused, Err(CatalogError::HostLives { .. })));
            pass(&catalog, lease_seconds());
            assert_eq!(catalog.evict_host("1").unwrap(), 1);
            let evicted = catalog.attachment(open).unwrap().unwrap();
            assert_eq!(
                (evicted.state, evicted.epoch),
                (AttachmentState::Evicted, 2)
            );
            let hosts = catalog.hosts().unwrap();
            assert!(hosts[0].is_evicted && hosts[0].disks == 1, "{hosts:?}");
            let epoch = catalog.put_attachment(&attachment(open, "2", 2), 2);
            assert_eq!(epoch.unwrap(), 3);
            assert!(catalog.hosts().unwrap().is_empty());
            // Whoever comes back is one again.
            catalog.renew_lease(&host).unwrap();
            assert!(!catalog.hosts().unwrap()[0].is_evicted);
        });
    }

    fn operation(number: u128, target: &str) -> OperationRecord {
        let at = OffsetDateTime::UNIX_EPOCH;
        OperationRecord {
            id: Uuid::from_u128(number),
            deployment: None,
            target: target.into(),
            state: OperationState::Running,
            started: Touch {
                at,
                by: Uuid::nil(),
            },
            changed: at,
            request: json!(null),
            answer: json!({}),
        }
    }

    fn give(catalog: &DatabaseCatalog, operation: &OperationRecord, host: &str) {
        let sql = "UPDATE operations SET host = ? WHERE id = ?";
        let id = operation.id.to_string();
        catalog.db().execute(sql, params![host, id]).unwrap();
    }

    #[test]
    fn an_operation_is_its_hosts_until_that_has_had_no_lease_for_a_while() {
        const WHILE: Duration = Duration::from_secs(60);
        let on = |place: &Place, is_shared: bool| {
            let catalog = place.catalog();
            assert_eq!(catalog.is_shared(), is_shared);
            let (mine, theirs) = (operation(1, "/a"), operation(2, "/B"));
            for operation in [&mine, &theirs] {
                catalog.put_operation(operation).unwrap();
            }
            assert!(catalog.another_goes_on("/b", mine.id).unwrap());
            assert!(!catalog.another_goes_on("/b", theirs.id).unwrap());
            give(&catalog, &theirs, "other");
            // What it writes of itself is no word of whose it is.
            catalog.put_operation(&theirs).unwrap();
            let own = catalog.own_operations().unwrap();
            if !is_shared {
                assert_eq!(own, [mine, theirs]);
                assert!(catalog.adopt_operations(WHILE).unwrap().is_empty());
                return;
            }
            assert_eq!(own, [mine.clone()]);
            catalog.renew_lease(&entry("other", "m", "b")).unwrap();
            pass(&catalog, lease_seconds() + 55);
            assert!(catalog.adopt_operations(WHILE).unwrap().is_empty());
            pass(&catalog, 10);
            assert_eq!(catalog.adopt_operations(WHILE).unwrap(), [theirs.clone()]);
            assert_eq!(catalog.own_operations().unwrap(), [mine, theirs]);
            assert!(catalog.adopt_operations(WHILE).unwrap().is_empty());
        };
        on_each(|place| on(place, place.in_file().is_none()));
    }

    #[test]
    fn what_another_hosts_disk_has_is_merged_there() {
        on_each(|place| {
            let catalog = place.catalog();
            let id = disk(&catalog, "d");
            let Stored { rev, mut record } = catalog.disk("d").unwrap();
            let [layer, gone] = [1, 2].map(Uuid::from_u128);
            record.layers.push(LayerUse {
                layer,
                disk_encryption_set: None,
                key_url: record.key_url.clone(),
            });
            catalog.update_disk(rev, &record).unwrap();
            for layer in [layer, gone] {
                catalog.insert_merge(layer).unwrap();
            }
            assert_eq!(catalog.merges_here().unwrap(), [layer, gone]);
            let held = catalog.resources_with_layer(layer).unwrap();
            assert_eq!(
                held,
                catalog.resources_with_ids(&[id, Uuid::nil()]).unwrap()
            );
            assert_eq!(held.len(), 1);
            assert!(catalog.resources_with_layer(gone).unwrap().is_empty());
            catalog
                .put_attachment(&attachment(id, "other", 1), 0)
                .unwrap();
            assert_eq!(catalog.merges_here().unwrap(), [gone]);
            let here = NewAttachment::here(id, Uuid::nil(), AttachmentState::Open);
            catalog.put_attachment(&here, 1).unwrap();
            assert_eq!(catalog.merges_here().unwrap(), [layer, gone]);
        });
    }

    #[test]
    fn a_resource_has_the_host_that_makes_it() {
        on_each(|place| {
            let catalog = place.catalog();
            let disk = disk(&catalog, "d");
            let maker = catalog.maker(disk).unwrap().unwrap();
            assert!(maker.is_here() && maker.name.is_none() && !maker.lives);
            assert_eq!(catalog.maker(Uuid::new_v4()).unwrap(), None);
            let sql = "UPDATE resources SET host = 'other'";
            catalog.db().execute(sql, &[]).unwrap();
            catalog.renew_lease(&entry("other", "m", "b")).unwrap();
            let maker = catalog.maker(disk).unwrap().unwrap();
            assert!(!maker.is_here() && maker.lives && !maker.is_evicted);
            // Who deletes it works on it from then on.
            let Stored { rev, mut record } = catalog.disk("d").unwrap();
            let rev = catalog.update_disk(rev, &record).unwrap();
            assert!(!catalog.maker(disk).unwrap().unwrap().is_here());
            record.state = DiskState::Deleting;
            catalog.update_disk(rev, &record).unwrap();
            assert!(catalog.maker(disk).unwrap().unwrap().is_here());
        });
    }
}
