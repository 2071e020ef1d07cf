//! Statements and transactions.

use std::ops::{ControlFlow, Deref};
use std::time::{Duration, Instant};

use crate::engine::{Engine, Mode};
use crate::error::{Error, ErrorKind};
use crate::patience::Patience;
use crate::row::{FromValue, Row};
use crate::value::Value;

/// What statements are run on: a [`Database`], or a [`Transaction`] of one. Each engine keeps what it has made of a
/// statement for the next time.
pub struct Connection {
    engine: Box<dyn Engine>,
}

impl Connection {
    /// Runs a statement; how many rows it has changed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        self.engine.execute(sql, values)
    }

    /// What is made of each row of a statement that changes nothing.
    ///
    /// # Errors
    /// [`Error`], or the first one of `parse`.
    pub fn select<T, E: From<Error>>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut parse: impl FnMut(&Row) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut found = Vec::new();
        self.visit(sql, values, |row| {
            found.push(parse(&row)?);
            Ok::<_, E>(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// What is made of the first row of a statement that changes nothing, if there is one.
    ///
    /// # Errors
    /// [`Error`], or that of `parse`.
    pub fn first<T, E: From<Error>>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        parse: impl FnOnce(&Row) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let mut first = None;
        self.visit(sql, values, |row| {
            first = Some(row);
            Ok::<_, E>(ControlFlow::Break(()))
        })?;
        first.as_ref().map(parse).transpose()
    }

    /// The first column of the first row, if there is one.
    ///
    /// # Errors
    /// [`Error`], also when the column is of another type.
    pub fn value<T: FromValue>(&self, sql: &str, values: &[Value<'_>]) -> Result<Option<T>, Error> {
        self.first(sql, values, |row| row.get(0))
    }

    /// The first column of the one row that there is always, of `count(*)` say.
    ///
    /// # Errors
    /// As [`Connection::value`], and when there is no row.
    pub fn the_value<T: FromValue>(&self, sql: &str, values: &[Value<'_>]) -> Result<T, Error> {
        let none = || Error::new(ErrorKind::Other, format!("there is no answer to: {sql}"));
        self.value(sql, values)?.ok_or_else(none)
    }

    /// Gives each row to `each`, until that has enough or fails.
    ///
    /// # Errors
    /// [`Error`], or that of `each`.
    pub fn visit<E: From<Error>>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut each: impl FnMut(Row) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let mut failed = None;
        self.engine.query(sql, values, &mut |row| match each(row) {
            Ok(flow) => flow,
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Has what is read until this is dropped be of one moment: in the transaction that is under way, or else in one to
    /// read. Unlike that of [`Database::transaction`] it is never begun again, so that what is read may be passed on at
    /// once. Nothing is to be changed in it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn moment(&self) -> Result<Moment<'_>, Error> {
        self.moment_within(|| self.engine.patience())
    }

    /// As [`Connection::moment`], in one attempt: for what may as well be left out when the database is away.
    ///
    /// # Errors
    /// [`Error`].
    pub fn moment_at_once(&self) -> Result<Moment<'_>, Error> {
        self.moment_within(|| Duration::ZERO)
    }

    fn moment_within(&self, patience: impl FnOnce() -> Duration) -> Result<Moment<'_>, Error> {
        let is_own = !self.engine.is_in_transaction();
        if is_own {
            begin(self, Mode::Read, &mut Patience::of(patience()))?;
        }
        Ok(Moment {
            connection: self,
            is_own,
        })
    }

    /// Has the operation that comes next be one that was begun at that time, and has waited for this connection since
    /// then: it waits for the database so much shorter.
    pub fn waited_since(&self, begun: Instant) {
        self.engine.spend_patience(begun.elapsed());
    }

    /// Makes what is on disk as small as what it holds, where the engine does not see to that by itself. To be called
    /// outside of a transaction.
    ///
    /// # Errors
    /// [`Error`]; nothing is lost then.
    pub fn shrink(&self) -> Result<(), Error> {
        self.engine.shrink()
    }

    /// Puts what was committed into the database itself, and from now on after so many pages, where the engine keeps it in
    /// a file beside that: the file stays small. To be called outside of a transaction.
    ///
    /// # Errors
    /// [`Error`]; nothing is lost then.
    pub fn limit_journal(&self, pages: u32) -> Result<(), Error> {
        self.engine.limit_journal(pages)
    }

    /// Overwrites what was replaced in the database and may still be in a file beside it, where the engine keeps one. To
    /// be called outside of a transaction.
    ///
    /// # Errors
    /// [`Error`]; of kind [`ErrorKind::Busy`] when others have read what was there for too long. It may be there still
    /// then.
    pub fn overwrite_journal(&self) -> Result<(), Error> {
        self.engine.overwrite_journal()
    }
}

/// Begins a transaction.
fn begin(db: &Connection, mode: Mode, patience: &mut Patience) -> Result<(), Error> {
    while let Err(error) = db.engine.begin(mode) {
        if !patience.lasts(&*db.engine) {
            return Err(error);
        }
    }
    Ok(())
}

/// Ends a transaction without a change.
fn end(db: &Connection) {
    if let Err(error) = db.engine.roll_back() {
        log::error!("a transaction does not end: {error}");
    }
}

/// What is read of a database at one moment: of [`Connection::moment`].
pub struct Moment<'a> {
    connection: &'a Connection,
    is_own: bool,
}

impl Deref for Moment<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        if self.is_own {
            end(self.connection);
        }
    }
}

/// An open database.
pub struct Database(Connection);

impl Database {
    pub(crate) fn of(engine: impl Engine + 'static) -> Self {
        Self(Connection {
            engine: Box::new(engine),
        })
    }

    /// Ends the threads and connections that it has, unless a transaction is under way: the next statement has them anew.
    /// For a process that is about to give up what only the threads give up that do so themselves.
    pub fn disconnect(&self) {
        self.engine.disconnect();
    }

    /// Runs statements of which all count or none do. They do when this has returned without an error, and don't when
    /// the error is one of `run`.
    ///
    /// # Errors
    /// [`Error`], or that of `run`.
    pub fn transaction<T, E: From<Error>>(
        &self,
        mode: Mode,
        mut run: impl FnMut(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut patience = Patience::of(self.engine.patience());
        loop {
            match self.attempt(mode, &mut patience, &mut run) {
                Err(_) if patience.lasts(&*self.engine) => {}
                done => return done,
            }
        }
    }

    fn attempt<T, E: From<Error>>(
        &self,
        mode: Mode,
        patience: &mut Patience,
        run: &mut impl FnMut(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = Transaction(Held::begin_within(self, mode, patience)?);
        let done = run(&transaction)?;
        transaction.0.commit()?;
        Ok(done)
    }
}

impl Deref for Database {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

/// A transaction of [`Database::transaction`].
pub struct Transaction<'a>(Held<&'a Database>);

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

/// A transaction that lasts until it is dropped, and then has changed nothing.
pub struct Held<D: Deref<Target = Database>> {
    database: D,
    is_open: bool,
}

impl<D: Deref<Target = Database>> Held<D> {
    /// Begins one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin(database: D, mode: Mode) -> Result<Self, Error> {
        let mut patience = Patience::of(database.engine.patience());
        Self::begin_within(database, mode, &mut patience)
    }

    fn begin_within(database: D, mode: Mode, patience: &mut Patience) -> Result<Self, Error> {
        begin(&database, mode, patience)?;
        Ok(Self {
            database,
            is_open: true,
        })
    }

    fn commit(mut self) -> Result<(), Error> {
        self.is_open = false;
        self.database.engine.commit()
    }
}

impl<D: Deref<Target = Database>> Deref for Held<D> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.database
    }
}

impl<D: Deref<Target = Database>> Drop for Held<D> {
    fn drop(&mut self) {
        if self.is_open {
            end(&self.database);
        }
    }
}
