//! Files with secrets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Refuses a file with a secret that others can read. systemd keeps its credentials private, for the user of a unit by
/// an access list, of which the mode shows the mask as if it were a group's.
pub(super) fn must_be_private(path: &Path) -> Result<(), String> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    must_be_private_unless(path, credentials.as_deref())
}

/// As [`must_be_private`], where that is the directory of credentials.
fn must_be_private_unless(path: &Path, credentials: Option<&Path>) -> Result<(), String> {
    if credentials.is_some() && path.parent() == credentials {
        return Ok(());
    }
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    match metadata.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(format!("{shown} can be read by others: chmod 600 {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_credential_is_private_whatever_its_mode_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealdisk-pgpass");
        std::fs::write(&path, "*:*:*:*:p\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        let elsewhere = Path::new("/run/credentials/x");
        for credentials in [None, Some(elsewhere)] {
            let refused = must_be_private_unless(&path, credentials);
            assert!(refused.unwrap_err().contains("chmod 600"));
        }
        assert!(must_be_private_unless(&path, Some(dir.path())).is_ok());
    }
}
