//! Files with secrets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Refuses a file with a secret that others can read.
pub(super) fn must_be_private(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(format!("{shown} can be read by others: chmod 600 {shown}")),
    }
}
