//! The keys that servers share, from files of the state directory to rows of the server's database.
//!
//! A token that was given before stays good, and who trusts the TLS authority trusts it on.

use std::path::Path;

use database::postgres::ServerUrl;
use uuid::Uuid;

use super::error::MigrateError;
use crate::KeyStore;

/// What is moved of each kind, by how the names end.
const KINDS: [(&str, &[&str]); 3] = [
    ("tokens", &[".p8"]),
    ("federation", &[".p8"]),
    ("tls", &["ca.key", "ca.pem"]),
];

/// Stores all of them there. The files stay as they are; no server uses them any more.
///
/// # Errors
/// [`MigrateError`].
pub(super) fn move_keys(
    state_dir: &Path,
    installation: Uuid,
    to: &ServerUrl,
) -> Result<(), MigrateError> {
    for (kind, endings) in KINDS {
        let dir = state_dir.join(kind);
        if !dir.is_dir() {
            continue;
        }
        let here = KeyStore::in_directory(&dir).open()?;
        let target = KeyStore::on_server(to, kind, installation, &state_dir.join("audit.key"));
        let there = target.open()?;
        let mut names = here.names()?;
        names.retain(|name| endings.iter().any(|ending| name.ends_with(ending)));
        for name in names {
            let Some(key) = here.read_unguarded(&name)? else {
                continue;
            };
            there.put(&name, &key, true)?;
            if there.read(&name)?.is_none_or(|stored| *stored != *key) {
                let name = target.place_of(&name);
                return Err(MigrateError::Key { name });
            }
        }
    }
    Ok(())
}
