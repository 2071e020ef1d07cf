//! Transactions that PostgreSQL runs, and what becomes of them when a connection is lost.
//!
//! Who changes something does so in a serializable transaction, and has to bear that it fails when somebody else was
//! faster. Where many change the same, that would be whoever is slower, again and again: they wait for each other with a
//! lock of a table ([`Mode::InTurn`]), which is taken before anything is looked at. A connection that was lost before the
//! end of a transaction has changed nothing. When it is lost while a commit is under way, what became of that is found
//! out: each transaction leaves its number in a row of its connection, in `sealdisk_commits`. Whoever changes that row
//! afterwards has waited for the transaction to end, and reads whether it counted; so that is known even when the server
//! has crashed, or another one has taken its place.
//!
//! By the same row it is seen, after a reconnection, that a server does not have what was said to be durable: a standby
//! that was behind has taken the place of the one that had said so. Whoever relies on it is told.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::address::Address;
use super::schema::Schema;
use super::session::{About, Connected, Session};
use crate::connection::Database;
use crate::engine::{Engine, Mode};
use crate::error::{Error, ErrorKind};
use crate::patience::Patience;
use crate::row::Row;
use crate::value::Value;

/// A database on a server.
pub(super) struct Postgres {
    address: Arc<Address>,
    schema: Schema,
    connected: RefCell<Option<Connected>>,
    /// The transaction that is under way.
    open: Cell<Option<Open>>,
    is_repeatable: Cell<bool>,
    /// Whether that is because there is no connection.
    is_away: Cell<bool>,
    /// When the server had been away for as long as anybody waits, if it has not answered since.
    gave_up: Cell<Option<Instant>>,
    /// What the next operation has waited before it came here.
    spent: Cell<Duration>,
    /// How many transactions have begun to change something: the number of the last one.
    number: Cell<u64>,
    /// The last transaction that was said to be durable.
    durable: RefCell<Option<Durable>>,
    /// That one was lost, until whoever changes something is told.
    is_lost: Cell<bool>,
}

/// For how long the row of a connection is sure to be there: `open` removes those of a day ago.
const KEPT: Duration = Duration::from_secs(12 * 3600);

/// For how long nobody waits for a server that was waited for in vain: each tries once. Those who wait for one connection
/// would each wait as long as the one before, and the last of them for all of that.
const AWAY: Duration = Duration::from_secs(5);

/// A transaction that was said to be durable.
#[derive(Debug, Clone)]
struct Durable {
    /// The id of its connection.
    connection: String,
    number: i64,
    at: SystemTime,
}

#[derive(Clone, Copy)]
struct Open {
    mode: Mode,
    /// What a statement of it has failed with.
    failed: Option<ErrorKind>,
}

impl Postgres {
    pub(super) fn over(address: Arc<Address>, schema: Schema, connected: Connected) -> Database {
        Database::of(Self {
            address,
            schema,
            connected: RefCell::new(Some(connected)),
            open: Cell::new(None),
            is_repeatable: Cell::new(false),
            is_away: Cell::new(false),
            gave_up: Cell::new(None),
            spent: Cell::default(),
            number: Cell::new(0),
            durable: RefCell::default(),
            is_lost: Cell::new(false),
        })
    }

    /// Connects anew if the connection was lost.
    fn reconnect(&self) -> Result<(), Error> {
        if self.connected.borrow().is_some() {
            return Ok(());
        }
        let new = Connected::to(&self.address)?;
        let (schema, address) = (self.schema, Arc::clone(&self.address));
        new.run(move |session| schema.check(session, &address.place))?;
        let has_all = self.has_durable(&new)?;
        *self.connected.borrow_mut() = Some(new);
        if has_all {
            return Ok(());
        }
        // It is told to whoever sees it first, and to whoever begins to change something: what only looks may be no more
        // than a courtesy, whose failure nobody heeds. Whoever has heard of it goes on with what there is.
        self.durable.take();
        self.is_lost.set(true);
        Err(self.loss())
    }

    /// Whether what was said to be durable is there for a new connection.
    fn has_durable(&self, new: &Connected) -> Result<bool, Error> {
        let Some(last) = self.durable.borrow().clone() else {
            return Ok(true);
        };
        let row = format!(
            "SELECT number FROM sealdisk_commits WHERE id = '{}'",
            last.connection
        );
        let found = new.run(move |session| {
            let rows = session.query(&row, &[])?;
            rows.first().map(|row| row.get::<i64>(0)).transpose()
        })?;
        Ok(match found {
            Some(number) => number >= last.number,
            None => last.at.elapsed().is_ok_and(|time| time >= KEPT),
        })
    }

    /// What is said of a change that was lost.
    fn loss(&self) -> Error {
        let (what, place) = (self.schema.what, &self.address.place);
        Error::new(
            ErrorKind::Other,
            format!(
                "the {what} {place} has lost a change that it had said is durable: a standby that was behind may have \
                 taken the place of the server; look at what there is before anything is tried again"
            ),
        )
    }

    /// What the connection answers. One that is lost is given up.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = match self.connected.borrow().as_ref() {
            Some(connected) => connected.run(work),
            None => Err(Error::new(ErrorKind::Lost, "there is no connection")),
        };
        if answer
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Lost)
        {
            self.connected.take();
        }
        if answer.is_ok() {
            self.gave_up.set(None);
        }
        answer
    }

    /// [`Postgres::ask`] of the transaction that is under way.
    fn ask_in_transaction<T: Send + 'static>(
        &self,
        open: Open,
        work: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = self.ask(work);
        if let Err(error) = &answer {
            let failed = open.failed.or(Some(error.kind()));
            self.open.set(Some(Open { failed, ..open }));
        }
        answer
    }

    /// Does something outside of a transaction, again when that may help.
    fn repeat<T>(&self, attempt: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let mut patience = Patience::of(self.patience());
        loop {
            let done = attempt();
            match done {
                Err(_) if patience.lasts(self) => {}
                done => return done,
            }
        }
    }

    fn may_repeat(&self, kind: ErrorKind) {
        let is_repeatable = matches!(kind, ErrorKind::Overtaken | ErrorKind::Lost);
        self.is_repeatable.set(is_repeatable);
        self.is_away.set(kind == ErrorKind::Lost);
    }

    /// What begins a transaction.
    fn beginning(&self, mode: Mode, about: &About) -> String {
        match mode {
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".into(),
            // Each statement sees what was there when it began, and nobody changes that any more: those who change
            // something have ended, or wait.
            Mode::Alone => format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {}",
                self.schema.lock(true)
            ),
            Mode::Write | Mode::InTurn(_) => {
                self.number.set(self.number.get() + 1);
                // What the transaction sees is of the moment of the first statement behind the lock.
                let turn = match mode {
                    Mode::InTurn(table) => format!("LOCK TABLE {table} IN EXCLUSIVE MODE; "),
                    _ => String::new(),
                };
                format!(
                    "BEGIN ISOLATION LEVEL SERIALIZABLE; {turn}{}; {}",
                    self.schema.lock(false),
                    note(about, self.last(), "excluded.number")
                )
            }
        }
    }

    /// The number of the last transaction that was to change something.
    fn last(&self) -> i64 {
        i64::try_from(self.number.get()).unwrap_or(i64::MAX)
    }

    /// Whether the transaction that a lost connection was to commit has counted.
    fn outcome(&self, lost: &About) -> Result<bool, Error> {
        let mut patience = Patience::of(self.address.patience);
        loop {
            match self.ask_outcome(lost) {
                Err(error) if error.kind() == ErrorKind::Lost && patience.wait() => {}
                found => return found,
            }
        }
    }

    fn ask_outcome(&self, lost: &About) -> Result<bool, Error> {
        self.reconnect()?;
        // Where the row is not there, it is made, with a number that no transaction has.
        let looked = note(lost, -1, "sealdisk_commits.number") + " RETURNING number";
        let lost = lost.clone();
        let found = self.ask(move |session| {
            // It may wait for a commit that will not come.
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE pid = ? AND backend_start::text = ?";
            let values = [
                Value::Integer(lost.process.into()),
                Value::Text(lost.since.into()),
            ];
            session.query(end, &values)?;
            let rows = session.query(&looked, &[])?;
            rows.first().map(|row| row.get::<i64>(0)).transpose()
        })?;
        Ok(found == Some(self.last()))
    }

    fn commit_write(&self) -> Result<(), Error> {
        let about = self.connected.borrow().as_ref().map(|it| it.about.clone());
        let done = self.ask(|session| session.batch("COMMIT"));
        let Some(about) = about else {
            return done;
        };
        let done = match done {
            Err(error) if error.kind() == ErrorKind::Lost => self.found_out(&about, error),
            done => done,
        };
        if done.is_ok() {
            *self.durable.borrow_mut() = Some(Durable {
                connection: about.id,
                number: self.last(),
                at: SystemTime::now(),
            });
        }
        done
    }

    /// What has become of a commit whose connection was lost.
    fn found_out(&self, about: &About, lost: Error) -> Result<(), Error> {
        match self.outcome(about) {
            Ok(true) => Ok(()),
            Ok(false) => Err(lost),
            Err(error) => Err(Error::new(
                ErrorKind::Unknown,
                format!(
                    "the connection was lost while a change was made durable, and whether it was is not known: look at \
                     what there is before it is tried again ({error})"
                ),
            )),
        }
    }
}

impl Engine for Postgres {
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        let run = |open| {
            let (sql, values) = owned(sql, values);
            self.ask_in_transaction(open, move |session| session.execute(&sql, &values))
        };
        if let Some(open) = self.open.get() {
            return run(open);
        }
        self.repeat(|| {
            self.begin(Mode::Write)?;
            let changed = run(Open {
                mode: Mode::Write,
                failed: None,
            });
            match changed {
                Ok(changed) => self.commit().map(|()| changed),
                Err(error) => {
                    let _ = self.roll_back();
                    Err(error)
                }
            }
        })
    }

    fn query(
        &self,
        sql: &str,
        values: &[Value<'_>],
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let rows = match self.open.get() {
            Some(open) => {
                let (sql, values) = owned(sql, values);
                self.ask_in_transaction(open, move |session| session.query(&sql, &values))?
            }
            None => self.repeat(|| {
                let (sql, values) = owned(sql, values);
                let found = self
                    .reconnect()
                    .and_then(|()| self.ask(move |session| session.query(&sql, &values)));
                found.inspect_err(|error| self.may_repeat(error.kind()))
            })?,
        };
        let _ = rows.into_iter().try_for_each(each);
        Ok(())
    }

    fn begin(&self, mode: Mode) -> Result<(), Error> {
        if self.open.get().is_some() {
            let what = "a transaction is begun within another one";
            return Err(Error::new(ErrorKind::Other, what));
        }
        let ready = self.reconnect();
        let is_connected = self.connected.borrow().is_some();
        let is_to_change = matches!(mode, Mode::Write | Mode::InTurn(_));
        let ready = match is_to_change && is_connected && self.is_lost.take() {
            true => Err(self.loss()),
            false => ready,
        };
        let begun = ready.and_then(|()| {
            let about = self.connected.borrow().as_ref().map(|it| it.about.clone());
            let sql = about.map(|about| self.beginning(mode, &about));
            self.ask(move |session| {
                let begun = session.batch(&sql.unwrap_or_default());
                if begun
                    .as_ref()
                    .is_err_and(|error| error.kind() != ErrorKind::Lost)
                {
                    session.batch("ROLLBACK")?;
                }
                begun
            })
        });
        match &begun {
            Ok(()) => {
                self.is_repeatable.set(false);
                self.open.set(Some(Open { mode, failed: None }));
            }
            Err(error) => self.may_repeat(error.kind()),
        }
        begun
    }

    fn commit(&self) -> Result<(), Error> {
        let Some(open) = self.open.get() else {
            return Err(Error::new(ErrorKind::Other, "no transaction is under way"));
        };
        // PostgreSQL takes it for a rollback.
        if let Some(failed) = open.failed {
            self.roll_back()?;
            let what = "a statement of the transaction has failed before";
            return Err(Error::new(failed, what));
        }
        self.open.set(None);
        match open.mode {
            Mode::Write | Mode::InTurn(_) => self
                .commit_write()
                .inspect_err(|error| self.may_repeat(error.kind())),
            // What was read is of one moment whatever becomes of the connection.
            Mode::Read | Mode::Alone => {
                let _ = self.ask(|session| session.batch("COMMIT"));
                Ok(())
            }
        }
    }

    fn roll_back(&self) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.is_repeatable.set(false);
        if let Some(failed) = open.failed {
            self.may_repeat(failed);
        }
        // Without a connection there is no transaction.
        match self.ask(|session| session.batch("ROLLBACK")) {
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            done => done,
        }
    }

    fn is_in_transaction(&self) -> bool {
        self.open.get().is_some()
    }

    fn is_repeatable(&self) -> bool {
        self.is_repeatable.get()
    }

    fn patience(&self) -> Duration {
        let spent = self.spent.take();
        let gave_up = self.gave_up.get();
        match gave_up.is_some_and(|at| at.elapsed() < AWAY) {
            true => Duration::ZERO,
            false => self.address.patience.saturating_sub(spent),
        }
    }

    fn spend_patience(&self, time: Duration) {
        self.spent.set(time);
    }

    fn give_up(&self) {
        if self.is_away.get() {
            self.gave_up.set(Some(Instant::now()));
        }
    }

    fn shrink(&self) -> Result<(), Error> {
        // The server does so when it is time (autovacuum).
        Ok(())
    }

    fn limit_journal(&self, _pages: u32) -> Result<(), Error> {
        Ok(())
    }

    fn overwrite_journal(&self) -> Result<(), Error> {
        // What a server keeps of what was replaced is its operator's.
        Ok(())
    }

    fn disconnect(&self) {
        if self.open.get().is_some() {
            return;
        }
        if let Some(connected) = self.connected.take() {
            connected.end();
        }
    }
}

/// Gives the row of a connection a number, and where it is there already this one.
fn note(about: &About, number: i64, then: &str) -> String {
    let id = &about.id;
    format!(
        "INSERT INTO sealdisk_commits VALUES ('{id}', {number}, now()) \
         ON CONFLICT (id) DO UPDATE SET time = now(), number = {then}"
    )
}

/// A statement that goes to the thread of the connection.
fn owned(sql: &str, values: &[Value<'_>]) -> (String, Vec<Value<'static>>) {
    (sql.into(), values.iter().map(Value::owned).collect())
}
