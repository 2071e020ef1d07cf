//! Logins of users in the catalog's database.

use database::{Mode, Row, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{damaged, missing, parse_time, time_text, uuid};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::logins::{DeviceLogin, LoginCatalog};
use super::record::Kind;

const COLUMNS: &str = "user_code, device_hash, peer, resource, created, expires, identity";

fn parse(row: &Row) -> Result<DeviceLogin, CatalogError> {
    let user_code: String = row.get(0)?;
    let identity: Option<String> = row.get(6)?;
    Ok(DeviceLogin {
        device_hash: row.get(1).map_err(|e| damaged(&user_code, e))?,
        peer: row.get(2)?,
        resource: row.get(3)?,
        created: parse_time(&user_code, row.text(4)?)?,
        expires: parse_time(&user_code, row.text(5)?)?,
        identity: identity.map(|id| uuid(&user_code, &id)).transpose()?,
        user_code,
    })
}

impl LoginCatalog for DatabaseCatalog {
    fn password(&self, identity: Uuid) -> Result<Option<String>, CatalogError> {
        let sql = "SELECT hash FROM passwords WHERE identity = ?";
        Ok(self.db().value(sql, params![identity.to_string()])?)
    }

    fn set_password(&self, identity: Uuid, hash: Option<&str>) -> Result<(), CatalogError> {
        let id = identity.to_string();
        self.db().transaction(Mode::Write, |db| {
            let known = "SELECT EXISTS (SELECT 1 FROM identities WHERE object_id = ?)";
            if !db.the_value(known, params![id])? {
                return Err(missing(Kind::Identity, &id));
            }
            match hash {
                Some(hash) => db.execute(
                    "INSERT INTO passwords VALUES (?, ?) \
                     ON CONFLICT (identity) DO UPDATE SET hash = excluded.hash",
                    params![id, hash],
                )?,
                None => db.execute("DELETE FROM passwords WHERE identity = ?", params![id])?,
            };
            Ok(())
        })
    }

    fn use_assertion(
        &self,
        hash: &[u8; 32],
        expires: OffsetDateTime,
    ) -> Result<bool, CatalogError> {
        self.db().transaction(Mode::Write, |db| {
            db.execute(
                "DELETE FROM used_assertions WHERE expires <= ?",
                params![OffsetDateTime::now_utc().unix_timestamp()],
            )?;
            let added = db.execute(
                "INSERT INTO used_assertions VALUES (?, ?) ON CONFLICT DO NOTHING",
                params![hash, expires.unix_timestamp()],
            )?;
            Ok(added > 0)
        })
    }

    fn insert_device_login(
        &self,
        login: &DeviceLogin,
        most: usize,
        most_of_peer: usize,
    ) -> Result<bool, CatalogError> {
        let code = &login.user_code;
        let is_full = |waiting: i64, most| usize::try_from(waiting).unwrap_or(usize::MAX) >= most;
        self.db().transaction(Mode::Write, |db| {
            // Times are all in UTC and of one form, so that texts compare as they do.
            db.execute(
                "DELETE FROM device_logins WHERE expires <= ?",
                params![time_text(code, login.created)?],
            )?;
            let all = db.the_value("SELECT count(*) FROM device_logins", &[])?;
            let of_peer = "SELECT count(*) FROM device_logins WHERE peer = ?";
            let of_peer = db.the_value(of_peer, params![login.peer])?;
            if is_full(all, most) || is_full(of_peer, most_of_peer) {
                return Ok(false);
            }
            db.execute(
                &format!("INSERT INTO device_logins ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL)"),
                params![
                    code,
                    login.device_hash,
                    login.peer,
                    login.resource,
                    time_text(code, login.created)?,
                    time_text(code, login.expires)?,
                ],
            )?;
            Ok(true)
        })
    }

    fn device_logins(&self) -> Result<Vec<DeviceLogin>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM device_logins ORDER BY created");
        self.select(&sql, &[], parse)
    }

    fn approve_device_login(&self, user_code: &str, identity: Uuid) -> Result<bool, CatalogError> {
        let approved = self.db().execute(
            "UPDATE device_logins SET identity = ? WHERE user_code = ? AND identity IS NULL",
            params![identity.to_string(), user_code],
        )?;
        Ok(approved > 0)
    }

    fn take_device_login(
        &self,
        device_hash: &[u8; 32],
    ) -> Result<Option<DeviceLogin>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM device_logins WHERE device_hash = ?");
        self.db().transaction(Mode::Write, |db| {
            let found = db.first(&sql, params![device_hash], parse)?;
            if let Some(login) = found.as_ref().filter(|login| login.identity.is_some()) {
                let sql = "DELETE FROM device_logins WHERE user_code = ?";
                db.execute(sql, params![login.user_code])?;
            }
            Ok(found)
        })
    }

    fn delete_device_login(&self, user_code: &str) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM device_logins WHERE user_code = ?";
        Ok(self.db().execute(sql, params![user_code])? > 0)
    }
}
