//! The program that this process runs.

use std::path::PathBuf;

/// The path from which this process was started. What is there by now may be another program.
///
/// # Errors
/// What the kernel says.
pub(crate) fn own_program() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let name = path
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(name.map_or_else(|| path.clone(), PathBuf::from))
}
