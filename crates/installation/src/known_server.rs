//! What a state directory knows of its catalog on a server: `STATE_DIR/catalog-server.json`.
//!
//! Whoever forgets `--catalog`, or gives another one, would make a second installation beside the first. The file says
//! whose the directory is, and where that installation was found last. It has no secret, and grants nothing: the address
//! is always given.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::files::sync_dir;

/// The file in the state directory.
pub(crate) const SERVER_FILE: &str = "catalog-server.json";

/// The format of the file.
const FORMAT: u32 = 1;

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KnownServer {
    format: u32,
    /// Whose state directory it is.
    pub(crate) installation: Uuid,
    /// Where its catalog was found last, without options.
    pub(crate) server: String,
}

impl KnownServer {
    /// Of that installation, whose catalog is there.
    pub(crate) fn new(installation: Uuid, server: String) -> Self {
        Self {
            format: FORMAT,
            installation,
            server,
        }
    }

    /// What a state directory knows, if anything.
    ///
    /// # Errors
    /// [`CatalogError::Note`].
    pub(crate) fn read(state_dir: &Path) -> Result<Option<Self>, CatalogError> {
        let path = path_in(state_dir);
        let fail = |why: String| CatalogError::Note {
            call: "read",
            path: path.clone(),
            why,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(fail(e.to_string())),
        };
        let known: Self = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        match known.format {
            FORMAT => Ok(Some(known)),
            other => Err(fail(format!("format {other} is not known, {FORMAT} is"))),
        }
    }

    /// Has a state directory know it. The file is whole at any moment.
    ///
    /// # Errors
    /// [`CatalogError::Note`].
    pub(crate) fn note(&self, state_dir: &Path) -> Result<(), CatalogError> {
        let path = path_in(state_dir);
        let new = state_dir.join(format!(".{SERVER_FILE}.{}", Uuid::new_v4()));
        let write = || -> io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_dir(state_dir)
        };
        write().map_err(|e| {
            // It may have its name already.
            let _ = fs::remove_file(&new);
            CatalogError::Note {
                call: "write",
                path: path.clone(),
                why: e.to_string(),
            }
        })
    }
}

/// The file of a state directory.
pub(crate) fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join(SERVER_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_and_what_is_no_note_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(KnownServer::read(dir.path()).unwrap(), None);
        for server in ["postgres://db1/d", "postgres://db2/d"] {
            let known = KnownServer::new(Uuid::new_v4(), server.into());
            known.note(dir.path()).unwrap();
            assert_eq!(KnownServer::read(dir.path()).unwrap(), Some(known));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for text in [
            "{",
            r#"{"format":2,"installation":"00000000-0000-0000-0000-000000000000","server":"s"}"#,
        ] {
            fs::write(path_in(dir.path()), text).unwrap();
            let refused = KnownServer::read(dir.path()).unwrap_err();
            assert!(matches!(refused, CatalogError::Note { .. }), "{refused}");
        }
    }
}
