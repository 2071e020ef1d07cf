//! An installation whose catalog is on a server: whether it is that of the state directory.
//!
//! A server may have lost it, or have another one. A new catalog is made only for a state directory in which there is
//! nothing yet: everything else in it has names and keys that only one catalog knows.

use std::path::{Path, PathBuf};

use database::postgres::ServerUrl;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, DatabaseCatalog, MovingCatalog};
use crate::known_server::{KnownServer, path_in};
use crate::leftovers::left_of;
use crate::place::CATALOG_FILE;

#[cfg(test)]
mod tests;

/// Whose a state directory is.
struct Owner {
    installation: Uuid,
    /// What says so.
    said_by: PathBuf,
}

/// Whether a catalog is made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfMissing {
    Make,
    LookOnly,
}

/// The catalog at a URL, for a state directory; `None` where there is none and none is made.
///
/// # Errors
/// [`CatalogError`]: it cannot be opened, or is not that of the directory.
pub(crate) fn catalog_for(
    state_dir: &Path,
    url: &ServerUrl,
    if_missing: IfMissing,
) -> Result<Option<DatabaseCatalog>, CatalogError> {
    let owner = owner(state_dir, url)?;
    let found = match (&owner, if_missing) {
        (None, IfMissing::Make) => Some(DatabaseCatalog::open_on_server(url)?),
        _ => DatabaseCatalog::open_made_on_server(url)?,
    };
    let (catalog, owner) = match (found, owner) {
        (None, None) => return Ok(None),
        (None, Some(owner)) => {
            return Err(CatalogError::LostOnServer {
                place: url.to_string(),
                found: owner.said_by,
            });
        }
        (Some(catalog), None) => return Ok(Some(catalog)),
        (Some(catalog), Some(owner)) => (catalog, owner),
    };
    match catalog.installation()?.id() {
        there if there == owner.installation => Ok(Some(catalog)),
        there => Err(CatalogError::OtherInstallation {
            place: url.to_string(),
            there,
            found: owner.said_by,
            here: owner.installation,
        }),
    }
}

/// Has a state directory know that its catalog, of that installation, is at a URL.
///
/// # Errors
/// [`CatalogError::Note`].
pub(crate) fn join(
    state_dir: &Path,
    installation: Uuid,
    url: &ServerUrl,
) -> Result<(), CatalogError> {
    let known = KnownServer::new(installation, url.to_string());
    match KnownServer::read(state_dir)? {
        Some(before) if before == known => return Ok(()),
        _ => known.note(state_dir)?,
    }
    finish_move(&state_dir.join(CATALOG_FILE), installation);
    Ok(())
}

/// The catalog on the server is used: a move that was killed before it could note that in the file is at its end.
fn finish_move(file: &Path, installation: Uuid) {
    let moved = file.symlink_metadata().ok();
    let moved = moved.and_then(|_| DatabaseCatalog::moved_from(file).ok()?);
    if moved.is_none_or(|moved| moved.is_finished || moved.installation != installation) {
        return;
    }
    if let Err(error) = MovingCatalog::open(file).and_then(|catalog| catalog.finish()) {
        log::warn!("it is not noted that the move of the catalog has ended: {error}");
    }
}

/// Whose a state directory is; `None` when there is nothing in it that is anybody's.
fn owner(state_dir: &Path, url: &ServerUrl) -> Result<Option<Owner>, CatalogError> {
    if let Some(known) = KnownServer::read(state_dir)? {
        return Ok(Some(Owner {
            installation: known.installation,
            said_by: path_in(state_dir),
        }));
    }
    let file = state_dir.join(CATALOG_FILE);
    let place = url.to_string();
    if file.symlink_metadata().is_ok() {
        return match DatabaseCatalog::moved_from(&file)? {
            Some(moved) => Ok(Some(Owner {
                installation: moved.installation,
                said_by: file,
            })),
            None => Err(CatalogError::InFile { path: file, place }),
        };
    }
    match left_of(&file) {
        Some(found) => Err(CatalogError::Unrelated { found, place }),
        None => Ok(None),
    }
}
