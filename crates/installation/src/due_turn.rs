//! Whose turn it is to do what is due by itself.
//!
//! Rotations and purges that are due are one's to do, of all that serve an installation: whoever has its name on the
//! server. It goes with the process that has it, or with its connection, and the next one to ask has it then. Two that do
//! the same at one time, since one does not know yet that its connection is lost, do no harm: each change looks at
//! everything again.

use std::sync::{Mutex, PoisonError};

use database::{Database, Exclusive};

use crate::catalog::{CatalogError, DatabaseCatalog};
use crate::place::CatalogAt;
use crate::server_name::ServerName;
use crate::{InstallationError, Place};

/// The name on the server.
const NAME: &str = "due";

/// The turn of a process.
pub struct DueTurn {
    catalog: CatalogAt,
    state: Mutex<State>,
}

enum State {
    /// There is no connection.
    Away,
    /// Somebody else has the name.
    Waiting(Box<Database>),
    /// It is this one's.
    Mine(ServerName),
}

impl DueTurn {
    /// Of an installation there.
    pub fn of(place: &Place) -> Self {
        Self {
            catalog: place.catalog.clone(),
            state: Mutex::new(State::Away),
        }
    }

    /// Whether it is this process's now. Of an installation in a file it always is.
    ///
    /// # Errors
    /// [`InstallationError`]: it cannot be told.
    pub fn is_mine(&self) -> Result<bool, InstallationError> {
        let Some(url) = self.catalog.server() else {
            return Ok(true);
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails leaves no connection.
        let connection = match std::mem::replace(&mut *state, State::Away) {
            State::Mine(name) => {
                if name.is_kept().map_err(CatalogError::from)? {
                    *state = State::Mine(name);
                    return Ok(true);
                }
                drop(name);
                Box::new(DatabaseCatalog::connect(url)?)
            }
            State::Waiting(connection) => connection,
            State::Away => Box::new(DatabaseCatalog::connect(url)?),
        };
        let taken = Exclusive::try_take(connection, NAME);
        *state = match taken.map_err(CatalogError::from)? {
            Ok(name) => State::Mine(name),
            Err(connection) => State::Waiting(connection),
        };
        Ok(matches!(*state, State::Mine(_)))
    }
}

#[cfg(test)]
mod tests {
    use test_support::postgres::PostgresServer;

    use super::*;
    use crate::Installation;

    #[test]
    fn one_has_the_turn_and_another_takes_it_over() {
        let dir = tempfile::tempdir().unwrap();
        let of_file = DueTurn::of(&Place::from(dir.path()));
        assert!(of_file.is_mine().unwrap());
        let Some(server) = PostgresServer::shared() else {
            return;
        };
        let place = Place {
            state_dir: dir.path().join("state"),
            catalog: CatalogAt::given(Some(&server.new_schema())).unwrap(),
        };
        drop(Installation::open(&place).unwrap());
        let (one, other) = (DueTurn::of(&place), DueTurn::of(&place));
        for _ in 0..2 {
            assert!(one.is_mine().unwrap());
            assert!(!other.is_mine().unwrap());
        }
        drop(one);
        assert!(other.is_mine().unwrap());
    }
}
