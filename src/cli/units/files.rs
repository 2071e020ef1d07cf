//! The files of drop-ins: where they are, and changing them so that systemd sees the old or the new.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::cli::CliError;
use installation::files::sync_dir;

/// Below the root: where the host's own units are.
const UNITS: &str = "etc/systemd/system";
/// The drop-in that is ours.
const FILE: &str = "50-sealdisk.conf";

/// The tree whose units are meant.
#[derive(Debug, Clone)]
pub(super) struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// A tree that is not this host's.
    pub(super) fn of(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The drop-in of a unit.
    pub(super) fn drop_in(&self, unit: &str) -> PathBuf {
        let units = self.0.join(UNITS);
        units.join(format!("{unit}.d")).join(FILE)
    }
}

/// The disks that have a drop-in of a service, with it.
pub(super) fn drop_ins(root: &Root) -> Vec<(String, PathBuf)> {
    // Without the directory there is none.
    let entries = fs::read_dir(root.0.join(UNITS)).into_iter().flatten();
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let disk = name.strip_prefix("sealdisk@")?.strip_suffix(".service.d")?;
            let file = entry.path().join(FILE);
            file.is_file().then(|| (disk.to_owned(), file))
        })
        .collect();
    found.sort();
    found
}

/// Has a file say that. Whether it said something else before.
///
/// # Errors
/// What cannot be done with it.
pub(super) fn put(path: &Path, text: &str) -> Result<bool, CliError> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    write(path, text).map_err(|error| failed("write", path, &error))?;
    Ok(true)
}

/// What a file said before something was done to it.
pub(super) struct Before {
    path: PathBuf,
    text: Option<String>,
}

impl Before {
    /// Looks at a file, which need not be there.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub(super) fn of(path: &Path) -> Result<Self, CliError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", path, &error)),
        };
        let path = path.to_owned();
        Ok(Self { path, text })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has it say that again.
    ///
    /// # Errors
    /// What cannot be done with it.
    pub(super) fn restore(&self) -> Result<(), CliError> {
        match &self.text {
            Some(text) => put(&self.path, text)?,
            None => remove(&self.path)?,
        };
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    // systemd reads only what ends with `.conf`.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        // Whatever the umask.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // It may not be there; what went wrong before is told.
        let _ = fs::remove_file(&new);
    }
    written?;
    sync_dir(dir)
}

/// Removes a file, and its directory when nothing else is in it. Whether it was there.
///
/// # Errors
/// What cannot be done with it.
pub(super) fn remove(path: &Path) -> Result<bool, CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("remove", path, &error)),
        Ok(()) => {}
    }
    if let Some(dir) = path.parent() {
        // Somebody's own settings may be in it.
        let _ = fs::remove_dir(dir);
    }
    Ok(true)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::new(
        "UnitFile",
        format!("cannot {what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_is_written_once_and_removed_without_what_is_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::of(dir.path().into());
        let path = root.drop_in("sealdisk@web.service");
        assert!(put(&path, "a").unwrap() && !put(&path, "a").unwrap());
        assert!(put(&path, "b").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "b");
        let found = drop_ins(&root);
        assert_eq!(found, [("web".to_owned(), path.clone())]);
        let own = path.with_file_name("own.conf");
        fs::write(&own, "c").unwrap();
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
        assert!(own.is_file() && drop_ins(&root).is_empty());
        let before = Before::of(&path).unwrap();
        put(&path, "a").unwrap();
        before.restore().unwrap();
        assert!(!path.exists());
        put(&path, "a").unwrap();
        let before = Before::of(&path).unwrap();
        put(&path, "b").unwrap();
        before.restore().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a");
        fs::remove_file(&own).unwrap();
        remove(&path).unwrap();
        assert!(!path.parent().unwrap().exists());
    }
}
