//! What runs statements.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::error::Error;
use crate::row::Row;
use crate::value::Value;

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To read from one moment.
    Read,
    /// To change what was read meanwhile by nobody else.
    Write,
    /// To read while nobody else changes anything.
    Alone,
}

/// A connection to a database, in a transaction or in none: then each statement is one.
pub(crate) trait Engine: Send {
    /// Runs a statement; how many rows it has changed.
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Error>;

    /// Runs a statement that changes nothing, and gives its rows to `each` until that has enough.
    fn query(
        &self,
        sql: &str,
        values: &[Value<'_>],
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Error>;

    /// Begins a transaction.
    fn begin(&self, mode: Mode) -> Result<(), Error>;

    /// Makes what the transaction has changed durable, and ends it. On an error it has ended, too.
    fn commit(&self) -> Result<(), Error>;

    /// Ends the transaction without a change.
    fn roll_back(&self) -> Result<(), Error>;

    /// Whether a transaction is under way.
    fn is_in_transaction(&self) -> bool;

    /// Whether the transaction that has ended last, or was not begun, failed only because somebody else was faster or
    /// the connection was lost, and has changed nothing: then it may succeed when it is run again.
    fn is_repeatable(&self) -> bool;

    /// How long that is done.
    fn patience(&self) -> Duration;

    /// Has a name alone, of all who use the database, until [`Engine::unlock`] or the end of the connection; if it `waits`,
    /// after whoever else has it. Whether it has.
    fn lock(&self, name: &str, waits: bool) -> Result<bool, Error>;

    /// Gives a name back, where the connection has it.
    fn unlock(&self, name: &str) -> Result<(), Error>;

    /// Whether the connection has a name, which it has no more after it was lost.
    fn has_locked(&self, name: &str) -> Result<bool, Error>;

    /// How much room the tables and their indexes take, in bytes.
    fn size(&self) -> Result<u64, Error>;

    /// Makes what is on disk as small as what it holds, unless that is done anyway.
    fn shrink(&self) -> Result<(), Error>;

    /// Has a journal beside the database be taken over now, and after so many pages, if there is one.
    fn limit_journal(&self, pages: u32) -> Result<(), Error>;

    /// Ends the threads and connections that the engine has, unless a transaction is under way. The next statement has
    /// them anew.
    fn disconnect(&self);
}
