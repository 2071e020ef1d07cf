//! The installation that is looked at.

use std::path::Path;

use installation::{Installation, InstallationError};

/// The installation, if there is one: to look must not make one.
pub(crate) fn open(state_dir: &Path) -> Result<Option<Installation>, InstallationError> {
    match Installation::is_there(state_dir)? {
        true => Installation::open(state_dir).map(Some),
        false => Ok(None),
    }
}
