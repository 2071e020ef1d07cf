//! The tables of a vault.

use rusqlite::{Connection, Error, OptionalExtension, Result, Row, ffi};

use crate::audit;
use database::sqlite::Schema;

/// What the database of a vault is called in messages.
pub const VAULT_DATABASE: &str = "key vault";

/// What tells the database of a vault from others, in SQLite and in PostgreSQL.
pub const VAULT_APPLICATION_ID: i32 = 0x5EA1_0BA7;

/// What makes the tables of a vault in PostgreSQL, and beside them those of its audit log. Each vault has them in a schema
/// of its own.
pub const VAULT_POSTGRES_STEPS: &[&str] = &[
    include_str!("postgres.sql"),
    include_str!("../audit/postgres.sql"),
];

/// Private keys are the only secrets in it, and they are sealed under the master key
/// (`sealed` = nonce ‖ ciphertext ‖ tag). A version's `seq` orders versions: the latest of a key
/// is the one that was made last. A deleted key keeps its versions and its name; `deleted_keys`
/// hides them. The audit log is only ever appended to. `key_uses` says who has used a key version
/// when, in the transaction of each record, and stays when records are archived; `due_retries` when
/// what is due and failed is tried again.
pub(crate) const SCHEMA: Schema = Schema {
    what: VAULT_DATABASE,
    application_id: VAULT_APPLICATION_ID,
    steps: &[
        |db| db.execute_batch(include_str!("version-1.sql")),
        |db| {
            db.execute_batch(include_str!("version-2.sql"))?;
            db.execute_batch(audit::TABLES)
        },
        |db| db.execute_batch(include_str!("version-3.sql")),
        |db| {
            refuse_names_that_differ_in_case(db)?;
            db.execute_batch(include_str!("version-4.sql"))
        },
        |db| db.execute_batch(include_str!("version-5.sql")),
        |db| {
            db.execute_batch(include_str!("version-6.sql"))?;
            let mut tables = audit::TABLES_2.iter();
            tables.try_for_each(|table| db.execute_batch(table))
        },
        |db| db.execute_batch(audit::TABLES_3),
        // From where the vault may be asked; without rules, from everywhere.
        |db| db.execute_batch("ALTER TABLE vault ADD COLUMN network TEXT"),
        // Since when the vault may lack what was in it before.
        |db| db.execute_batch("ALTER TABLE vault ADD COLUMN incomplete TEXT"),
    ],
};

/// Two keys whose names differ in case only would be one from version 4 on. Which of them is meant then
/// nobody can say, so the file stays as it is.
fn refuse_names_that_differ_in_case(db: &Connection) -> Result<()> {
    let sql = "SELECT min(name), max(name) FROM key_versions GROUP BY name COLLATE NOCASE \
               HAVING count(DISTINCT name) > 1 LIMIT 1";
    let names = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(String, String)> = db.query_row(sql, [], names).optional()?;
    match found {
        None => Ok(()),
        Some((one, other)) => Err(Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_CONSTRAINT_UNIQUE),
            Some(format!(
                "the keys '{one}' and '{other}' differ in case only, and this version of sealdisk \
                 compares names of keys without case, as Azure does; move the disks of one of them \
                 to another key, then delete and purge it, with the version of sealdisk that made it"
            )),
        )),
    }
}
