//! The rows of tables, from a file to a server.

use database::postgres::ServerUrl;
use database::{Connection, Database, Error, Mode, Row, Value, params};
use keys::{hex, sha256};

use super::error::MigrateError;

/// Rows of one statement. There may be 65,535 values.
const ROWS: usize = 200;
/// Rows that are read at a time of a table that has many.
const PAGE: usize = 10_000;
/// The tables that have many, with the column that their rows are numbered by.
const LONG: [(&str, &str); 1] = [("audit", "seq")];

/// Something that is moved.
pub(super) struct Part<'a> {
    /// What it is, for messages.
    pub(super) what: String,
    /// The file that it is in, which nobody changes.
    pub(super) file: &'a Connection,
    /// The database on the server, which nobody else uses.
    pub(super) server: &'a Database,
    /// Its tables, which the server has with the same columns, each behind those that its rows refer to.
    pub(super) tables: &'a [&'a str],
    /// The tables whose rows get numbers by themselves, with the column, and the number that is given next.
    pub(super) numbers: Vec<(&'a str, &'a str, i64)>,
    /// What has to hold of the file and there besides, such as the chain of an audit log.
    pub(super) verify: &'a dyn Fn(&Connection) -> Result<(), MigrateError>,
}

/// A table that was moved, and is the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedTable {
    /// What it is a table of.
    pub part: String,
    /// Its name.
    pub table: String,
    /// How many rows it has.
    pub rows: u64,
    /// The hash of all of them in hexadecimal, whichever order they come in.
    pub sha256: String,
}

/// What is in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    rows: u64,
    sha256: [u8; 32],
}

/// A table with its columns.
struct Table {
    name: String,
    columns: Vec<String>,
    /// The place and the name of the column that its rows are numbered by, if it has many.
    number: Option<(usize, &'static str)>,
}

/// Rows of a table.
type Rows = Vec<Vec<Value<'static>>>;

impl Part<'_> {
    /// Has the server have the same rows; those that it has already stay.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub(super) fn move_rows(&self, to: &ServerUrl) -> Result<Vec<MovedTable>, MigrateError> {
        (self.verify)(self.file)?;
        let mut tables = Vec::new();
        for name in self.tables {
            let table = Table::of(self.file, name)?;
            let content = table.content(self.file)?;
            tables.push((table, content));
        }
        for (table, content) in &tables {
            let fail = self.failed(&table.name, to);
            if table.content(self.server).map_err(&fail)? == *content {
                continue;
            }
            self.empty(&table.name).map_err(&fail)?;
            table.fill(self.file, self.server).map_err(&fail)?;
            log::info!("the table {} was moved: {} rows", table.name, content.rows);
        }
        for (table, column, next) in &self.numbers {
            self.go_on(table, column, *next)
                .map_err(self.failed(table, to))?;
        }
        self.compare(&tables, to)?;
        Ok(tables
            .into_iter()
            .map(|(table, content)| MovedTable {
                part: self.what.clone(),
                table: table.name,
                rows: content.rows,
                sha256: hex(&content.sha256),
            })
            .collect())
    }

    /// Takes all rows out of a table of the server, and out of those that refer to it: they are behind it, and get theirs
    /// anew.
    fn empty(&self, table: &str) -> Result<(), Error> {
        let sql = format!("TRUNCATE {table} CASCADE");
        self.server.execute(&sql, &[]).map(drop)
    }

    /// Has a table of the server go on with its numbers where the file's is.
    fn go_on(&self, table: &str, column: &str, next: i64) -> Result<(), Error> {
        let sql = format!(
            "SELECT setval(pg_get_serial_sequence('{table}', '{column}')::regclass, ?, false)"
        );
        let given: i64 = self.server.the_value(&sql, params![next])?;
        log::debug!("the table {table} goes on with {given}");
        Ok(())
    }

    /// Compares all tables, those of the server as of one moment.
    fn compare(&self, tables: &[(Table, Content)], to: &ServerUrl) -> Result<(), MigrateError> {
        self.server.transaction(Mode::Read, |server| {
            let server: &Connection = server;
            for (table, here) in tables {
                let there = table.content(server);
                let there = there.map_err(self.failed(&table.name, to))?;
                if there != *here {
                    return Err(MigrateError::Differs {
                        what: self.what.clone(),
                        table: table.name.clone(),
                        place: to.to_string(),
                        here: here.rows,
                        there: there.rows,
                    });
                }
            }
            (self.verify)(server)
        })
    }

    fn failed(&self, table: &str, to: &ServerUrl) -> impl Fn(Error) -> MigrateError + use<> {
        let (what, table, place) = (self.what.clone(), table.to_owned(), to.to_string());
        move |source| MigrateError::Table {
            what: what.clone(),
            table: table.clone(),
            place: place.clone(),
            source,
        }
    }
}

impl Table {
    /// A table of a file.
    fn of(file: &Connection, name: &str) -> Result<Self, Error> {
        let sql = "SELECT name FROM pragma_table_info(?) ORDER BY cid";
        let columns: Vec<String> = file.select(sql, params![name], |row| row.get(0))?;
        let number = LONG.iter().find(|(table, _)| *table == name);
        let number = number.and_then(|(_, column)| {
            let at = columns.iter().position(|found| found == column);
            Some((at?, *column))
        });
        Ok(Self {
            name: name.into(),
            columns,
            number,
        })
    }

    /// Some names of columns are words of PostgreSQL's.
    fn names(&self) -> String {
        let names = self.columns.iter().map(|name| format!("\"{name}\""));
        names.collect::<Vec<_>>().join(", ")
    }

    fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.names(), self.name)
    }

    fn row(&self, row: &Row) -> Result<Vec<Value<'static>>, Error> {
        let columns = 0..self.columns.len();
        columns.map(|at| row.get::<Value<'static>>(at)).collect()
    }

    /// Gives all rows to `each`: at once, or, where there may be many, in the order of their numbers and page by page.
    fn visit(
        &self,
        db: &Connection,
        mut each: impl FnMut(Rows) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some((at, column)) = self.number else {
            return each(db.select(&self.select(), &[], |row| self.row(row))?);
        };
        let sql = format!(
            "{} WHERE \"{column}\" > ? ORDER BY \"{column}\" LIMIT {PAGE}",
            self.select()
        );
        let mut after = i64::MIN;
        loop {
            let rows: Rows = db.select(&sql, params![after], |row| self.row(row))?;
            let is_last = rows.len() < PAGE;
            if let Some(Value::Integer(last)) = rows.last().and_then(|row| row.get(at)) {
                after = *last;
            }
            each(rows)?;
            if is_last {
                return Ok(());
            }
        }
    }

    fn content(&self, db: &Connection) -> Result<Content, Error> {
        let mut hashes = Vec::new();
        let (mut count, mut chained) = (0, [0; 32]);
        self.visit(db, |rows| {
            for row in rows {
                let hash = sha256(&bytes_of(&row));
                count += 1;
                match self.number {
                    // Whichever order they come in.
                    None => hashes.push(hash),
                    Some(_) => chained = sha256(&[chained, hash].concat()),
                }
            }
            Ok(())
        })?;
        hashes.sort_unstable();
        Ok(Content {
            rows: count,
            sha256: match self.number {
                None => sha256(&hashes.concat()),
                Some(_) => chained,
            },
        })
    }

    /// Puts all rows of the file into the table of the server, which has none.
    fn fill(&self, file: &Connection, server: &Database) -> Result<(), Error> {
        self.visit(file, |rows| {
            server.transaction(Mode::Write, |server| {
                for rows in rows.chunks(ROWS) {
                    let values: Vec<Value<'static>> = rows.iter().flatten().cloned().collect();
                    server.execute(&self.insert(rows.len()), &values)?;
                }
                Ok(())
            })
        })
    }

    /// The statement that puts so many rows in.
    fn insert(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let rows = vec![row; rows].join(", ");
        format!("INSERT INTO {} ({}) VALUES {rows}", self.name, self.names())
    }
}

/// A row in a form that no other row has.
fn bytes_of(row: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |kind: u8, content: &[u8]| {
        bytes.push(kind);
        bytes.extend((content.len() as u64).to_le_bytes());
        bytes.extend(content);
    };
    for value in row {
        match value {
            Value::Null => put(0, &[]),
            Value::Integer(number) => put(1, &number.to_le_bytes()),
            Value::Text(text) => put(2, text.as_bytes()),
            Value::Blob(blob) => put(3, &blob[..]),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_differ_have_other_bytes() {
        let text = |text: &'static str| Value::Text(text.into());
        let rows = [
            vec![],
            vec![Value::Null],
            vec![Value::Integer(0)],
            vec![Value::Integer(1)],
            vec![text("")],
            vec![text("ab"), text("c")],
            vec![text("a"), text("bc")],
            vec![Value::Blob(b"ab".as_slice().into())],
            vec![text("ab")],
        ];
        let mut bytes: Vec<_> = rows.iter().map(|row| bytes_of(row)).collect();
        bytes.sort();
        bytes.dedup();
        assert_eq!(bytes.len(), rows.len());
    }
}
