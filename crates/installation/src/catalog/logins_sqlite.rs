//! Logins of users in the SQLite catalog.

use rusqlite::{OptionalExtension, Row, TransactionBehavior, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{damaged, missing, parse_time, time_text, uuid};
use super::error::CatalogError;
use super::logins::{DeviceLogin, LoginCatalog};
use super::record::Kind;
use super::sqlite::SqliteCatalog;

const COLUMNS: &str = "user_code, device_hash, peer, resource, created, expires, identity";

fn parse(row: &Row<'_>) -> Result<DeviceLogin, CatalogError> {
    let user_code: String = row.get(0)?;
    let hash: Vec<u8> = row.get(1)?;
    let identity: Option<String> = row.get(6)?;
    Ok(DeviceLogin {
        device_hash: hash
            .try_into()
            .map_err(|_| damaged(&user_code, "device_hash"))?,
        peer: row.get(2)?,
        resource: row.get(3)?,
        created: parse_time(&user_code, &row.get::<_, String>(4)?)?,
        expires: parse_time(&user_code, &row.get::<_, String>(5)?)?,
        identity: identity.map(|id| uuid(&user_code, &id)).transpose()?,
        user_code,
    })
}

impl LoginCatalog for SqliteCatalog {
    fn password(&self, identity: Uuid) -> Result<Option<String>, CatalogError> {
        let sql = "SELECT hash FROM passwords WHERE identity = ?";
        let db = self.db();
        let found = db.query_row(sql, [identity.to_string()], |row| row.get(0));
        Ok(found.optional()?)
    }

    fn set_password(&self, identity: Uuid, hash: Option<&str>) -> Result<(), CatalogError> {
        let id = identity.to_string();
        let mut db = self.db();
        let db = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let known = "SELECT EXISTS (SELECT 1 FROM identities WHERE object_id = ?)";
        if !db.query_row(known, [&id], |row| row.get::<_, bool>(0))? {
            return Err(missing(Kind::Identity, &id));
        }
        match hash {
            Some(hash) => db.execute(
                "INSERT OR REPLACE INTO passwords VALUES (?, ?)",
                params![id, hash],
            )?,
            None => db.execute("DELETE FROM passwords WHERE identity = ?", [&id])?,
        };
        Ok(db.commit()?)
    }

    fn use_assertion(
        &self,
        hash: &[u8; 32],
        expires: OffsetDateTime,
    ) -> Result<bool, CatalogError> {
        let mut db = self.db();
        let db = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        db.execute(
            "DELETE FROM used_assertions WHERE expires <= ?",
            [OffsetDateTime::now_utc().unix_timestamp()],
        )?;
        let added = db.execute(
            "INSERT INTO used_assertions VALUES (?, ?) ON CONFLICT DO NOTHING",
            params![hash.as_slice(), expires.unix_timestamp()],
        )?;
        db.commit()?;
        Ok(added > 0)
    }

    fn insert_device_login(
        &self,
        login: &DeviceLogin,
        most: usize,
        most_of_peer: usize,
    ) -> Result<bool, CatalogError> {
        let code = &login.user_code;
        let mut db = self.db();
        let db = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Times are all in UTC and of one form, so that texts compare as they do.
        db.execute(
            "DELETE FROM device_logins WHERE expires <= ?",
            [time_text(code, login.created)?],
        )?;
        let (all, of_peer): (i64, i64) = db.query_row(
            "SELECT count(*), count(*) FILTER (WHERE peer = ?) FROM device_logins",
            [&login.peer],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let is_full = |waiting, most| usize::try_from(waiting).unwrap_or(usize::MAX) >= most;
        if is_full(all, most) || is_full(of_peer, most_of_peer) {
            db.commit()?;
            return Ok(false);
        }
        db.execute(
            &format!("INSERT INTO device_logins ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL)"),
            params![
                code,
                login.device_hash.as_slice(),
                login.peer,
                login.resource,
                time_text(code, login.created)?,
                time_text(code, login.expires)?,
            ],
        )?;
        db.commit()?;
        Ok(true)
    }

    fn device_logins(&self) -> Result<Vec<DeviceLogin>, CatalogError> {
        let sql = format!("SELECT {COLUMNS} FROM device_logins ORDER BY created");
        self.select(&sql, [], parse)
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
        let mut db = self.db();
        let db = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = {
            let sql = format!("SELECT {COLUMNS} FROM device_logins WHERE device_hash = ?");
            let mut statement = db.prepare(&sql)?;
            let mut rows = statement.query([device_hash.as_slice()])?;
            rows.next()?.map(parse).transpose()?
        };
        if let Some(login) = found.as_ref().filter(|login| login.identity.is_some()) {
            let sql = "DELETE FROM device_logins WHERE user_code = ?";
            db.execute(sql, [&login.user_code])?;
        }
        db.commit()?;
        Ok(found)
    }

    fn delete_device_login(&self, user_code: &str) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM device_logins WHERE user_code = ?";
        Ok(self.db().execute(sql, [user_code])? > 0)
    }
}
