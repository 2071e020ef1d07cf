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
    /// As [`Mode::Write`], for what all change who have this table's name here, one after the other and in the order in
    /// which they came: none of them is in vain, however fast the others are.
    InTurn(&'static str),
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

    /// How long that is done for the operation that begins now.
    fn patience(&self) -> Duration;

    /// Has so much of the patience for the next operation be spent already.
    fn spend_patience(&self, time: Duration);

    /// Takes it that an operation has failed for as long as there was patience for it: those that come next need not wait
    /// as long for the same.
    fn give_up(&self);

    /// Makes what is on disk as small as what it holds, unless that is done anyway.
    fn shrink(&self) -> Result<(), Error>;

    /// Has a journal beside the database be taken over now, and after so many pages, if there is one.
    fn limit_journal(&self, pages: u32) -> Result<(), Error>;

    /// Has nothing be left in a journal beside the database of what was replaced, if there is one.
    fn overwrite_journal(&self) -> Result<(), Error>;

    /// Ends the threads and connections that the engine has, unless a transaction is under way. The next statement has
    /// them anew.
    fn disconnect(&self);
}
