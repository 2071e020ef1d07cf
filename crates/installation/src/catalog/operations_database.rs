//! Operations of the management API in the catalog's database.

use database::{Mode, params};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{constraint, json, missing, time_text, uuid};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::operation_rows::{OPERATION, parse};
use super::operations::{OperationCatalog, OperationRecord, OperationState};
use super::record::Kind;

impl OperationCatalog for DatabaseCatalog {
    fn put_operation(&self, record: &OperationRecord) -> Result<(), CatalogError> {
        let id = record.id.to_string();
        let of = record.deployment.as_ref();
        let (group, name) = (of.map(|of| &of.group), of.map(|of| &of.name));
        self.db().transaction(Mode::Write, |db| {
            db.execute(
                "DELETE FROM operations WHERE in_group = ? AND deployment = ? AND id <> ?",
                params![group, name, id],
            )?;
            let put = db.execute(
                "INSERT INTO operations (id, in_group, deployment, target, state, started, started_by, changed, \
                 request, answer) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE \
                 SET state = excluded.state, changed = excluded.changed, answer = excluded.answer",
                params![
                    id,
                    group,
                    name,
                    record.target,
                    record.state.as_str(),
                    time_text(&id, record.started.at)?,
                    record.started.by.to_string(),
                    time_text(&id, record.changed)?,
                    json(&id, &record.request)?,
                    json(&id, &record.answer)?,
                ],
            );
            put.map_err(|e| match constraint(e, Kind::Group, &id, Some("")) {
                CatalogError::NotFound { .. } => {
                    missing(Kind::Group, group.map_or("", String::as_str))
                }
                error => error,
            })?;
            Ok(())
        })
    }

    fn operation(&self, id: Uuid) -> Result<Option<OperationRecord>, CatalogError> {
        let sql = format!("{OPERATION} WHERE id = ?");
        Ok(self.select(&sql, params![id.to_string()], parse)?.pop())
    }

    fn deployment(&self, group: &str, name: &str) -> Result<Option<OperationRecord>, CatalogError> {
        let sql = format!("{OPERATION} WHERE in_group = ? AND deployment = ?");
        Ok(self.select(&sql, params![group, name], parse)?.pop())
    }

    fn deployments(&self, group: &str) -> Result<Vec<Uuid>, CatalogError> {
        let sql = "SELECT id FROM operations WHERE in_group = ? ORDER BY changed DESC, id";
        self.select(sql, params![group], |row| uuid("operations", row.text(0)?))
    }

    fn running_operations(&self) -> Result<Vec<OperationRecord>, CatalogError> {
        let sql = format!("{OPERATION} WHERE state = ? ORDER BY started, id");
        self.select(&sql, params![OperationState::Running.as_str()], parse)
    }

    fn take_operation(
        &self,
        id: Uuid,
        known: &Value,
        request: &Value,
    ) -> Result<bool, CatalogError> {
        let sql = "UPDATE operations SET request = ? WHERE id = ? AND state = ? AND request = ?";
        let (id, running) = (id.to_string(), OperationState::Running.as_str());
        let (known, request) = (json(&id, known)?, json(&id, request)?);
        Ok(self
            .db()
            .execute(sql, params![request, id, running, known])?
            > 0)
    }

    fn delete_operation(&self, id: Uuid) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM operations WHERE id = ?";
        Ok(self.db().execute(sql, params![id.to_string()])? > 0)
    }

    fn cancel_operation(&self, id: Uuid) -> Result<bool, CatalogError> {
        let sql = "UPDATE operations SET cancelled = 1 WHERE id = ? AND state = ?";
        let running = OperationState::Running.as_str();
        Ok(self.db().execute(sql, params![id.to_string(), running])? > 0)
    }

    fn is_operation_cancelled(&self, id: Uuid) -> Result<bool, CatalogError> {
        let sql = "SELECT cancelled FROM operations WHERE id = ?";
        let found: Option<bool> = self.db().value(sql, params![id.to_string()])?;
        Ok(found.unwrap_or(true))
    }

    fn forget_operations(&self, ended_before: OffsetDateTime) -> Result<(), CatalogError> {
        let sql = "DELETE FROM operations WHERE deployment IS NULL AND state <> ? AND changed < ?";
        let before = time_text("operations", ended_before)?;
        let running = OperationState::Running.as_str();
        self.db().execute(sql, params![running, before])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::contract::{Place, on_each};
    use super::super::management::Touch;
    use super::super::operations::DeploymentName;
    use super::super::{GroupRecord, LOCATION, ManagementCatalog};
    use super::*;

    fn operation(number: u128, deployment: Option<(&str, &str)>) -> OperationRecord {
        OperationRecord {
            id: Uuid::from_u128(number),
            deployment: deployment.map(|(group, name)| DeploymentName {
                group: group.into(),
                name: name.into(),
            }),
            target: "/subscriptions/s".into(),
            state: OperationState::Running,
            started: Touch {
                at: OffsetDateTime::UNIX_EPOCH,
                by: Uuid::nil(),
            },
            changed: OffsetDateTime::UNIX_EPOCH,
            request: json!(null),
            answer: json!({"a": 1}),
        }
    }

    fn with_group(place: &Place, name: &str) -> DatabaseCatalog {
        let catalog = place.catalog();
        let group = GroupRecord {
            name: name.into(),
            location: LOCATION.into(),
            tags: BTreeMap::new(),
            created: OffsetDateTime::UNIX_EPOCH,
        };
        catalog.put_group(&group).unwrap();
        catalog
    }

    #[test]
    fn a_deployment_has_the_latest_operation_and_goes_with_its_group() {
        on_each(|place| {
            let catalog = with_group(place, "rg");
            let nowhere = catalog.put_operation(&operation(1, Some(("other", "d"))));
            assert!(matches!(nowhere, Err(CatalogError::NotFound { .. })));
            let first = operation(1, Some(("rg", "d")));
            catalog.put_operation(&first).unwrap();
            assert_eq!(catalog.deployment("RG", "D").unwrap(), Some(first));
            let second = operation(2, Some(("RG", "D")));
            catalog.put_operation(&second).unwrap();
            assert_eq!(catalog.operation(Uuid::from_u128(1)).unwrap(), None);
            assert_eq!(catalog.deployments("rg").unwrap(), [second.id]);
            assert_eq!(catalog.operation(second.id).unwrap(), Some(second));
            catalog.put_operation(&operation(3, None)).unwrap();
            assert!(catalog.delete_group("rg").unwrap());
            let left = catalog.running_operations().unwrap();
            assert_eq!(left, [operation(3, None)]);
        });
    }

    #[test]
    fn who_wants_it_to_end_is_not_forgotten_by_what_it_writes() {
        on_each(|place| {
            let catalog = with_group(place, "rg");
            let mut record = operation(1, Some(("rg", "d")));
            catalog.put_operation(&record).unwrap();
            assert!(!catalog.is_operation_cancelled(record.id).unwrap());
            assert!(catalog.cancel_operation(record.id).unwrap());
            record.answer = json!({"a": 2});
            catalog.put_operation(&record).unwrap();
            assert!(catalog.is_operation_cancelled(record.id).unwrap());
            record.state = OperationState::Canceled;
            catalog.put_operation(&record).unwrap();
            assert!(
                !catalog.cancel_operation(record.id).unwrap(),
                "it has ended"
            );
            assert!(catalog.delete_operation(record.id).unwrap());
            assert!(
                catalog.is_operation_cancelled(record.id).unwrap(),
                "it is gone"
            );
        });
    }

    #[test]
    fn one_of_those_who_go_on_with_it_has_it() {
        on_each(|place| {
            let catalog = with_group(place, "rg");
            let mut record = operation(1, None);
            record.request = json!({"work": {"b": [1.5, "ä"], "a": null}});
            catalog.put_operation(&record).unwrap();
            let [one, other] = ["one", "other"].map(|server| {
                let mut request = record.request.clone();
                request["server"] = json!(server);
                request
            });
            let take = |known: &Value, request: &Value| {
                catalog.take_operation(record.id, known, request).unwrap()
            };
            assert!(take(&record.request, &one));
            assert!(!take(&record.request, &other));
            assert!(take(&one, &other));
            let found = catalog.operation(record.id).unwrap().unwrap();
            assert_eq!(found.request, other);
            record.state = OperationState::Failed;
            catalog.put_operation(&record).unwrap();
            assert!(!take(&other, &one), "it has ended");
        });
    }

    #[test]
    fn what_ended_long_ago_is_forgotten_and_deployments_are_not() {
        on_each(|place| {
            let catalog = with_group(place, "rg");
            let mut ended = operation(1, None);
            ended.state = OperationState::Failed;
            let mut deployed = operation(2, Some(("rg", "d")));
            deployed.state = OperationState::Succeeded;
            for record in [&ended, &deployed, &operation(3, None)] {
                catalog.put_operation(record).unwrap();
            }
            catalog
                .forget_operations(OffsetDateTime::now_utc())
                .unwrap();
            assert_eq!(catalog.operation(ended.id).unwrap(), None);
            assert_eq!(catalog.operation(deployed.id).unwrap(), Some(deployed));
            assert!(catalog.operation(Uuid::from_u128(3)).unwrap().is_some());
        });
    }
}
