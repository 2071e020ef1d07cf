//! Names of an installation on a server that one process has alone, of those of all its hosts.

use database::{Database, Exclusive};

use crate::catalog::{CatalogError, DatabaseCatalog};
use crate::place::CatalogAt;

/// A name that this process has, until it is dropped or the process ends. It has a connection of its own.
pub(crate) type ServerName = Exclusive<Box<Database>>;

/// Waits for a name; `None` where the catalog is a file, for which hosts have files to lock.
///
/// # Errors
/// [`CatalogError`].
pub(crate) fn take(catalog: &CatalogAt, name: &str) -> Result<Option<ServerName>, CatalogError> {
    let Some(url) = catalog.server() else {
        return Ok(None);
    };
    let connection = Box::new(DatabaseCatalog::connect(url)?);
    Ok(Some(Exclusive::take(connection, name)?))
}
