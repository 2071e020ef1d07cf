//! Paths that are given on the command line, and errors about them.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::CliError;

/// What is recorded must mean the same from every working directory.
pub(super) fn absolute(option: &str, path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|e| CliError::usage(format!("{option} {}: {e}", path.display())))
}

pub(super) fn in_file(path: &Path, what: &dyn Display) -> CliError {
    CliError::new("BadParameter", format!("{}: {what}", path.display()))
}
