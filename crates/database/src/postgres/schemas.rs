//! Schemas of a database beside the one that a connection is in. Their names have letters, digits and underscores only, and
//! are not quoted.

use crate::connection::Connection;
use crate::error::Error;

/// Makes an empty schema.
///
/// # Errors
/// [`Error`]; also when there is one, and when the role may make none.
pub fn make_schema(db: &Connection, name: &str) -> Result<(), Error> {
    db.execute(&format!("CREATE SCHEMA {name}"), &[]).map(drop)
}

/// Gives a schema another name, under which whoever has connected by the old one finds nothing any more.
///
/// # Errors
/// [`Error`]; also when there is none, and when the other name is taken.
pub fn rename_schema(db: &Connection, from: &str, to: &str) -> Result<(), Error> {
    db.execute(&format!("ALTER SCHEMA {from} RENAME TO {to}"), &[])
        .map(drop)
}

/// Removes a schema, if it is there, with all that is in it.
///
/// # Errors
/// [`Error`].
pub fn drop_schema(db: &Connection, name: &str) -> Result<(), Error> {
    db.execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE"), &[])
        .map(drop)
}

/// Whether there is a schema.
///
/// # Errors
/// [`Error`].
pub fn has_schema(db: &Connection, name: &str) -> Result<bool, Error> {
    let found = schemas(db, name)?;
    Ok(found.iter().any(|found| found == name))
}

/// The names of all schemas that begin so, in order.
///
/// # Errors
/// [`Error`].
pub fn schemas(db: &Connection, beginning: &str) -> Result<Vec<String>, Error> {
    let sql = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname::text, ?) ORDER BY 1";
    db.select(sql, crate::params![beginning], |row| row.get(0))
}
