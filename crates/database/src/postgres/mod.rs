//! A database on a PostgreSQL server.

mod address;
mod engine;
mod failures;
mod password_file;
mod placeholders;
mod private;
mod schema;
mod schemas;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod url;
mod values;

pub use schema::Schema;
pub use schemas::{drop_schema, has_schema, make_schema, rename_schema, schemas};
pub use url::ServerUrl;

use std::sync::Arc;

use crate::{Database, OpenError};
use address::Address;
use engine::Postgres;
use session::Connected;

/// Opens the database at a URL as libpq has them, making its tables where there are none. The server is one for writes,
/// shows who it is, and needs no secret in the URL: see `address.rs`.
///
/// # Errors
/// [`OpenError`]. A database of somebody else, or a newer one, is not written to.
pub fn open(url: &str, schema: &Schema) -> Result<Database, OpenError> {
    open_at(address_of(url, schema)?, schema)
}

/// As [`open`], of a database that somebody else has made: `None` while there is nothing of it.
///
/// # Errors
/// As [`open`].
pub fn open_made(url: &str, schema: &Schema) -> Result<Option<Database>, OpenError> {
    let address = Arc::new(address_of(url, schema)?);
    let connected = connected(&address, schema)?;
    match is_there(&connected, &address, schema)? {
        true => made_ready(connected, address, schema).map(Some),
        false => Ok(None),
    }
}

/// As [`open_made`], for who only looks: a database of an older version is not brought up to date, since processes of that
/// version may use it.
///
/// # Errors
/// As [`open`].
pub fn open_as_it_is(url: &str, schema: &Schema) -> Result<Option<Database>, OpenError> {
    let address = Arc::new(address_of(url, schema)?);
    let connected = connected(&address, schema)?;
    Ok(match is_there(&connected, &address, schema)? {
        true => Some(Postgres::over(address, *schema, connected)),
        false => None,
    })
}

/// Whether there is anything of a database, which this program can open. Nothing is made, nor brought up to date.
///
/// # Errors
/// As [`open`].
pub fn look(url: &str, schema: &Schema) -> Result<bool, OpenError> {
    let address = Arc::new(address_of(url, schema)?);
    is_there(&connected(&address, schema)?, &address, schema)
}

fn address_of(url: &str, schema: &Schema) -> Result<Address, OpenError> {
    let what = schema.what;
    Address::parse(url).map_err(|why| OpenError::Address { what, why })
}

fn open_at(address: Address, schema: &Schema) -> Result<Database, OpenError> {
    let address = Arc::new(address);
    made_ready(connected(&address, schema)?, address, schema)
}

fn connected(address: &Arc<Address>, schema: &Schema) -> Result<Connected, OpenError> {
    Connected::to(address).map_err(|source| schema.failed(&address.place, source))
}

fn is_there(connected: &Connected, address: &Address, schema: &Schema) -> Result<bool, OpenError> {
    let (of, place) = (*schema, address.place.clone());
    connected
        .run(move |session| Ok(of.is_there(session, &place)))
        .map_err(|source| schema.failed(&address.place, source))?
}

/// The database over a connection, with its tables.
fn made_ready(
    connected: Connected,
    address: Arc<Address>,
    schema: &Schema,
) -> Result<Database, OpenError> {
    let (of, place) = (*schema, address.place.clone());
    connected
        .run(move |session| {
            let ready = of.make_ready(session, &place);
            // Rows of connections that have ended long ago.
            let ended = "DELETE FROM sealdisk_commits WHERE time < now() - interval '1 day'";
            Ok(ready.and_then(|()| session.batch(ended).map_err(|e| of.failed(&place, e))))
        })
        .map_err(|source| schema.failed(&address.place, source))??;
    Ok(Postgres::over(address, *schema, connected))
}
