//! What is left of an installation whose catalog is gone.

use std::path::{Path, PathBuf};

use crate::catalog::COPY_FILE;

/// How the directory begins in which a restore is made ready.
pub const RESTORING: &str = ".restore-";

/// What shows that there was a catalog at `path`, where there is none.
pub(crate) fn left_of(path: &Path) -> Option<PathBuf> {
    if path.symlink_metadata().is_ok() {
        return None;
    }
    // Of these only a restore that was cut off has the catalog in it.
    let entries = std::fs::read_dir(path.parent().unwrap_or(Path::new(".")));
    let entries = entries.into_iter().flatten().flatten();
    let restoring = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(RESTORING))
        .map(|entry| entry.path());
    let files = [COPY_FILE, "audit.db"].map(|name| path.with_file_name(name));
    let vaults = std::fs::read_dir(path.with_file_name("vaults"));
    let vaults = vaults.into_iter().flatten().flatten();
    files
        .into_iter()
        .chain(restoring)
        .chain(vaults.map(|entry| entry.path().join("vault.db")))
        .find(|path| path.exists())
}
