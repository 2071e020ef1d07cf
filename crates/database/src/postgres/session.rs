//! A connection, in a thread of its own: the client runs an asynchronous runtime, which a thread that may be one of
//! another runtime must not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use postgres::{Client, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::Address;
use super::failures::failed;
use super::placeholders::numbered;
use super::values::Cell;
use crate::error::{Error, ErrorKind};
use crate::row::{Head, Row};
use crate::value::Value;

/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 128;

type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// A connection that is used from any thread. It ends when this is dropped.
pub(super) struct Connected {
    jobs: Sender<Job>,
    pub(super) about: About,
    thread: JoinHandle<()>,
}

/// What tells a connection from every other one.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// Its process, and since when that runs.
    pub(super) process: i32,
    pub(super) since: String,
    /// A new UUID.
    pub(super) id: String,
}

impl Connected {
    /// Connects.
    pub(super) fn to(address: &Arc<Address>) -> Result<Self, Error> {
        let (jobs, todo) = channel::<Job>();
        let (ready, is_ready) = sync_channel(1);
        let address = Arc::clone(address);
        let work = move || match Session::connect(&address) {
            Err(error) => drop(ready.send(Err(error))),
            Ok((mut session, about)) => {
                drop(ready.send(Ok(about)));
                todo.into_iter().for_each(|job| job(&mut session));
            }
        };
        let started = thread::Builder::new().name("postgres".into()).spawn(work);
        let thread = started
            .map_err(|e| Error::new(ErrorKind::Other, format!("cannot start a thread: {e}")))?;
        let about = is_ready.recv().map_err(|_| ended())??;
        Ok(Self {
            jobs,
            about,
            thread,
        })
    }

    /// Ends it, and waits until its thread has ended, and those that this has started.
    pub(super) fn end(self) {
        let Self { jobs, thread, .. } = self;
        drop(jobs);
        // One that has panicked has ended too.
        let _ = thread.join();
    }

    /// What `work` has made of the connection.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, receives) = sync_channel(1);
        let job: Job = Box::new(move |session| drop(answer.send(work(session))));
        self.jobs.send(job).map_err(|_| ended())?;
        receives.recv().map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Lost, "the connection has ended")
}

/// The connection itself.
pub(super) struct Session {
    client: Client,
    statements: HashMap<String, Kept>,
    uses: u64,
}

/// A prepared statement, and when it was used last.
struct Kept {
    statement: Statement,
    used: u64,
}

/// Also takes what was committed without a sync for what it is: not done.
const ABOUT: &str = "
SELECT pid, backend_start::text, gen_random_uuid()::text,
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
FROM pg_stat_activity WHERE pid = pg_backend_pid()";

impl Session {
    fn connect(address: &Address) -> Result<(Self, About), Error> {
        let connected = match &address.tls {
            Some(tls) => address.config.connect(MakeRustlsConnect::new(tls.clone())),
            None => address.config.connect(NoTls),
        };
        let mut session = Self {
            client: connected.map_err(|e| failed(&e))?,
            statements: HashMap::new(),
            uses: 0,
        };
        let mut rows = session.query(ABOUT, &[])?;
        let row = rows.pop().ok_or_else(ended)?;
        let about = About {
            process: i32::try_from(row.get::<i64>(0)?).unwrap_or_default(),
            since: row.get(1)?,
            id: row.get(2)?,
        };
        Ok((session, about))
    }

    /// Runs statements that have no values.
    pub(super) fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).map_err(|e| failed(&e))
    }

    /// Runs a statement; how many rows it has changed.
    pub(super) fn execute(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        let statement = self.prepared(sql)?;
        let values: Vec<_> = values.iter().map(|value| value as _).collect();
        let changed = self.client.execute(&statement, &values);
        changed.map_err(|e| failed(&e))
    }

    /// Runs a statement for its rows.
    pub(super) fn query(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(sql)?;
        let values: Vec<_> = values.iter().map(|value| value as _).collect();
        let found = self.client.query(&statement, &values);
        let columns = statement.columns().iter();
        let head = Arc::new(Head {
            sql: sql.into(),
            columns: columns.map(|column| column.name().into()).collect(),
        });
        let row = |(number, found): (u64, postgres::Row)| {
            let cells = (0..found.len()).map(|at| found.try_get::<_, Cell>(at).map(|cell| cell.0));
            let values: Result<_, postgres::Error> = cells.collect();
            Ok(Row {
                head: Arc::clone(&head),
                number,
                values: values.map_err(|e| failed(&e))?,
            })
        };
        let found = found.map_err(|e| failed(&e))?;
        (1..).zip(found).map(row).collect()
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement, Error> {
        self.uses += 1;
        if let Some(kept) = self.statements.get_mut(sql) {
            kept.used = self.uses;
            return Ok(kept.statement.clone());
        }
        let statement = self.client.prepare(&numbered(sql));
        let statement = statement.map_err(|e| failed(&e))?;
        if self.statements.len() >= STATEMENTS {
            let kept = self.statements.iter();
            let oldest = kept.min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(sql, _)| sql.clone()) {
                self.statements.remove(&oldest);
            }
        }
        let kept = Kept {
            statement: statement.clone(),
            used: self.uses,
        };
        self.statements.insert(sql.into(), kept);
        Ok(statement)
    }
}
