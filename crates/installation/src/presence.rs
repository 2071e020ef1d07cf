//! Which of the processes that serve an installation on a server are there, so that one goes on with what another one has
//! left, and with nothing that another one does.
//!
//! Each has a name on the server, by an id of its own, for as long as it is there. It goes with the process, or with its
//! connection: one whose connection is lost takes its name again with the next.

use std::sync::{Mutex, PoisonError};

use database::Exclusive;
use uuid::Uuid;

use crate::catalog::{CatalogError, DatabaseCatalog};
use crate::place::CatalogAt;
use crate::server_name::ServerName;
use crate::{InstallationError, Place};

/// One of the processes that serve an installation.
pub struct Presence {
    id: Option<Uuid>,
    catalog: CatalogAt,
    name: Mutex<Option<ServerName>>,
}

impl Presence {
    /// Of this process, in an installation there.
    pub fn of(place: &Place) -> Self {
        let is_shared = place.catalog.server().is_some();
        Self {
            id: is_shared.then(Uuid::new_v4),
            catalog: place.catalog.clone(),
            name: Mutex::default(),
        }
    }

    /// The id by which others know this process; none where the catalog is a file, which one alone serves.
    pub fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Has others see that this process is there. It is to be called every few seconds.
    ///
    /// # Errors
    /// [`InstallationError`]: they do not see it now.
    pub fn keep(&self) -> Result<(), InstallationError> {
        let (Some(id), Some(url)) = (self.id, self.catalog.server()) else {
            return Ok(());
        };
        let mut name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = name.take() {
            match kept.is_kept() {
                Ok(true) => {
                    *name = Some(kept);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => log::debug!("the name of this server is asked for again: {error}"),
            }
        }
        let connection = Box::new(DatabaseCatalog::connect(url)?);
        let taken = Exclusive::try_take(connection, &name_of(id)).map_err(CatalogError::from)?;
        // While the server has not given up a lost connection of this process, that has it.
        *name = taken.ok();
        Ok(())
    }

    /// Whether another process is there, or this one. Who cannot tell takes it to be.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn is_there(&self, other: Uuid) -> Result<bool, InstallationError> {
        if self.id == Some(other) {
            return Ok(true);
        }
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = name.as_ref() else {
            return Ok(true);
        };
        let free = own.database().try_exclusive(&name_of(other));
        Ok(free.map_err(CatalogError::from)?.is_none())
    }
}

fn name_of(id: Uuid) -> String {
    format!("serving {id}")
}

#[cfg(test)]
mod tests {
    use test_support::postgres::PostgresServer;

    use super::*;
    use crate::Installation;

    #[test]
    fn who_serves_is_seen_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let alone = Presence::of(&Place::from(dir.path()));
        alone.keep().unwrap();
        assert_eq!(alone.id(), None);
        let Some(server) = PostgresServer::shared() else {
            return;
        };
        let place = Place {
            state_dir: dir.path().join("state"),
            catalog: CatalogAt::given(Some(&server.new_schema())).unwrap(),
        };
        drop(Installation::open(&place).unwrap());
        let (one, other) = (Presence::of(&place), Presence::of(&place));
        let id = one.id().unwrap();
        assert!(other.is_there(id).unwrap(), "nobody can tell");
        for _ in 0..2 {
            one.keep().unwrap();
            other.keep().unwrap();
            assert!(other.is_there(id).unwrap());
            assert!(one.is_there(other.id().unwrap()).unwrap());
        }
        drop(one);
        assert!(!other.is_there(id).unwrap());
        assert!(!other.is_there(id).unwrap(), "who looks leaves it free");
        assert!(!other.is_there(Uuid::new_v4()).unwrap());
    }
}
