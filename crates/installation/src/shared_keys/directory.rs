//! Keys in files of a directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::InstallationError;
use crate::files::{private_dir, read_private, sync_dir};

/// Keys and certificates are shorter.
const MAX_FILE: u64 = 64 << 10;
/// What a file is called until it is whole.
const NEW: &str = "new";

/// A directory that nobody else changes.
pub(super) struct Directory {
    dir: PathBuf,
    /// The kernel releases its lock when its holder dies.
    _lock: File,
}

impl Directory {
    pub(super) fn open(dir: &Path) -> Result<Self, InstallationError> {
        private_dir(dir)?;
        let locked = || -> io::Result<File> {
            let lock = File::open(dir)?;
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        };
        Ok(Self {
            _lock: locked().map_err(|e| failed(dir, e))?,
            dir: dir.into(),
        })
    }

    pub(super) fn names(&self) -> Result<Vec<String>, InstallationError> {
        let fail = |e| failed(&self.dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            names.extend(name.into_string());
        }
        names.retain(|name| !name.starts_with('.') && !name.ends_with(&format!(".{NEW}")));
        names.sort();
        Ok(names)
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, InstallationError> {
        let path = self.dir.join(name);
        match path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => read_private(&path, MAX_FILE).map(Some),
        }
    }

    pub(super) fn read_unguarded(
        &self,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, InstallationError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read
                .map(|content| Some(Zeroizing::new(content)))
                .map_err(|e| failed(&path, e)),
        }
    }

    pub(super) fn put(
        &self,
        name: &str,
        content: &[u8],
        is_secret: bool,
    ) -> Result<(), InstallationError> {
        let path = self.dir.join(name);
        let staging = path.with_extension(NEW);
        let mode = if is_secret { 0o600 } else { 0o644 };
        let written = remove_if_there(&staging)
            .and_then(|()| {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(&staging)
            })
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&staging, &path))
            .and_then(|()| sync_dir(&self.dir));
        written.map_err(|e| failed(&path, e))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), InstallationError> {
        let path = self.dir.join(name);
        remove_if_there(&path).map_err(|e| failed(&path, e))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn failed(path: &Path, source: io::Error) -> InstallationError {
    InstallationError::KeyFile {
        path: path.into(),
        source,
    }
}
