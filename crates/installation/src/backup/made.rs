//! When the last backup was made: a file in the state directory that each new one replaces.
//!
//! The audit log has a record of it too, but that may be archived. A backup does not have the file: what is restored
//! from one has none yet.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::BackupError;
use crate::files::sync_dir;

/// The file in the state directory.
const FILE: &str = "last-backup.json";

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeBackup {
    /// The moment that it is of.
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// Where it was written.
    pub file: PathBuf,
}

/// The last backup of the installation in `state_dir`, if one is known.
///
/// # Errors
/// [`BackupError::Io`], for what is not such a file too.
pub fn last_made(state_dir: &Path) -> Result<Option<MadeBackup>, BackupError> {
    let path = state_dir.join(FILE);
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| BackupError::io("read", &path)(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(BackupError::io("read", &path)(e)),
    }
}

/// Notes that a backup was made. The file is whole at any moment.
pub(super) fn note(state_dir: &Path, made: &MadeBackup) -> Result<(), BackupError> {
    let path = state_dir.join(FILE);
    let new = state_dir.join(format!(".{FILE}.{}", Uuid::new_v4()));
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(made)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_dir(state_dir)
    };
    write().map_err(|e| {
        // It may have its name already.
        let _ = fs::remove_file(&new);
        BackupError::io("write", &path)(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_backup_is_known_and_what_is_no_note_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(last_made(dir.path()).unwrap().is_none());
        for file in ["/backup/monday.age", "/backup/tuesday.age"] {
            let made = MadeBackup {
                created: OffsetDateTime::UNIX_EPOCH,
                file: file.into(),
            };
            note(dir.path(), &made).unwrap();
            assert_eq!(last_made(dir.path()).unwrap(), Some(made));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(FILE), "{}").unwrap();
        assert!(last_made(dir.path()).is_err());
    }
}
