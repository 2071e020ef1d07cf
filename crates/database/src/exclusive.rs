//! Names that one of all who use a database has alone.

use std::ops::Deref;
use std::time::{Duration, Instant};

use crate::connection::Database;
use crate::error::{Error, ErrorKind};

/// How long a name is waited for: longer than anything that is done with one.
const PATIENCE: Duration = Duration::from_secs(300);

/// A name that nobody else has, until this is dropped or its connection is lost, as with the death of its process. In
/// SQLite it is always granted: whoever has to be alone there locks a file.
///
/// It is the connection's: whoever shares that has the name too. Nobody does something that must be done by one alone
/// because of it, since a connection that is lost does not say so; it keeps those apart who do the same at one time.
pub struct Exclusive<D: Deref<Target = Database>> {
    database: D,
    name: String,
}

impl<D: Deref<Target = Database>> Exclusive<D> {
    /// Waits for a name.
    ///
    /// # Errors
    /// [`Error`]; [`ErrorKind::Busy`] when somebody else does not give it back.
    pub fn take(database: D, name: &str) -> Result<Self, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            match database.engine.lock(name, true) {
                Ok(_) => break,
                // A server lets nobody wait for longer than half a minute at a time.
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < until => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::of(database, name))
    }

    /// Takes a name that nobody else has. While somebody has it, the database is given back.
    ///
    /// # Errors
    /// [`Error`].
    pub fn try_take(database: D, name: &str) -> Result<Result<Self, D>, Error> {
        Ok(match database.engine.lock(name, false)? {
            true => Ok(Self::of(database, name)),
            false => Err(database),
        })
    }

    fn of(database: D, name: &str) -> Self {
        Self {
            database,
            name: name.into(),
        }
    }

    /// The database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Whether the name is still held, or again: where the connection was lost, and nobody else has it since.
    ///
    /// # Errors
    /// [`Error`].
    pub fn is_kept(&self) -> Result<bool, Error> {
        let engine = &self.database.engine;
        Ok(engine.has_locked(&self.name)? || engine.lock(&self.name, false)?)
    }
}

impl<D: Deref<Target = Database>> Drop for Exclusive<D> {
    fn drop(&mut self) {
        if let Err(error) = self.database.engine.unlock(&self.name) {
            log::debug!("'{}' is not given back: {error}", self.name);
        }
    }
}

impl Database {
    /// Takes a name alone, of all who use the database; `None` while somebody else has it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn try_exclusive(&self, name: &str) -> Result<Option<Exclusive<&Self>>, Error> {
        Ok(Exclusive::try_take(self, name)?.ok())
    }
}
