//! A database on a PostgreSQL server.

mod address;
mod engine;
mod failures;
mod password_file;
mod placeholders;
mod private;
mod schema;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod values;

pub use schema::Schema;

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
    let what = schema.what;
    let address = Address::parse(url).map_err(|why| OpenError::Address { what, why })?;
    open_at(address, schema)
}

fn open_at(address: Address, schema: &Schema) -> Result<Database, OpenError> {
    let address = Arc::new(address);
    let connected = Connected::to(&address);
    let connected = connected.map_err(|source| schema.failed(&address.place, source))?;
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
