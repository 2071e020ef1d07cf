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

/// Where the units of the package write the backups of the installation in `state_dir`: `/var/backups/NAME` for
/// `/var/lib/NAME`.
pub fn directory_of_units(state_dir: &Path) -> Option<PathBuf> {
    let name = state_dir.strip_prefix("/var/lib").ok()?;
    (name.components().count() == 1).then(|| Path::new("/var/backups").join(name))
}

/// The last backup of the installation in `state_dir`, if one is known: by its note, or else by the newest that the
/// package's units have written, for what was restored from it.
///
/// # Errors
/// [`BackupError::Io`], for what is not such a file too.
pub fn last_made(state_dir: &Path) -> Result<Option<MadeBackup>, BackupError> {
    let path = state_dir.join(FILE);
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|e| BackupError::io("read", &path)(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(directory_of_units(state_dir).and_then(|directory| newest(&directory)))
        }
        Err(e) => Err(BackupError::io("read", &path)(e)),
    }
}

/// The newest backup in a directory, by when it was written.
fn newest(directory: &Path) -> Option<MadeBackup> {
    let made = fs::read_dir(directory).ok()?.flatten().filter_map(|entry| {
        let file = entry.path();
        let is_backup = file.extension().is_some_and(|extension| extension == "age");
        let written = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let created = written.modified().ok()?.into();
        is_backup.then_some(MadeBackup { created, file })
    });
    made.max_by_key(|made| made.created)
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
    fn the_units_write_into_the_directory_that_belongs_to_the_state_directory() {
        let of = |state_dir: &str| directory_of_units(Path::new(state_dir));
        assert_eq!(
            of("/var/lib/sealdisk"),
            Some("/var/backups/sealdisk".into())
        );
        assert_eq!(
            of("/var/lib/sealdisk-keyvault"),
            Some("/var/backups/sealdisk-keyvault".into())
        );
        for other in [
            "/var/lib",
            "/var/lib/sealdisk/inner",
            "/srv/sealdisk",
            "state",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        for unit in ["sealdisk-backup", "sealdisk-keyvault-backup"] {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/systemd");
            let unit = fs::read_to_string(format!("{root}/{unit}.service")).unwrap();
            let setting = |name: &str| {
                let mut lines = unit.lines();
                lines.find_map(|line| line.strip_prefix(name)).unwrap()
            };
            let state_dir = format!("/var/lib/{}", setting("StateDirectory="));
            assert_eq!(of(&state_dir), Some(setting("ReadWritePaths=").into()));
        }
    }

    #[test]
    fn the_newest_backup_in_a_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).is_none() && newest(&dir.path().join("none")).is_none());
        let day = std::time::Duration::from_secs(86400);
        for (name, age) in [("old.age", 3), ("new.age", 1), ("notes.txt", 0)] {
            let file = File::create(dir.path().join(name)).unwrap();
            let written = std::time::SystemTime::now() - day * age;
            file.set_modified(written).unwrap();
        }
        fs::create_dir(dir.path().join("later.age")).unwrap();
        assert_eq!(newest(dir.path()).unwrap().file, dir.path().join("new.age"));
    }

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
