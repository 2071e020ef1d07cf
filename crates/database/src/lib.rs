//! The databases that records are in.
//!
//! Whoever keeps records writes each statement once, in the SQL that both engines take, with `?` or `?1` where values
//! go, and gets rows of [`Value`]s and errors of one [`ErrorKind`]. What an engine does by itself stays with it: how a
//! database is opened, and the steps of its schema.
//!
//! A [`Database`] is used by one thread at a time. [`Database::transaction`] may run its closure again, when somebody
//! else was faster or the connection was lost before anything was changed: what it does besides statements must bear
//! that.

mod connection;
mod engine;
mod error;
mod exclusive;
mod patience;
#[cfg(feature = "postgres")]
pub mod postgres;
mod row;
pub mod sqlite;
#[cfg(test)]
mod tests;

mod value;

pub use connection::{Connection, Database, Held, Moment, Transaction};
pub use engine::Mode;
pub use error::{Error, ErrorKind, OpenError, lacks_space};
pub use exclusive::Exclusive;
pub use row::{Column, FromValue, Row};
pub use value::{ToValue, Value};
