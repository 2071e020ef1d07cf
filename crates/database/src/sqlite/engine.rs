//! Statements that SQLite runs.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql, ffi, params_from_iter};

use crate::connection::Database;
use crate::engine::{Engine, Mode};
use crate::error::{Error, ErrorKind};
use crate::row::{Head, Row};
use crate::sqlite::space::is_full;
use crate::value::Value;

impl From<Connection> for Database {
    fn from(connection: Connection) -> Self {
        Self::of(Sqlite(connection))
    }
}

struct Sqlite(Connection);

impl Engine for Sqlite {
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        let changed = self
            .0
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(values)));
        let changed = changed.map_err(|error| failed(&error))?;
        Ok(u64::try_from(changed).unwrap_or(u64::MAX))
    }

    fn query(
        &self,
        sql: &str,
        values: &[Value<'_>],
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut statement = self.0.prepare_cached(sql).map_err(|error| failed(&error))?;
        if !statement.readonly() {
            // Another engine may ask it again when a connection was lost.
            let what = format!("it changes something, and is asked as if it did not: {sql}");
            return Err(Error::new(ErrorKind::Other, what));
        }
        let head = Arc::new(Head {
            sql: sql.into(),
            columns: statement.column_names().map(String::from).collect(),
        });
        let sqlite = |error: rusqlite::Error| failed(&error);
        let mut rows = statement.query(params_from_iter(values)).map_err(sqlite)?;
        let mut number = 0;
        while let Some(found) = rows.next().map_err(sqlite)? {
            number += 1;
            let values = (0..head.columns.len()).map(|at| found.get_ref(at).map_err(sqlite));
            let row = Row {
                head: Arc::clone(&head),
                number,
                values: values
                    .map(|value| owned(value?))
                    .collect::<Result<_, Error>>()?,
            };
            if each(row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn begin(&self, mode: Mode) -> Result<(), Error> {
        let sql = match mode {
            Mode::Read => "BEGIN DEFERRED",
            // One at a time changes anything, and waits for the one before.
            Mode::Write | Mode::InTurn(_) | Mode::Alone => "BEGIN IMMEDIATE",
        };
        self.execute(sql, &[]).map(drop)
    }

    fn commit(&self) -> Result<(), Error> {
        let done = self.execute("COMMIT", &[]);
        if done.is_err() {
            let _ = self.roll_back();
        }
        done.map(drop)
    }

    fn roll_back(&self) -> Result<(), Error> {
        // SQLite has done so itself after some errors.
        if self.0.is_autocommit() {
            return Ok(());
        }
        self.execute("ROLLBACK", &[]).map(drop)
    }

    fn is_in_transaction(&self) -> bool {
        !self.0.is_autocommit()
    }

    fn is_repeatable(&self) -> bool {
        // Whoever changes something has waited for the one before, and is alone.
        false
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn spend_patience(&self, _time: Duration) {}

    fn give_up(&self) {}

    fn shrink(&self) -> Result<(), Error> {
        let done = self
            .0
            .execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);");
        done.map_err(|error| failed(&error))
    }

    fn limit_journal(&self, pages: u32) -> Result<(), Error> {
        let done = self
            .0
            .pragma_update(None, "wal_autocheckpoint", pages)
            .and_then(|()| {
                self.0
                    .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
            });
        done.map_err(|error| failed(&error))
    }

    fn overwrite_journal(&self) -> Result<(), Error> {
        // It says in a column that others were in the way, and is no error then.
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let hindered = self.0.query_row(sql, [], |row| row.get::<_, i64>(0));
        match hindered.map_err(|error| failed(&error))? {
            0 => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Busy,
                "others have read what was there before for too long",
            )),
        }
    }

    fn disconnect(&self) {
        // It is a file, which no thread of its own reads.
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn owned(value: ValueRef<'_>) -> Result<Value<'static>, Error> {
    let other = |what: String| Error::new(ErrorKind::Column, what);
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|e| other(e.to_string()))?;
            Value::Text(text.to_owned().into())
        }
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_owned().into()),
        ValueRef::Real(number) => return Err(other(format!("{number} is no whole number"))),
    })
}

/// What an error of SQLite means.
pub(super) fn failed(error: &rusqlite::Error) -> Error {
    let extended = error.sqlite_error().map(|e| e.extended_code);
    let kind = match (extended, error.sqlite_error_code()) {
        (
            Some(
                ffi::SQLITE_CONSTRAINT_PRIMARYKEY
                | ffi::SQLITE_CONSTRAINT_UNIQUE
                | ffi::SQLITE_CONSTRAINT_ROWID,
            ),
            _,
        ) => ErrorKind::Unique,
        (Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY), _) => ErrorKind::ForeignKey,
        (_, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) => ErrorKind::Busy,
        (_, Some(ErrorCode::ReadOnly)) => ErrorKind::ReadOnly,
        _ if is_full(error) => ErrorKind::Full,
        _ => ErrorKind::Other,
    };
    Error::new(kind, error.to_string())
}
